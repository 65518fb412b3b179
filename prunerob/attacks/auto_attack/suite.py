"""AutoAttack, version "standard": four attacks, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from prunerob.attacks.auto_attack.apgd import APGD, CLASSES
from prunerob.attacks.auto_attack.fab import FAB
from prunerob.attacks.auto_attack.square import Square
from prunerob.attacks.auto_attack.survivors import Hunt, Survivors
from prunerob.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Hunt):
    """AutoAttack, standard (Croce and Hein, arXiv:2003.01690): what robust accuracy is measured by.

    APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and the Square attack.
    Each attacks the images that are left, from the image itself, and an image is lost where any
    iterate of any of them is misclassified. A network that answers with NaN or infinity is wrong.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255.
        images: number of test images to attack, a draw stratified by class that is always the
            same; null for all.
    """

    @property
    def gradient_steps(self) -> int:
        """Those of its first attack."""
        return self.stages[0][1].gradient_steps

    @property
    def is_standard(self) -> bool:
        """It is."""
        return True

    @property
    def fewest_classes(self) -> int:
        """Those of the targeted DLR loss."""
        return CLASSES["targeted_dlr"]

    @property
    def stages(self) -> tuple[tuple[str, Hunt], ...]:
        """The four attacks by name, in their order: run on survivors, they are the whole."""
        return (
            ("APGD-CE", APGD(eps=self.eps)),
            ("APGD-T", APGD(eps=self.eps, loss="targeted_dlr")),
            ("FAB-T", FAB(eps=self.eps)),
            ("Square", Square(eps=self.eps)),
        )

    def hunt(self, survivors: Survivors) -> None:
        """Attack who is left; see `Hunt`."""
        fewest = self.fewest_classes
        if survivors.classes < fewest:
            raise UserError(
                f"AutoAttack: its APGD-T needs {fewest} classes or more, and the network has "
                f"{survivors.classes}; APGD on the cross-entropy, FAB and Square need 2"
            )
        for _, attack in self.stages:
            attack.hunt(survivors)
