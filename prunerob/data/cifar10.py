"""CIFAR-10, as torchvision downloads and reads it."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from filelock import FileLock
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from prunerob.data.batches import Images
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.runs.folder import check_writable


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR10(ImageDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of ten classes, colour, 32x32 pixels.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). torchvision
    downloads the images once (170 MB) and reads them; it checks the sum of every file before. For
    the other arguments see `ImageDataModule`.

    Args:
        folder: where `cifar-10-batches-py` lies, or the archive `cifar-10-python.tar.gz`, or where
            they are to be put.
        download: fetch the archive if neither is there; one that is there is unpacked either way.
    """

    IS_MIXED: ClassVar[bool] = True

    folder: str = "data"
    download: bool = True

    def prepare_data(self) -> None:
        """Download or unpack what is not there; called by the Trainer, once a machine.

        Raises:
            UserError: it cannot be had.
        """
        folder, archive = Path(self.folder), Path(self.folder) / datasets.CIFAR10.filename
        if (folder / "data_batch_1").is_file():
            raise UserError(f"data.folder: {folder} holds the batches themselves; name its parent")
        if self._is_intact() or not (self.download or archive.is_file()):
            return
        check_writable(folder)
        with FileLock(folder / ".cifar10.lock"):
            if self._is_intact():  # another process was faster
                return
            damaged = archive.is_file() and not check_integrity(
                str(archive), datasets.CIFAR10.tgz_md5
            )
            try:
                if damaged and not self.download:
                    raise OSError("data.download is false")
                datasets.CIFAR10(self.folder, download=True)
            except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
                problem = (
                    f"{archive} is damaged, and was" if damaged else f"{self._missing()}; it was"
                )
                raise UserError(f"data.folder: {problem} not downloaded ({error})") from None

    def load(self) -> tuple[Images, Images]:
        """Read the batches.

        Raises:
            UserError: they are not there, or damaged.
        """
        try:
            parts = [datasets.CIFAR10(self.folder, train=train) for train in (True, False)]
        except (OSError, RuntimeError):
            raise UserError(f"data.folder: {self._missing()}") from None
        self.class_names = list(parts[0].classes)
        train, test = (
            Images(
                torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(part.targets),
            )
            for part in parts
        )
        return train, test

    def _is_intact(self) -> bool:
        """Whether all files are there, as they were published."""
        official, folder = datasets.CIFAR10, Path(self.folder) / datasets.CIFAR10.base_folder
        files = [*official.train_list, *official.test_list]
        files.append([official.meta["filename"], official.meta["md5"]])
        return all(check_integrity(str(folder / name), md5) for name, md5 in files)

    def _missing(self) -> str:
        return (
            f"{self.folder} holds no intact cifar-10-batches-py; fetch {datasets.CIFAR10.filename} "
            f"from {datasets.CIFAR10.url} and put it there, or take images of your own with data "
            "prunerob.data.ImageFolder"
        )
