"""Learned scores: what to prune is found by training which weights are on, not the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from prunerob.pruning.batches import ScoringBatches
from prunerob.pruning.gates import Gated
from prunerob.pruning.masks import Masks
from prunerob.pruning.scores import Scores, Unit


@dataclass(frozen=True, kw_only=True)
class Hydra:
    """Learned scores of weights, HYDRA (Sehwag et al., arXiv:2002.10509).

    The weights are frozen; each is on while the magnitude of its score s is among those that the
    run's amount, budget and floors keep. The adversarial cross-entropy teaches the scores through
    the step that decides (a straight-through gradient): dL/ds = sign(s) w dL/d(w on), also for
    what is off. They begin at sqrt(6 / fan_in) w / max|w| of the layer. The paper keeps the same
    share of every layer: `pruning.budget` "uniform" comes near.

    Args:
        epochs: passes over the training images; the paper takes 20 on CIFAR-10.
        lr: rate of SGD, which falls to 0 along a cosine.
        momentum: of SGD.
        weight_decay: of SGD, on the scores.
    """

    unit: ClassVar[Unit] = "weights"

    epochs: int = 5
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_learning(self.epochs, self.lr, self.momentum, self.weight_decay, name)

    def __call__(
        self,
        network: nn.Module,
        seed: int,
        *,
        batches: ScoringBatches,
        masks: Callable[[Scores], Masks],
        names: Collection[str],
    ) -> Scores:
        """Learn scores.

        Args:
            network: left as it was found, statistics included.
            seed: of what layers like dropout draw.
            batches: training batches; they are attacked with what is off switched off.
            masks: makes of scores what the run would prune.
            names: of the weights of the layers that may go.

        Returns:
            magnitudes of the scores, float, in each weight's shape or (filters,).
        """
        gated = Gated(network, self.unit, names)
        scores = initial_scores(gated)

        def gates() -> dict[str, Tensor]:
            return gated.gates(masks({name: score.abs() for name, score in scores.items()}))

        def teach(gradients: Mapping[str, Tensor], epoch: int) -> None:
            for name, score in scores.items():
                score.grad = straight_through(score, gradients[name])

        optimizer = SGD(scores.values(), self.lr, self.momentum, weight_decay=self.weight_decay)
        learn(gated, optimizer, self.epochs, seed, batches, gates=gates, teach=teach)
        return {name: score.abs() for name, score in scores.items()}


@dataclass(frozen=True, kw_only=True)
class FilterHydra(Hydra):
    """Learned scores of filters: HYDRA with a score for each filter.

    Those begin at the layer's sqrt(6 / fan_in) m / max m, m the mean magnitude of the filter's
    weights. See `Hydra`.

    Args:
        epochs: passes over the training images.
        lr: rate of SGD, which falls to 0 along a cosine.
        momentum: of SGD.
        weight_decay: of SGD, on the scores.
    """

    unit: ClassVar[Unit] = "filters"


def initial_scores(gated: Gated) -> dict[str, Tensor]:
    """Scores to begin with: sqrt(6 / fan_in) w / max|w| of each layer; of filters, of their means.

    Args:
        gated: whose weights, or filters, are scored.

    Returns:
        scores, float, in each weight's shape or (filters,).
    """
    scores = {}
    for name, weight in gated.weights.items():
        value = weight if gated.unit == "weights" else weight.abs().flatten(1).mean(1)
        # In a layer of zeros all scores are 0.
        largest = value.abs().max().clamp(min=torch.finfo(value.dtype).tiny)
        scores[name] = math.sqrt(6 / weight[0].numel()) * value / largest
    return scores


def straight_through(score: Tensor, gradient: Tensor) -> Tensor:
    """The gradient by a score, of which the magnitude decides whether its gate is on.

    Args:
        score: any shape.
        gradient: by its gate, in the same shape.
    """
    return score.sign() * gradient


def learn(
    gated: Gated,
    optimizer: SGD,
    epochs: int,
    seed: int,
    batches: ScoringBatches,
    *,
    gates: Callable[[], dict[str, Tensor]],
    teach: Callable[[Mapping[str, Tensor], int], None],
) -> None:
    """Train what decides which gates are on, under the adversarial cross-entropy.

    Args:
        gated: the network with gates.
        optimizer: of what decides.
        epochs: passes over the training images; the rate falls to 0 over them along a cosine.
        seed: of what layers draw.
        batches: training batches.
        gates: says what is on now.
        teach: takes the gradients by the gates, in the epoch from 0, to what decides.
    """
    total = epochs * len(batches)
    schedule = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / total)) / 2)
    with own_random_state(seed, batches):
        on = gates()
        gated.switch(on)
        for epoch in range(epochs):
            for _, x_adv, y in batches.epoch_against(gated.network, epoch):
                teach(gated.gradients(on, x_adv, y), epoch)
                optimizer.step()
                schedule.step()
                on = gates()
                gated.switch(on)


@contextmanager
def own_random_state(seed: int, batches: ScoringBatches) -> Iterator[None]:
    """What layers like dropout draw here is a function of the seed and the epoch, and no other's.

    Args:
        seed: of the run.
        batches: know the epoch and the device.
    """
    devices = [batches.device] if batches.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        words = np.random.SeedSequence([seed, batches.epoch]).generate_state(1)
        torch.manual_seed(int(words[0]))
        yield


def check_learning(epochs: int, lr: float, momentum: float, weight_decay: float, name: str) -> None:
    """See that settings of learning can be.

    Raises:
        ValueError: they cannot.
    """
    if epochs < 1:
        raise ValueError(f"epochs of {name}: {epochs} is below 1")
    if lr <= 0:
        raise ValueError(f"lr of {name}: {lr} is not above 0")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum of {name}: {momentum} lies outside [0, 1)")
    if weight_decay < 0:
        raise ValueError(f"weight_decay of {name}: {weight_decay} is below 0")
