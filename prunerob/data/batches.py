"""Labelled images in memory, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunerob.data.augmentation import Augmentation, NoAugmentation
from prunerob.errors import UserError
from prunerob.noise import image_keys


class Batch(NamedTuple):
    """One batch.

    Attributes:
        x: images, float32, (B, C, H, W), pixels in [0, 1].
        y: labels, int64, (B,); -1 where there is none.
        indices: position of each image in its data set, int64, (B,).
    """

    x: Tensor
    y: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Images:
    """Labelled images: pixels uint8, (N, C, H, W), and labels int64, (N,)."""

    pixels: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Images:
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


def check_form(images: Images, name: str) -> None:
    """See that images are as `Images` has them: other pixels would be scaled wrongly, silently.

    Raises:
        UserError: they are not.
    """
    pixels, labels = images.pixels, images.labels
    for what, tensor, dtype, shape in (
        ("pixels", pixels, torch.uint8, ("N", "C", "H", "W")),
        ("labels", labels, torch.int64, ("N",)),
    ):
        if tensor.dtype != dtype or tensor.dim() != len(shape):
            raise UserError(
                f"{name} have {what} of {tensor.dtype}, {tuple(tensor.shape)}, and should have "
                f"{dtype}, ({', '.join(shape)})"
            )
    if len(pixels) != len(labels) or not len(labels):
        raise UserError(f"{name} are {len(pixels)}, their labels {len(labels)}")
    if int(labels.min()) < 0:
        raise UserError(f"{name} have a label below 0; classes count from 0")


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A random order of images in which every prefix holds the classes in their proportions.

    Args:
        labels: int64, (N,).
        seed: of the draw.

    Returns:
        positions, int64, (N,).
    """
    labels = labels.cpu()
    generator = np.random.default_rng(seed)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.from_numpy(generator.permutation(len(members)))]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return place.argsort(stable=True)


class Batches:
    """Batches of chosen images, in order or shuffled anew each epoch.

    A batch is one gather from a tensor in memory, not a Python call per image. The order of an
    epoch is a function of (seed, epoch) alone, so a resumed run sees the order it would have seen.

    Where several ranks run together, each is served its part: of shuffled batches, which train,
    every rank gets as many images of each; batches in order, which evaluate, are dealt out whole,
    so that each is attacked as it would be on one device. A rank for which there is none gets an
    empty one.

    Args:
        images: what to choose from.
        index: positions of the images to serve, int64, (n,).
        size: images per batch, over all ranks; the last may be smaller.
        shuffle_seed: shuffle by this seed; None serves in the order of `index`.
        epoch: says which epoch it is.
        augmentation: of the images, by the same seed.
        rank: whose part to serve, from 0.
        ranks: how many run together.
    """

    def __init__(
        self,
        images: Images,
        index: Tensor,
        *,
        size: int,
        shuffle_seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        augmentation: Augmentation = NoAugmentation(),
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.images = images
        self.index = index
        self.augmentation = augmentation
        self._prepared: Tensor | None = None
        self.size = size
        self.shuffle_seed = shuffle_seed
        self.epoch = epoch
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        """Number of this rank's batches."""
        batches = -(-len(self.index) // self.size)
        if self.shuffle_seed is None:
            batches = max(1, len(range(self.rank, batches, self.ranks)))
        return batches

    def first(self, batch: int) -> int:
        """Place of the first image of one of this rank's batches among all images served."""
        if self.shuffle_seed is None:
            batch = batch * self.ranks + self.rank
        return batch * self.size

    def weight(self, batch: int) -> float:
        """This rank's share of the images of a training batch, times the number of ranks.

        The mean over ranks of their losses, times this, is the mean over the whole batch's images.
        """
        images = min(self.size, len(self.index) - self.first(batch))
        return len(range(self.rank, images, self.ranks)) * self.ranks / images

    def __iter__(self) -> Iterator[Batch]:
        index, seed, epoch = self.index, self.shuffle_seed or 0, self.epoch()
        if self.shuffle_seed is not None:
            generator = np.random.default_rng([self.shuffle_seed, epoch])
            index = index[torch.from_numpy(generator.permutation(len(index)))]
        if self._prepared is None:
            self._prepared = self.augmentation.prepare(self.images.pixels)
        index = index.to(self.images.pixels.device)
        keys = image_keys(index, seed=seed, purpose="augmentation", epoch=epoch)
        augmentation = self.augmentation.at(epoch)
        batches = list(
            zip(torch.split(index, self.size), torch.split(keys, self.size), strict=True)
        )
        for chosen, key in self._part(batches):
            pixels = augmentation.take(self._prepared, chosen, key)
            yield Batch(pixels.float().div_(255), self.images.labels[chosen], chosen)

    def _part(self, batches: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """What this rank gets of all batches: an index and keys for each of its own."""
        if self.shuffle_seed is None:
            index, keys = batches[0]
            return list(batches[self.rank :: self.ranks]) or [(index[:0], keys[:0])]
        # A rank that gets nothing of the last batch takes part with an image of weight 0.
        parts = [
            slice(self.rank, None, self.ranks) if self.rank < len(index) else slice(0, 1)
            for index, _ in batches
        ]
        return [(index[p], keys[p]) for (index, keys), p in zip(batches, parts, strict=True)]
