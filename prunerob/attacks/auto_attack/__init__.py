"""AutoAttack, and the four attacks that it is made of."""

from prunerob.attacks.auto_attack.apgd import APGD
from prunerob.attacks.auto_attack.fab import FAB
from prunerob.attacks.auto_attack.square import Square
from prunerob.attacks.auto_attack.suite import AutoAttack

__all__ = ["APGD", "FAB", "AutoAttack", "Square"]
