"""Whether an artefact answers as the network that it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunerob.artefacts.format import Answers
from prunerob.networks.modes import evaluating

TOLERANCE = 1e-3
"""By which a logit may differ, in parts of the largest one; what float32 sums in another order."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two agree on some images.

    Args:
        images: number of images.
        same: those that both put into the same class.
        difference: the largest of a logit.
        largest: the largest logit.
    """

    images: int
    same: int
    difference: float
    largest: float

    @property
    def holds(self) -> bool:
        """Whether they are the same but for rounding."""
        return self.same == self.images and self.difference <= TOLERANCE * max(1.0, self.largest)

    def __str__(self) -> str:
        return (
            f"{self.same:,} of {self.images:,} images in the same class, largest difference of a "
            f"logit {self.difference:.1e}"
        )


@torch.no_grad()
def compare(network: nn.Module, answers: Answers, x: Tensor, *, batch_size: int = 250) -> Agreement:
    """Ask both about the same images.

    Args:
        network: from pixels in [0, 1] to logits, on the CPU.
        answers: of the artefact.
        x: images, float32, (N, C, H, W), pixels in [0, 1].
        batch_size: images at once; the last batch may be of another size.
    """
    with evaluating(network):
        parts = torch.split(x, batch_size)
        ours = torch.cat([network(part) for part in parts]).float()
    theirs = torch.cat([answers(part) for part in parts]).float()
    if theirs.shape != ours.shape:
        return Agreement(images=len(x), same=0, difference=float("inf"), largest=0.0)
    return Agreement(
        images=len(x),
        same=int((ours.argmax(1) == theirs.argmax(1)).sum()),
        difference=float((ours - theirs).abs().max()),
        largest=float(ours.abs().max()),
    )
