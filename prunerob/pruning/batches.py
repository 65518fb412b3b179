"""What criteria may ask for: the run's training batches, clean and attacked, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from inspect import signature
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn

from prunerob.data.images import ImageDataModule
from prunerob.noise import image_keys
from prunerob.pruning.masks import Masks
from prunerob.pruning.scores import Criterion, Scores
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class ScoringBatches:
    """Training batches of a run: its images, its augmentation and its training attack.

    Whole batches, the same on every rank, so that all ranks come to the same scores. Order,
    augmentation and noise are functions of the seed and the epoch.

    Args:
        data: serves the training images.
        training: perturbs them; with its full eps, wherever its ramp may be.
        seed: of the noise.
        epoch: of the run, in which it prunes.
        device: where to.
    """

    data: ImageDataModule
    training: AdversarialTraining
    seed: int
    epoch: int
    device: torch.device

    @classmethod
    def of(cls, module: Classifier) -> ScoringBatches:
        """Those of a run in its present epoch."""
        return cls(
            data=module.datamodule,
            training=module.adversarial_training,
            seed=module.seed,
            epoch=module.current_epoch,
            device=module.device,
        )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.data.train_dataloader())

    def epoch_against(
        self, network: nn.Module, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of one epoch, attacked as they are asked for.

        Args:
            network: to attack, in the state that it has at each batch; left as it was found.
            epoch: number of epochs that were asked for before.

        Yields:
            images x, float32, (B, C, H, W), pixels in [0, 1]; adversarial examples of them, alike,
            which are the images where the run trains on those alone; labels, int64, (B,).
        """
        now = self.epoch + epoch
        batches = self.data.train_dataloader()
        batches.rank, batches.ranks, batches.epoch = 0, 1, lambda: now
        for batch in batches:
            x, y, index = (tensor.to(self.device) for tensor in batch)
            key = image_keys(index, seed=self.seed, purpose="scoring", epoch=now)
            yield x, self.training.perturb(network, x, y, key=key), y

    def against(self, network: nn.Module, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """So many batches, of as many epochs as it takes; see `epoch_against`.

        Args:
            network: to attack.
            number: of batches.
        """
        epochs = (self.epoch_against(network, epoch) for epoch in count())
        return islice((batch for epoch in epochs for batch in epoch), number)


@dataclass(frozen=True, kw_only=True)
class Offers:
    """What a criterion may ask for, each by a keyword parameter of the same name.

    Args:
        batches: training batches.
        masks: makes of scores of what may go the masks that the run's settings stand for.
        amount: share to prune, in [0, 1).
        names: of the weights of the layers that may go.
    """

    batches: ScoringBatches
    masks: Callable[[Scores], Masks]
    amount: float
    names: Collection[str]

    def to(self, criterion: Criterion) -> dict[str, Any]:
        """Those that a criterion asks for, by name."""
        return {name: getattr(self, name) for name in asks(criterion)}


def asks(criterion: Criterion) -> list[str]:
    """Which of the `Offers` a criterion asks for, as its signature says."""
    try:
        parameters = signature(criterion).parameters
    except (TypeError, ValueError):  # of a function that has none to read
        return []
    return [field.name for field in fields(Offers) if field.name in parameters]
