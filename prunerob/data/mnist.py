"""MNIST, from the file that ships inside the package."""

from __future__ import annotations

import lzma
from importlib.resources import files

import numpy as np
import torch

from prunerob.data.batches import Images
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError


class MNIST(ImageDataModule):
    """MNIST: 60,000 training and 10,000 test images of digits, grey, 28x28 pixels.

    Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0. All images ship inside the package,
    losslessly; nothing is downloaded. For the arguments see `ImageDataModule`.
    """

    IS_MIXED = True

    def load(self) -> tuple[Images, Images]:
        """Unpack the file: the four official IDX files, end to end, xz-compressed."""
        file = files("prunerob.data") / "mnist.xz"
        try:
            unpacked = lzma.decompress(file.read_bytes())
            position, arrays = 0, []
            for shape in ((60000, 1, 28, 28), (60000,), (10000, 1, 28, 28), (10000,)):
                # An IDX file is a header of four bytes and four per dimension, then the bytes.
                position += 16 if len(shape) > 1 else 8
                length = int(np.prod(shape))
                array = np.frombuffer(unpacked, np.uint8, length, position).reshape(shape)
                arrays.append(torch.from_numpy(array.copy()))
                position += length
        except (OSError, lzma.LZMAError, ValueError) as error:
            raise UserError(f"{file} is damaged ({error}); install prunerob again") from None
        if position != len(unpacked):
            raise UserError(f"{file} is damaged (bytes left over); install prunerob again")
        return Images(arrays[0], arrays[1].long()), Images(arrays[2], arrays[3].long())
