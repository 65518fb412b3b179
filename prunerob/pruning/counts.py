"""Counts: how much masks prune, of the whole network and layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunerob.pruning.masks import Masks
from prunerob.pruning.scores import Scores, scores_filters


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much is pruned, in [0, 1], by the three readings of `prunerob.pruning.masks`."""

    filters: float
    weights: float
    parameters: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer's parameters (weights and bias) and output channels, before and after pruning."""

    name: str
    parameters_before: int
    parameters_after: int
    channels_before: int
    channels_after: int

    @property
    def share_pruned(self) -> float:
        """Share of the layer's parameters that are pruned, in [0, 1]."""
        return 1 - self.parameters_after / self.parameters_before

    @property
    def is_normalisation(self) -> bool:
        """Whether it has but a factor and a term for each channel."""
        return self.parameters_before <= 2 * self.channels_before

    @property
    def has_nearly_vanished(self) -> bool:
        """Whether under 1 % of its parameters are left, or under a tenth of its channels.

        Never of a normalisation, whose channels are those of a convolution.
        """
        return not self.is_normalisation and (
            self.share_pruned > 0.99 or self.channels_after < 0.1 * self.channels_before
        )


def count_shares(network: nn.Module, masks: Masks, scores: Scores) -> Shares:
    """The share pruned by each of the three readings.

    Args:
        network: the network, before or after.
        masks: its masks.
        scores: what was ranked; only names and shapes are read.
    """
    # A convolution may be unmasked: where nothing of it was ranked, or read by what was.
    convolutions = [
        masks.get(f"{name}.weight", torch.ones_like(weight, dtype=torch.bool)).flatten(1)
        for name, weight in _convolutions(network)
    ]
    gone = [~mask.any(1) for mask in convolutions]
    if scores_filters(scores):
        # A weight that stays in its filter but reads a silent channel does not count here.
        weights = [g[:, None].expand_as(m) for g, m in zip(gone, convolutions, strict=True)]
    else:
        weights = [~masks[name] for name in scores]
    masked = sum(int((~mask).sum()) for mask in masks.values())
    return Shares(
        filters=_share(gone),
        weights=_share(weights),
        parameters=masked / sum(p.numel() for p in network.parameters()),
    )


def _convolutions(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield name, module.weight


def _share(marks: list[Tensor]) -> float:
    total = sum(mark.numel() for mark in marks)
    return sum(int(mark.sum()) for mark in marks) / total if total else 0.0


def count_layers(network: nn.Module, masks: Masks) -> list[Layer]:
    """Parameters and channels of each layer that has weights of its own, before and after."""
    layers = []
    for name, module in network.named_modules():
        parameters = dict(module.named_parameters(prefix=name, recurse=False))
        if not parameters:
            continue
        mask = masks.get(f"{name}.weight" if name else "weight")
        channels = next(iter(parameters.values())).shape[0]
        before = sum(p.numel() for p in parameters.values())
        pruned = sum(int((~masks[n]).sum()) for n in parameters if n in masks)
        layers.append(
            Layer(
                name=name,
                parameters_before=before,
                parameters_after=before - pruned,
                channels_before=channels,
                channels_after=channels
                if mask is None
                else int(mask.view(len(mask), -1).any(1).sum()),
            )
        )
    return layers


def count_pruned(masks: Masks) -> int:
    """Number of parameters that masks prune."""
    return sum(int((~mask).sum()) for mask in masks.values())
