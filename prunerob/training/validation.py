"""Validation: accuracies on held-out images, clean and attacked, and the probe for overfitting.

Accuracies have names: "clean"; "robust", under the validation attack; and, if the training attack
takes a single step, "one_step" under that (under FGSM, where it leaves the ball) and "many_steps"
under PGD in the same ball (where the validation attack is not that already). "probe" are those
right under the validation attack and a short look for what AutoAttack would find; where it is far
below "robust", the validation attack is misled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunerob.attacks import FGSM, PGD, Attack
from prunerob.attacks.auto_attack.probe import Probe
from prunerob.data.batches import Batch, Batches
from prunerob.noise import image_keys
from prunerob.pixels import Pixels
from prunerob.robustness.diagnostics import overfits_to_one_step
from prunerob.robustness.measure import in_float32
from prunerob.runs.ranks import gather

PROBED = "probed"
"""Name of the images that were probed, as the validation attack leaves them."""
MASKED = 0.1
"""Share of images that the probe must take from the validation attack's for a warning."""

Counts = Mapping[str, tuple[int, int]]
"""Images classified right, and images, over all ranks, by name."""


class Validation:
    """Counts validation images that are classified right.

    Args:
        attack: of validation.
        training: the attack of training.
        attacked_images: number of validation images to attack, the first ones; 0 for none.
        probed_images: number of those that are probed; 0 for none.
        attacked: gives the network to attack, by some images.
        seed: of the attacks' noise.
    """

    def __init__(
        self,
        attack: Attack,
        training: Attack,
        *,
        attacked_images: int,
        probed_images: int,
        attacked: Callable[[Tensor], nn.Module],
        seed: int,
    ) -> None:
        self.attacks = _attacks(attack, training) if attacked_images else {}
        self.attacked_images = attacked_images
        self.probe = Probe(eps=Pixels(attack.radius)) if attack.perturbs and attack.radius else None
        self.probed_images = min(probed_images, attacked_images)
        self.attacked = attacked
        self.seed = seed
        self._correct: dict[str, list[Tensor]] = {}

    def step(self, batch: Batch, first: int) -> None:
        """Classify and attack a batch.

        Args:
            batch: the images.
            first: place of the first of them among all validation images.
        """
        x, y, index = batch
        if not len(y):
            return
        network = self.attacked(x)
        n = min(len(y), self.attacked_images - first)
        with in_float32(x.device):
            self._note("clean", network(x).argmax(1) == y)
            key = image_keys(index[: max(0, n)], seed=self.seed, purpose="validation")
            for name, attack in self.attacks.items() if n > 0 else ():
                x_adv = attack(network, x[:n], y[:n], key=key)
                right = network(x_adv).argmax(1) == y[:n]
                self._note(name, right)
                if name == "robust" and first < self.probed_images:
                    self._look(network, x, y, key, right, self.probed_images - first)

    def _look(
        self, network: nn.Module, x: Tensor, y: Tensor, key: Tensor, right: Tensor, n: int
    ) -> None:
        """Probe those of the first images that the validation attack left."""
        if self.probe is None:
            return
        left = right[:n].clone()
        (place,) = left.nonzero(as_tuple=True)
        left[place] = ~self.probe.fools(
            network, x[place], y[place], key=key[place], batch_size=len(x)
        )
        self._note("probe", left)
        self._note(PROBED, right[:n])

    def _note(self, name: str, correct: Tensor) -> None:
        self._correct.setdefault(name, []).append(correct)

    @torch.no_grad()
    def all_of(self, batches: Batches | list[Batches], device: torch.device) -> Counts:
        """Step through all of this rank's batches, and count; an empty list holds none."""
        if isinstance(batches, Batches):
            for i, batch in enumerate(batches):
                self.step(Batch(*(tensor.to(device) for tensor in batch)), batches.first(i))
        return self.counts()

    def counts(self) -> Counts:
        """Count what was seen on all ranks; a rank may lack names that others have.

        "probed" are those of the probe's images that are right under the validation attack.
        """
        counts: dict[str, tuple[int, int]] = {}
        own = {name: _count(parts) for name, parts in self._correct.items()}
        for part in gather(own):
            for name, (right, images) in part.items():
                before = counts.get(name, (0, 0))
                counts[name] = (before[0] + right, before[1] + images)
        return counts


def describe_overfitting(counts: Counts, epoch: int) -> str | None:
    """A warning where training against one step has taught to resist but that.

    Args:
        counts: of a validation.
        epoch: its number, from 1.
    """
    robust = counts.get("many_steps", counts.get("robust"))
    one_step = counts.get("one_step")
    if robust is None or one_step is None or not overfits_to_one_step(robust[0], one_step[0]):
        return None
    return (
        f"catastrophic overfitting: in epoch {epoch}, of the validation images attacked, "
        f"{one_step[0]} are classified right under the training's one step and {robust[0]} under "
        "PGD"
    )


def describe_masking(counts: Counts, epoch: int) -> str | None:
    """A warning where the validation attack leaves far more than the probe does.

    Args:
        counts: of a validation.
        epoch: its number, from 1.
    """
    if not masks_gradients(counts):
        return None
    (left, images), (robust, _) = counts["probe"], counts[PROBED]
    return (
        f"gradients are masked: in epoch {epoch}, {robust} of {images} validation images are "
        f"right under the validation attack, but {left} after short attacks of other kinds; "
        "AutoAttack may leave far less"
    )


def masks_gradients(counts: Counts) -> bool:
    """Whether a short probe finds much that the validation attack does not."""
    if "probe" not in counts:
        return False
    left, images = counts["probe"]
    return counts[PROBED][0] - left > max(3, MASKED * images)


DESCRIPTIONS = (describe_overfitting, describe_masking)
"""What a validation may have to be warned of; each is told once in a phase."""


def _attacks(attack: Attack, training: Attack) -> dict[str, Attack]:
    attacks = {"robust": attack} if attack.perturbs else {}
    if training.is_one_step:
        eps = training.radius or 0.0
        attacks["one_step"] = training if training.stays_in_ball else FGSM(eps=Pixels(eps))
        if attack.gradient_steps < 2 or attack.radius != eps:
            attacks["many_steps"] = PGD(eps=Pixels(eps), step_size=Pixels(eps / 4), steps=10)
    return attacks


def _count(parts: Sequence[Tensor]) -> tuple[int, int]:
    """Trues, and all, of bool tensors (B,)."""
    return int(torch.cat([*parts]).sum()), sum(map(len, parts))
