"""What every data module is: images held in memory as tensors, served in batches."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from prunerob.data.augmentation import Augmentation, NoAugmentation
from prunerob.data.batches import Batch, Batches, Images, check_form, stratified_order
from prunerob.data.files import find_images, passed_over, read_image
from prunerob.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(LightningDataModule):
    """Images from memory: the base of every data set.

    A data set is a subclass with a `load` method; the splits, batches and order come from here. One
    with settings of its own is a dataclass, too: `@dataclass(kw_only=True, eq=False, repr=False)`.

    Args:
        batch_size: training images per optimizer step, of all devices together.
        eval_batch_size: images per batch in validation, test and prediction; the attacks run on
            batches of this size.
        validation_size: training images held out for validation: a draw that is stratified by
            class and the same for every seed; 0 trains on all of them.
        train_size: training images to use, after the held-out ones are taken away, a stratified
            draw; null for all.
        test_size: test images to use, a stratified draw; null for all.
        test_on: the images that `prunerob test` attacks: "test", or "validation" for those that are
            held out; choose between settings on these, and keep the others for the end.
        predict_folder: folder of images (PNG or JPEG) for `predict`; null for the test images.
        augmentation: of training images.
        seed: of the order of training images; set from `seed_everything`.
    """

    SPLIT_SEED: ClassVar[int] = 20180101
    """Of the held-out images and of every subset: the same images whatever the run's seed."""
    IS_MIXED: ClassVar[bool] = False
    """Whether the classes of test images are mixed in the order in which they come."""

    batch_size: int = 128
    eval_batch_size: int = 250
    validation_size: int = 5000
    train_size: int | None = None
    test_size: int | None = None
    test_on: Literal["test", "validation"] = "test"
    predict_folder: str | None = None
    augmentation: Augmentation = NoAugmentation()
    seed: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        for name, size, least in (
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("validation_size", self.validation_size, 0),
            ("train_size", self.train_size, 1),
            ("test_size", self.test_size, 1),
        ):
            if size is not None and size < least:
                raise UserError(f"data.{name}: {size} is below {least}")
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
            ("test_size", self.test_size, len(self._tested().labels)),
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
        test = self._tested()
        index = torch.arange(len(test.labels))
        if self.test_size is not None:
            index = stratified_order(test.labels, self.SPLIT_SEED)[: self.test_size]
        return self._in_order(test, index.sort().values)

    def test_batch(self, index: Tensor) -> Batch:
        """Test images by their positions, int64, (n,)."""
        test = self._tested()
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
        test = self._tested()
        index = stratified_order(test.labels, self.SPLIT_SEED)[: self.test_size][:size]
        return self.test_batch(index.sort().values)

    def predict_dataloader(self) -> Batches:
        """The images of `predict_folder`, or else the test images."""
        if self.predict_folder is None:
            return self.test_dataloader()
        shape = self._images()[1].pixels.shape[1:]
        folder = Path(self.predict_folder)
        files = find_images(folder, "data.predict_folder")
        if others := passed_over(folder):
            rank_zero_info(others)
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
                check_form(images, f"{type(self).__name__}.load: the {name} images")
            self._loaded = loaded
        return self._loaded

    def _tested(self) -> Images:
        """The images that a test attacks.

        Raises:
            UserError: none are held out.
        """
        train, test = self._images()
        if self.test_on == "test":
            return test
        if self.validation_size == 0:
            raise UserError("data.test_on: validation, but data.validation_size 0 holds none out")
        index = self._training_order()[: self.validation_size].to(train.labels.device)
        return Images(train.pixels[index], train.labels[index])

    def _training_order(self) -> Tensor:
        return stratified_order(self._images()[0].labels, self.SPLIT_SEED)
