"""What every data module is: images held in memory as tensors, served in batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

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
        batches = list(
            zip(torch.split(index, self.size), torch.split(keys, self.size), strict=True)
        )
        for chosen, key in self._part(batches):
            pixels = self.augmentation.take(self._prepared, chosen, key)
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


def _check(images: Images, name: str) -> None:
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


class ImageDataModule(LightningDataModule):
    """Images from memory: the base of every data set.

    A data set is a subclass with a `load` method; the splits, batches and order come from here.

    Args:
        batch_size: training images per optimizer step, of all devices together.
        eval_batch_size: images per batch in validation, test and prediction; the attacks run on
            batches of this size.
        validation_size: training images held out for validation: a draw that is stratified by
            class and the same for every seed; 0 trains on all of them.
        train_size: training images to use, after the held-out ones are taken away, a stratified
            draw; null for all.
        test_size: test images to use, a stratified draw; null for all.
        predict_folder: folder of images (PNG or JPEG) for `predict`; null for the test images.
        augmentation: of training images.
        seed: of the order of training images; set from `seed_everything`.
    """

    SPLIT_SEED = 20180101
    """Of the held-out images and of every subset: the same images whatever the run's seed."""
    IS_MIXED: ClassVar[bool] = False
    """Whether the classes of test images are mixed in the order in which they come."""

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 250,
        validation_size: int = 5000,
        train_size: int | None = None,
        test_size: int | None = None,
        predict_folder: str | None = None,
        augmentation: Augmentation = NoAugmentation(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, size, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("validation_size", validation_size, 0),
            ("train_size", train_size, 1),
            ("test_size", test_size, 1),
        ):
            if size is not None and size < least:
                raise UserError(f"data.{name}: {size} is below {least}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation_size = validation_size
        self.train_size = train_size
        self.test_size = test_size
        self.predict_folder = predict_folder
        self.augmentation = augmentation
        self.seed = seed
        self.predict_names: list[str] | None = None
        self.class_names: list[str] | None = None
        """What the classes are called, by number, where `load` found names."""
        self._loaded: tuple[Images, Images] | None = None

    @abstractmethod
    def load(self) -> tuple[Images, Images]:
        """Read the training images and the test images into memory."""

    def setup(self, stage: str) -> None:
        """Read the images and check that the splits fit them; called by the Trainer."""
        if stage == "fit" and self.batch_size % self.ranks:
            raise UserError(
                f"data.batch_size: {self.batch_size} images cannot be shared out evenly among "
                f"{self.ranks} devices"
            )
        train, test = self._images()
        if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda":
            # All of them at once: no batch ever waits for its way to the GPU.
            device = self.trainer.strategy.root_device
            self._loaded = train.to(device), test.to(device)
        for name, size, most in (
            ("validation_size", self.validation_size, len(train.labels) - 1),
            ("train_size", self.train_size, len(train.labels) - self.validation_size),
            ("test_size", self.test_size, len(test.labels)),
        ):
            if size is not None and size > most:
                raise UserError(f"data.{name}: {size}, but there are {most} images for it")

    @property
    def rank(self) -> int:
        """Number of this process among those that run together."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def ranks(self) -> int:
        """How many processes run together."""
        return 1 if self.trainer is None else self.trainer.world_size

    def train_dataloader(self) -> Batches:
        """Training batches, in an order that is a function of the seed and the epoch."""
        index = self._training_order()[self.validation_size :][: self.train_size]
        return Batches(
            self._images()[0],
            index,
            size=self.batch_size,
            shuffle_seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            augmentation=self.augmentation,
            rank=self.rank,
            ranks=self.ranks,
        )

    def val_dataloader(self) -> Batches | list[Batches]:
        """Held-out training images; every prefix of them is stratified by class."""
        if self.validation_size == 0:
            return []
        index = self._training_order()[: self.validation_size]
        return self._in_order(self._images()[0], index)

    def test_dataloader(self) -> Batches:
        """Test images, in their own order."""
        test = self._images()[1]
        index = torch.arange(len(test.labels))
        if self.test_size is not None:
            index = stratified_order(test.labels, self.SPLIT_SEED)[: self.test_size]
        return self._in_order(test, index.sort().values)

    def test_batch(self, index: Tensor) -> Batch:
        """Test images by their positions, int64, (n,)."""
        test = self._images()[1]
        return next(iter(Batches(test, index, size=max(1, len(index)))))

    def attacker_dataloader(self) -> Batches:
        """All test images in the order in which an attacker who needs some takes them: mixed."""
        batches = self.test_dataloader()
        batches.rank, batches.ranks = 0, 1  # every rank's attacker is the same
        if not self.IS_MIXED:
            labels = batches.images.labels[batches.index]
            batches.index = batches.index[stratified_order(labels, self.SPLIT_SEED)]
        return batches

    def test_sample(self, size: int) -> Batch:
        """Some of the images that `test_dataloader` serves: a stratified draw of at most `size`."""
        test = self._images()[1]
        index = stratified_order(test.labels, self.SPLIT_SEED)[: self.test_size][:size]
        return self.test_batch(index.sort().values)

    def predict_dataloader(self) -> Batches:
        """The images of `predict_folder`, or else the test images."""
        if self.predict_folder is None:
            return self.test_dataloader()
        shape = self._images()[1].pixels.shape[1:]
        files = find_images(Path(self.predict_folder), "data.predict_folder")
        pixels = torch.stack([self.read(file, shape) for file in files])
        self.predict_names = [str(file) for file in files]
        images = Images(pixels, torch.full((len(files),), -1))
        return self._in_order(images, torch.arange(len(files)))

    def _in_order(self, images: Images, index: Tensor) -> Batches:
        size = self.eval_batch_size
        return Batches(images, index, size=size, rank=self.rank, ranks=self.ranks)

    def read(self, file: Path, shape: tuple[int, ...]) -> Tensor:
        """Read one image as the data set's own are; see `read_image`."""
        return read_image(file, shape)

    @property
    def image_shape(self) -> torch.Size:
        """Of the images, (C, H, W)."""
        return self._images()[0].pixels.shape[1:]

    def _images(self) -> tuple[Images, Images]:
        if self._loaded is None:
            loaded = self.load()
            for name, images in zip(("training", "test"), loaded, strict=True):
                _check(images, f"{type(self).__name__}.load: the {name} images")
            self._loaded = loaded
        return self._loaded

    def _training_order(self) -> Tensor:
        return stratified_order(self._images()[0].labels, self.SPLIT_SEED)


def find_images(folder: Path, setting: str) -> list[Path]:
    """PNG and JPEG files below a folder, sorted by path.

    Args:
        folder: to look in.
        setting: that named it, for errors.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} is not a folder")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in (".png", ".jpg", ".jpeg")
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f"{setting}: {folder} holds no .png, .jpg or .jpeg file")
    return files


def read_image(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Read one image, as grey or as colour as the data set is.

    Args:
        file: PNG or JPEG.
        shape: (C, H, W) that it must have; (C,) for any size.

    Returns:
        pixels, uint8, (C, H, W).

    Raises:
        UserError: the file is no readable image, or has another size.
    """
    pixels: Tensor
    try:
        mode = ImageReadMode.GRAY if shape[0] == 1 else ImageReadMode.RGB
        pixels = decode_image(str(file), mode, apply_exif_orientation=True)
    except RuntimeError:
        raise UserError(f"{file}: not a readable PNG or JPEG image") from None
    if pixels.dim() != 3 or len(pixels) != shape[0]:  # GIF or WebP under another name
        raise UserError(f"{file}: not a PNG or JPEG image, whatever it is called; convert it")
    if pixels.dtype != torch.uint8:
        raise UserError(f"{file}: has more than 8 bits a colour; convert it to 8")
    if len(shape) > 1 and pixels.shape[1:] != shape[1:]:
        height, width = pixels.shape[1:]
        raise UserError(
            f"{file}: {width}x{height} pixels, but the data set's are {shape[2]}x{shape[1]}"
        )
    return pixels
