"""The probe: a short look at what AutoAttack would find, for validation in every epoch."""

from __future__ import annotations

from dataclasses import dataclass

from prunerob.attacks.auto_attack.apgd import APGD
from prunerob.attacks.auto_attack.fab import FAB
from prunerob.attacks.auto_attack.square import Square
from prunerob.attacks.auto_attack.survivors import Hunt, Survivors


@dataclass(frozen=True, kw_only=True)
class Probe(Hunt):
    """Attacks that what hides gradients of the cross-entropy does not mislead, cut short.

    Auto-PGD through ReLUs that are off, FAB with few targets and steps, then Square with few
    queries. What it finds is lost; what it leaves, AutoAttack may still find: no measure of
    robustness, but an alarm for other attacks.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255.
        images: number of test images to attack, a stratified draw; null for all.
    """

    def hunt(self, survivors: Survivors) -> None:
        """Attack who is left; see `Hunt`."""
        APGD(eps=self.eps, steps=20, relu_temperature=0.1).hunt(survivors)
        FAB(eps=self.eps, targets=3, steps=20).hunt(survivors)
        Square(eps=self.eps, queries=300).hunt(survivors)
