"""Any classification data set that lies in folders, one for each class."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, resize

from prunerob.data.batches import Images
from prunerob.data.files import MOST_PIXELS, TOO_LARGE, find_images, passed_over, read_image
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolder(ImageDataModule):
    """Images of your own: `train/CLASS/*.png|jpg` and `test/CLASS/*.png|jpg` below a folder.

    All images are read into memory, once, and must be of one size, or are made so. The classes are
    numbered in the order of their folders' names. For the other arguments see `ImageDataModule`.

    Args:
        folder: the folder that holds `train` and `test`.
        grey: read the images as grey (1 channel), not as colour (3).
        size: make every image a square of so many pixels a side: shrunk or enlarged to it by its
            shorter side, then cut in the middle; null takes them as they are, all of one size.
    """

    folder: str
    grey: bool = False
    size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size < 1:
            raise UserError(f"data.size: {self.size} is below 1")
        if self.size is not None and self.size**2 > MOST_PIXELS:
            raise UserError(f"data.size: an image of {self.size} pixels a side {TOO_LARGE}")

    def prepare_data(self) -> None:
        """See that there are images; called by the Trainer, once a machine.

        Raises:
            UserError: a folder is missing or empty.
        """
        for part in ("train", "test"):
            _find_classes(Path(self.folder) / part)

    def load(self) -> tuple[Images, Images]:
        """Read all images, several at a time.

        Raises:
            UserError: a folder is missing or empty, or a file is no readable image of that size.
        """
        train, test = (_find_classes(Path(self.folder) / part) for part in ("train", "test"))
        if unknown := sorted(test.keys() - train.keys()):
            raise UserError(
                f"data.folder: {self.folder}/test has the class {unknown[0]}, but train has not"
            )
        if len(train) < 2:
            raise UserError(f"data.folder: {self.folder}/train has a single class, {min(train)}")
        labels = {name: label for label, name in enumerate(train)}
        self.class_names = list(labels)
        first = next(iter(train.values()))[0]
        shape = self.read(first, (1 if self.grey else 3,)).shape
        parts = self._read_all(train, labels, shape), self._read_all(test, labels, shape)
        counts = " and ".join(f"{len(images.labels):,}" for images in parts)
        for part in ("train", "test"):
            if others := passed_over(Path(self.folder) / part):
                rank_zero_info(others)
        names = ", ".join(labels) if len(labels) <= 20 else f"{min(labels)} to {max(labels)}"
        rank_zero_info(f"{counts} images for training and test, {len(labels)} classes: {names}")
        return parts

    def read(self, file: Path, shape: tuple[int, ...]) -> Tensor:
        """Read one image, in the size that was asked for; see `read_image`."""
        if self.size is None:
            return read_image(file, shape)
        pixels = resize(read_image(file, shape[:1]), [self.size], antialias=True)
        square: Tensor = center_crop(pixels, [self.size])
        return square

    def _read_all(
        self, classes: dict[str, list[Path]], labels: dict[str, int], shape: tuple[int, ...]
    ) -> Images:
        files = [(file, labels[name]) for name, members in classes.items() for file in members]

        def read(file: Path) -> Tensor:
            return self.read(file, shape)

        try:
            with ThreadPoolExecutor() as pool:
                pixels = torch.stack(list(pool.map(read, [file for file, _ in files])))
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            raise UserError(
                f"data.folder: {len(files):,} images of {self.folder} do not fit into memory; "
                "make them smaller with data.size"
            ) from None
        return Images(pixels, torch.tensor([label for _, label in files]))


def _find_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, by its name."""
    if not folder.is_dir():
        raise UserError(f"data.folder: there is no folder {folder}")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise UserError(f"data.folder: {folder} holds no folders, one for each class")
    return {path.name: find_images(path, "data.folder") for path in classes}
