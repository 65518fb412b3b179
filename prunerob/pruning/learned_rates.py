"""Learned rates: how much of each layer stays is learned along with what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import SGD

from prunerob.pruning.batches import ScoringBatches
from prunerob.pruning.budgets import erk
from prunerob.pruning.gates import Gated
from prunerob.pruning.learned_scores import check_learning, initial_scores, learn, straight_through
from prunerob.pruning.magnitude import lamp
from prunerob.pruning.masks import lowest, prune_weights
from prunerob.pruning.scores import Scores, Unit


@dataclass(frozen=True, kw_only=True)
class Harp:
    """Learned scores and a learned rate for each layer, HARP (Zhao and Wressnegger, ICLR 2023).

    As `prunerob.pruning.Hydra`, but a layer keeps the share k = k_min + (1 - k_min) sigmoid(r) of
    its weights, by the magnitude of their scores, with r learned along: the gradient by k is the
    sum of those by the layer's gates. k_min is a tenth of the share that is to stay. The loss is
    the adversarial cross-entropy + gamma (epoch + 1) max(kept / to be kept - 1, 0), whose factor
    grows until no more is kept than should be, and from then on stays as it is. The paper takes a
    gamma of 0.01 and 20 epochs; fewer epochs need more of it.

    The scores that come out hold the rates: within a layer they order the weights, and between
    layers one threshold takes of each what it does not keep. So `pruning.budget` is to be global.

    Args:
        start: share that layers keep at first, over the share that is to stay; above 1. It is at
            most half way between that share and all.
        gamma: what the weight of keeping too much grows by in each epoch.
        shares: at first: the same for each layer, by "erk", or as "lamp" would prune it.
        epochs: passes over the training images; the paper takes 20 on CIFAR-10.
        lr: rate of SGD, which falls to 0 along a cosine.
        momentum: of SGD.
        weight_decay: of SGD, on the scores.
    """

    unit: ClassVar[Unit] = "weights"

    start: float = 2.0
    gamma: float = 0.1
    shares: Literal["uniform", "erk", "lamp"] = "uniform"
    epochs: int = 5
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_learning(self.epochs, self.lr, self.momentum, self.weight_decay, name)
        if self.start <= 1:
            raise ValueError(f"start of {type(self).__name__}: {self.start} is not above 1")
        if self.gamma <= 0:
            raise ValueError(f"gamma of {type(self).__name__}: {self.gamma} is not above 0")

    def __call__(
        self,
        network: nn.Module,
        seed: int,
        *,
        batches: ScoringBatches,
        amount: float,
        names: Collection[str],
    ) -> Scores:
        """Learn scores and rates.

        Args:
            network: left as it was found, statistics included.
            seed: of what layers like dropout draw.
            batches: training batches; they are attacked with what is off switched off.
            amount: share to prune, in [0, 1).
            names: of the weights of the layers that may go.

        Returns:
            scores, float64, on the CPU, in each weight's shape or (filters,): 1 or more for what a
            layer keeps.
        """
        gated = Gated(network, self.unit, names)
        scores = initial_scores(gated)
        sizes = {name: weight.numel() for name, weight in gated.weights.items()}
        most = 1 - amount / 2
        first = self._first_shares(network, gated.weights, min(most, self.start * (1 - amount)))
        rates = Rates(sizes, kept=1 - amount, first=first, step=self.gamma)

        def gates() -> dict[str, Tensor]:
            counts = rates.counts({name: score.numel() for name, score in scores.items()})
            return {name: best(score, counts[name]) for name, score in scores.items()}

        def teach(gradients: Mapping[str, Tensor], epoch: int) -> None:
            for name, score in scores.items():
                score.grad = straight_through(score, gradients[name])
            rates.teach({name: gradient.sum() for name, gradient in gradients.items()}, epoch)

        groups = [
            {"params": list(scores.values()), "weight_decay": self.weight_decay},
            {"params": list(rates.values.values()), "weight_decay": 0.0},
        ]
        optimizer = SGD(groups, self.lr, self.momentum)
        learn(gated, optimizer, self.epochs, seed, batches, gates=gates, teach=teach)
        if (excess := float(rates.excess().detach())) > 0.05:
            rank_zero_warn(
                f"{type(self).__name__}: the rates that it learned keep {1 + excess:.2f} times "
                "what is to stay; every layer gives up as much more. More epochs, or a larger "
                "gamma, would learn it"
            )
        counts = rates.counts({name: score.numel() for name, score in scores.items()})
        return {name: relative_rank(score.abs(), counts[name]) for name, score in scores.items()}

    def _first_shares(
        self, network: nn.Module, weights: Mapping[str, Tensor], kept: float
    ) -> dict[str, float]:
        """The share that each layer keeps at first, of all together as given."""
        if self.shares == "erk":
            return {name: 1 - gone for name, gone in erk(weights, 1 - kept).items()}
        if self.shares == "lamp":
            scores = {n: s for n, s in lamp(network, 0).items() if n in weights}
            masks = prune_weights(scores, 1 - kept)
            return {name: float(mask.float().mean()) for name, mask in masks.items()}
        return dict.fromkeys(weights, kept)


@dataclass(frozen=True, kw_only=True)
class FilterHarp(Harp):
    """Learned scores of filters, and a learned rate for each layer; see `Harp`.

    A layer keeps its share of its filters, one at least; what is kept in all is counted in weights.

    Args:
        start: share that layers keep at first, over the share that is to stay; above 1. It is at
            most half way between that share and all.
        gamma: what the weight of keeping too much grows by in each epoch.
        shares: at first: the same for each layer, by "erk", or as "lamp" would prune it.
        epochs: passes over the training images.
        lr: rate of SGD, which falls to 0 along a cosine.
        momentum: of SGD.
        weight_decay: of SGD, on the scores.
    """

    unit: ClassVar[Unit] = "filters"


class Rates:
    """The shares that layers keep, as they are learned.

    Args:
        sizes: number of weights of each layer, by parameter name.
        kept: share of all that is to stay, in (0, 1].
        first: share of each layer to begin with.
        step: what the weight of keeping too much grows by in each epoch.
    """

    def __init__(
        self, sizes: Mapping[str, int], *, kept: float, first: Mapping[str, float], step: float
    ) -> None:
        self.least = kept / 10
        """Share that every layer keeps at least, k_min."""
        self.weight = 0.0
        """Of the excess in the loss, in the latest step."""
        self._step = step
        self._is_met = False
        self._kept = kept
        total = sum(sizes.values())
        self._parts = {name: size / total for name, size in sizes.items()}
        self.values = {name: self._rate(share) for name, share in first.items()}
        """The rates r, from which the shares follow."""

    def _rate(self, share: float) -> Tensor:
        # Away from 0 and 1, where a sigmoid has no gradient.
        inner = min(0.99, max(0.01, (share - self.least) / (1 - self.least)))
        return torch.tensor(inner).logit().requires_grad_()

    def shares(self) -> dict[str, Tensor]:
        """The share that each layer keeps: k_min + (1 - k_min) sigmoid(r)."""
        return {n: self.least + (1 - self.least) * r.sigmoid() for n, r in self.values.items()}

    def counts(self, entries: Mapping[str, int]) -> dict[str, int]:
        """How many of each layer's weights, or filters, stay: one at least."""
        shares = self.shares()
        return {
            name: max(1, round(float(shares[name].detach()) * n)) for name, n in entries.items()
        }

    def excess(self) -> Tensor:
        """By how much more is kept than should be: max(kept / to be kept - 1, 0)."""
        shares = self.shares()
        kept = torch.stack([part * shares[name] for name, part in self._parts.items()]).sum()
        return (kept / self._kept - 1).clamp(min=0)

    def teach(self, gradients: Mapping[str, Tensor], epoch: int) -> None:
        """Give the rates their gradients.

        Args:
            gradients: of the cross-entropy by each layer's share: the sum of those by its gates.
            epoch: of learning, from 0.
        """
        excess = self.excess()
        self._is_met = self._is_met or float(excess.detach()) == 0
        if not self._is_met:
            self.weight = self._step * (epoch + 1)
        shares = self.shares()
        linear = torch.stack([shares[n] * g.detach().cpu() for n, g in gradients.items()]).sum()
        loss = linear + self.weight * excess
        for rate, gradient in zip(
            self.values.values(), torch.autograd.grad(loss, list(self.values.values())), strict=True
        ):
            rate.grad = gradient


def best(score: Tensor, count: int) -> Tensor:
    """Gates that are 1 for the largest magnitudes: float, in the score's shape."""
    off = lowest(score.abs().flatten().cpu(), score.numel() - count)
    return (~off).to(score.device, score.dtype).view(score.shape)


def relative_rank(score: Tensor, count: int) -> Tensor:
    """How many stay, over an entry's rank from the best, 1: 1 or more for what stays.

    Args:
        score: the best is the largest.
        count: how many stay.

    Returns:
        float64, on the CPU, in the score's shape.
    """
    order = score.flatten().cpu().argsort(stable=True)
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(len(order), 0, -1, dtype=torch.float64)
    return (count / ranks).view(score.shape)
