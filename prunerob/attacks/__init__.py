"""Attacks: frozen settings, called as `attack(network, x, y, eps=..., key=...) -> x_adv`."""

from prunerob.attacks.attack import Attack, NoAttack
from prunerob.attacks.auto_attack import APGD, FAB, AutoAttack, Square
from prunerob.attacks.black_box import BlackBox
from prunerob.attacks.fgsm import FGSM
from prunerob.attacks.nfgsm import NFGSM
from prunerob.attacks.pgd import PGD

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "NFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "BlackBox",
    "NoAttack",
    "Square",
]
