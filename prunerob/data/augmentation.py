"""Augmentation of training images: a whole batch at once, as a function of keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

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

    def at(self, epoch: int) -> Augmentation:
        """What to take batches of an epoch with, counted from 0, of what this one has prepared."""
        return self


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


@dataclass(frozen=True, kw_only=True)
class ProgressiveResizing(Augmentation):
    """Small images first, full ones last: training that costs less.

    Early epochs learn as much from images of half the side, which cost a quarter (Howard, for
    DAWNBench, 2018; Tan and Le, arXiv:2104.00298). A training attack sees the small images as they
    are, with its eps unchanged. Validation and test see full ones, so a network is judged fairly
    only after some epochs at full size.

    Args:
        augmentation: of the full images, before they are made small.
        sizes: shorter side of the images, in pixels, one phase after the other.
        until: the epoch, counted from 0 over the whole run, before which each of the sizes ends;
            from the last on, images are full. Epochs of fine-tuning count on.
    """

    augmentation: Augmentation = NoAugmentation()
    sizes: tuple[int, ...] = (16, 24)
    until: tuple[int, ...] = (6, 10)

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes of ProgressiveResizing: {self.sizes} are not 1 or more")
        rising = all(a < b for a, b in pairwise((0, *self.until)))
        if len(self.until) != len(self.sizes) or not rising:
            raise ValueError(
                f"until of ProgressiveResizing: {self.until} are not epochs from 1, rising, one "
                f"for each of the sizes {self.sizes}"
            )

    def prepare(self, pixels: Tensor) -> Tensor:
        """Lay out full images; see `Augmentation.prepare`."""
        height, width = pixels.shape[2:]
        if max(self.sizes) > min(height, width):
            raise UserError(
                f"sizes of ProgressiveResizing: {max(self.sizes)} pixels are more than images of "
                f"{width}x{height} have"
            )
        return self.augmentation.prepare(pixels)

    def take(self, prepared: Tensor, index: Tensor, key: Tensor) -> Tensor:
        """Take a batch of full images; see `Augmentation.take`."""
        return self.augmentation.take(prepared, index, key)

    def at(self, epoch: int) -> Augmentation:
        """The augmentation with the size of an epoch."""
        full, phase = self.augmentation.at(epoch), bisect_right(self.until, epoch)
        return _Resized(full, self.sizes[phase]) if phase < len(self.sizes) else full


@dataclass(frozen=True)
class _Resized(Augmentation):
    """Another augmentation's images, made smaller: the shorter side, in pixels, is `size`."""

    augmentation: Augmentation
    size: int

    def prepare(self, pixels: Tensor) -> Tensor:
        return self.augmentation.prepare(pixels)

    def take(self, prepared: Tensor, index: Tensor, key: Tensor) -> Tensor:
        pixels = self.augmentation.take(prepared, index, key)
        shape = [round(self.size * side / min(pixels.shape[2:])) for side in pixels.shape[2:]]
        if shape == list(pixels.shape[2:]):
            return pixels
        # In float32, which all devices resize.
        small = F.interpolate(pixels.float(), shape, mode="bilinear", antialias=True)
        return small.round_().to(torch.uint8)
