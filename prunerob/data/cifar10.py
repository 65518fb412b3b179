"""CIFAR-10, as torchvision downloads and reads it."""

from __future__ import annotations

import tarfile

import torch
from torchvision import datasets

from prunerob.data.augmentation import Augmentation, NoAugmentation
from prunerob.data.images import ImageDataModule, Images
from prunerob.errors import UserError


class CIFAR10(ImageDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of ten classes, colour, 32x32 pixels.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). torchvision
    downloads the images once (170 MB) and reads them; it checks the sum of every file before. For
    the other arguments see `ImageDataModule`.

    Args:
        folder: where `cifar-10-batches-py` lies, or the archive `cifar-10-python.tar.gz`, or where
            they are to be put.
        download: fetch the archive if neither is there.
    """

    def __init__(
        self,
        *,
        folder: str = "data",
        download: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 250,
        validation_size: int = 5000,
        train_size: int | None = None,
        test_size: int | None = None,
        predict_folder: str | None = None,
        augmentation: Augmentation = NoAugmentation(),
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            validation_size=validation_size,
            train_size=train_size,
            test_size=test_size,
            predict_folder=predict_folder,
            augmentation=augmentation,
            seed=seed,
        )
        self.folder = folder
        self.download = download

    def prepare_data(self) -> None:
        """Download or unpack what is not there; called by the Trainer, once a machine.

        Raises:
            UserError: it cannot be had.
        """
        if not self.download:
            return
        try:
            datasets.CIFAR10(self.folder, download=True)
        except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
            raise UserError(f"data.folder: {self._missing()} ({error})") from None

    def load(self) -> tuple[Images, Images]:
        """Read the batches.

        Raises:
            UserError: they are not there, or damaged.
        """
        try:
            parts = [datasets.CIFAR10(self.folder, train=train) for train in (True, False)]
        except (OSError, RuntimeError):
            raise UserError(f"data.folder: {self._missing()}") from None
        train, test = (
            Images(
                torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(part.targets),
            )
            for part in parts
        )
        return train, test

    def _missing(self) -> str:
        return (
            f"{self.folder} holds no intact cifar-10-batches-py, and it was not downloaded; fetch "
            f"{datasets.CIFAR10.filename} from {datasets.CIFAR10.url} and put it there, or take "
            "images of your own with data prunerob.data.ImageFolder"
        )
