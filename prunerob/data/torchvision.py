"""torchvision's data sets of small images, by name."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from prunerob.data.batches import Images
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.runs.folder import check_writable


@dataclass(kw_only=True, eq=False, repr=False)
class Torchvision(ImageDataModule):
    """A data set of torchvision's that is held in memory, by name: CIFAR100, SVHN, FashionMNIST.

    torchvision downloads, checks and reads the files; for the other arguments see
    `ImageDataModule`. The images are as they are published, in [0, 1], and the network normalises.

    Args:
        dataset: name of a class of `torchvision.datasets` that has training and test images:
            CIFAR10, CIFAR100, SVHN, MNIST, FashionMNIST, KMNIST, QMNIST, USPS, STL10.
        folder: where its files lie, or are to be put, as torchvision lays them out.
        download: fetch the files that are not there.
    """

    dataset: str
    folder: str = "data"
    download: bool = True

    def prepare_data(self) -> None:
        """Download what is not there; called by the Trainer, once a machine.

        Raises:
            UserError: it cannot be had.
        """
        if not self.download:
            return
        check_writable(Path(self.folder))
        with FileLock(Path(self.folder) / f".{self.dataset}.lock"):
            for train in (True, False):
                self._open(train=train, download=True)

    def load(self) -> tuple[Images, Images]:
        """Read the images.

        Raises:
            UserError: they are not there, are damaged, or have another form.
        """
        parts = [self._open(train=train, download=False) for train in (True, False)]
        names = getattr(parts[0], "classes", None)
        self.class_names = [str(name) for name in names] if names else None
        train, test = map(self._images_of, parts)
        return train, test

    def _open(self, *, train: bool, download: bool) -> Any:
        """Torchvision's data set.

        Raises:
            UserError: there is none of that name, or its files cannot be had.
        """
        kind = getattr(datasets, self.dataset, None)
        parameters = signature(kind).parameters if isinstance(kind, type) else {}
        if kind is None or not {"root", "download"} <= parameters.keys():
            raise UserError(
                f"data.dataset: torchvision has no {self.dataset} that it can read from memory; "
                "there are CIFAR100, SVHN, FashionMNIST and others"
            )
        which: dict[str, Any] = {"train": train}
        if "train" not in parameters:
            which = {"split": "train" if train else "test"}
        try:
            return kind(root=self.folder, download=download, **which)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"data.dataset: {self.dataset} has no plain training and test images ({error}); "
                "write a subclass of prunerob.data.ImageDataModule with a method load()"
            ) from None
        except (OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"data.folder: {self.folder} holds no intact {self.dataset}"
                + (f", and it was not downloaded ({reason})" if download else f" ({reason})")
            ) from None

    def _images_of(self, part: Any) -> Images:
        """Pixels and labels, as torchvision holds them.

        Raises:
            UserError: they are files, or no images of 256 shades.
        """
        labels = getattr(part, "targets", getattr(part, "labels", None))
        if not hasattr(part, "data") or labels is None:
            raise UserError(
                f"data.dataset: torchvision reads {self.dataset} file by file; lay the images out "
                "in folders by class and take data prunerob.data.ImageFolder"
            )
        pixels: Tensor = torch.as_tensor(part.data)
        if pixels.dim() == 3:  # grey
            pixels = pixels[:, None]
        elif pixels.dim() == 4 and pixels.shape[-1] in (1, 3):
            pixels = pixels.permute(0, 3, 1, 2)
        return Images(pixels.contiguous(), torch.as_tensor(labels).long())
