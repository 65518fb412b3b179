"""Validation: accuracies on held-out images, clean and attacked, and the probe for overfitting.

Accuracies have names: "clean"; "robust", under the validation attack; and, if the training attack
takes a single step, "one_step" under that (under FGSM, where it leaves the ball) and "many_steps"
under PGD in the same ball (where the validation attack is not that already).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunerob.attacks import FGSM, PGD, Attack
from prunerob.data.batches import Batch, Batches
from prunerob.noise import image_keys
from prunerob.pixels import Pixels
from prunerob.robustness.diagnostics import overfits_to_one_step
from prunerob.robustness.measure import in_float32
from prunerob.runs.ranks import gather

Counts = Mapping[str, tuple[int, int]]
"""Images classified right, and images, over all ranks, by name."""


class Validation:
    """Counts validation images that are classified right.

    Args:
        attack: of validation.
        training: the attack of training.
        attacked_images: number of validation images to attack, the first ones; 0 for none.
        attacked: gives the network to attack, by some images.
        seed: of the attacks' noise.
    """

    def __init__(
        self,
        attack: Attack,
        training: Attack,
        *,
        attacked_images: int,
        attacked: Callable[[Tensor], nn.Module],
        seed: int,
    ) -> None:
        self.attacks = _attacks(attack, training) if attacked_images else {}
        self.attacked_images = attacked_images
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
                self._note(name, network(x_adv).argmax(1) == y[:n])

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
        """Count what was seen on all ranks; a rank may lack names that others have."""
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
