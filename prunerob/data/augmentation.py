"""Augmentation of training images: a whole batch at once, as a function of keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunerob.errors import UserError
from prunerob.noise import uniform


@dataclass(frozen=True)
class Augmentation(ABC):
    """How training images are varied from epoch to epoch."""

    @abstractmethod
    def prepare(self, pixels: Tensor) -> Tensor:
        """Lay out all images once, so that a batch is quickly taken from them.

        Args:
            pixels: uint8, (N, C, H, W).

        Returns:
            what `take` takes from, on the same device.
        """

    @abstractmethod
    def take(self, prepared: Tensor, index: Tensor, key: Tensor) -> Tensor:
        """Take a batch.

        Args:
            prepared: by `prepare`.
            index: positions of the images, int64, (B,).
            key: int64, (B,), of each image in this epoch.

        Returns:
            pixels, uint8, (B, C, H, W).
        """


@dataclass(frozen=True)
class NoAugmentation(Augmentation):
    """Training images as they are."""

    def prepare(self, pixels: Tensor) -> Tensor:
        """Lay out images; see `Augmentation.prepare`."""
        return pixels

    def take(self, prepared: Tensor, index: Tensor, key: Tensor) -> Tensor:
        """Take a batch; see `Augmentation.take`."""
        return prepared[index]


@dataclass(frozen=True, kw_only=True)
class CropAndFlip(Augmentation):
    """Random crops of the padded image, and its mirror image every other time.

    The usual augmentation of CIFAR-10 (He et al., arXiv:1512.03385), with the border mirrored
    rather than black (Zagoruyko and Komodakis, arXiv:1605.07146).

    Args:
        padding: pixels added on each side before the crop, mirrored at the border.
        flip: mirror half of the images from left to right.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding of CropAndFlip: {self.padding} is below 0")

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pad, and view all crops of all images: uint8, (N, C, rows, columns, H, W)."""
        height, width = pixels.shape[2:]
        if self.padding >= min(height, width):
            raise UserError(
                f"padding of CropAndFlip: {self.padding} pixels cannot be mirrored in images of "
                f"{width}x{height}"
            )
        padded = F.pad(pixels, (self.padding,) * 4, mode="reflect")
        return padded.unfold(2, height, 1).unfold(3, width, 1)

    def take(self, prepared: Tensor, index: Tensor, key: Tensor) -> Tensor:
        """Take a batch: one gather, whose copy is the crop."""
        drawn = uniform(key, (3,))
        rows, columns = (drawn[:, :2] * (2 * self.padding + 1)).long().unbind(1)
        pixels = prepared[index, :, rows, columns]
        if self.flip:
            mirrored = (drawn[:, 2] < 0.5).view(-1, 1, 1, 1)
            pixels = torch.where(mirrored, pixels.flip(3), pixels)
        return pixels
