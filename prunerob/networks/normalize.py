"""Normalisation of pixels, a network's own first layer: nothing outside ever normalises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """Subtracts each colour's mean and divides by its standard deviation.

    Args:
        mean: of each colour, in pixel units of [0, 1].
        std: standard deviation of each colour, in the same units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} do not belong together")
        # Settings, not weights: they stand in the configuration, not in the checkpoint.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images, float, (B, C, H, W).

        Raises:
            ValueError: the images have another number of channels.
        """
        if x.shape[1] != len(self.mean):
            raise ValueError(f"images have {x.shape[1]} channels, mean and std {len(self.mean)}")
        return (x - self.mean) / self.std
