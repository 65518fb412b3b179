"""Image files: found in folders, read into tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from prunerob.errors import UserError

MOST_PIXELS = 89_478_485
"""Above it, a file of a few bytes could fill the memory; Pillow warns there."""
TOO_LARGE = f"has more than {MOST_PIXELS // 1_000_000} million pixels; make it smaller"
warnings.filterwarnings("ignore", module=r"PIL\.")  # a doubt about a file names no file

Turn = Image.Transpose
TURNS: dict[object, Turn] = {
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}
"""What sets a picture upright, by EXIF's orientation."""


SUFFIXES = (".png", ".jpg", ".jpeg")
"""How names of images end."""


def find_images(folder: Path, setting: str) -> list[Path]:
    """PNG and JPEG files below a folder, sorted by path.

    Args:
        folder: to look in.
        setting: that named it, for errors.

    Raises:
        UserError: there is no such folder, no image in it, or one that is called an image and is
            no file.
        OSError: a folder cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{setting}: {folder} is not a folder")
    files = sorted(file for file in _listed(folder) if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{setting}: {folder} holds no .png, .jpg or .jpeg file")
    for file in files:
        if not file.is_file():
            what = "a link that leads to no file" if file.is_symlink() else "no file"
            raise UserError(f"{setting}: {file} is {what}; remove or rename it")
    return files


def passed_over(folder: Path) -> str:
    """What is said about what lies below a folder and is no image by its name; "" if nothing is."""
    others = sum(file.suffix.lower() not in SUFFIXES for file in _listed(folder))
    if not others:
        return ""
    files = "1 file is" if others == 1 else f"{others:,} files are"
    return f"Passed over in {folder}: {files} neither .png, .jpg nor .jpeg"


def _listed(folder: Path) -> Iterator[Path]:
    """All that lies below a folder but folders and what is hidden; links to folders included."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(place, name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*links, *files):
            if not name.startswith("."):
                yield Path(place, name)


def read_image(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Read one image, as grey or as colour as the data set is.

    Pillow decodes it, since libpng in torchvision's decoder ends the process on a damaged file. The
    pixels are the same, but where a coloured PNG becomes grey: there, one level of 255 apart. Of 16
    bits a colour, the upper 8 are taken.

    Args:
        file: PNG or JPEG.
        shape: (C, H, W) that it must have; (C,) for any size.

    Returns:
        pixels, uint8, (C, H, W).

    Raises:
        UserError: the file is no readable image, is too large, or has another size.
    """
    mode = "L" if shape[0] == 1 else "RGB"
    try:
        with file.open("rb") as opened:
            image = _decode(opened, mode)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Image.DecompressionBombError:
        raise UserError(f"{file}: {TOO_LARGE}") from None
    except MemoryError:
        raise UserError(f"{file}: does not fit into memory") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{file}: not a readable PNG or JPEG image; if it is another kind, convert it"
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(f"{file}: not a readable PNG or JPEG image ({error})") from None
    if len(shape) > 1 and (image.height, image.width) != tuple(shape[1:]):
        raise UserError(
            f"{file}: {image.width}x{image.height} pixels, "
            f"but the data set's are {shape[2]}x{shape[1]}"
        )
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1).contiguous()


def _decode(opened: BinaryIO, mode: str) -> Image.Image:
    """Decode a file, upright, once its size and its checksums are known to be right."""
    with Image.open(opened, formats=("PNG", "JPEG")) as image:
        if image.width * image.height > MOST_PIXELS:
            raise UserError(TOO_LARGE)
        image.verify()  # the checksums of a PNG; decoding does not look at those of its pixels
    opened.seek(0)
    with Image.open(opened, formats=("PNG", "JPEG")) as image:
        image.draft(mode, None)  # a JPEG's own grey
        image.load()
        if image.mode.startswith("I"):  # grey of 16 bits; of colours, Pillow reads the upper 8, too
            decoded = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
        elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            decoded = image.convert("RGBA").convert(mode)
        else:
            decoded = image.convert(mode)
        turn = TURNS.get(_orientation(image))
    return decoded if turn is None else decoded.transpose(turn)


def _orientation(image: Image.Image) -> object:
    """How the camera was held, by the EXIF record; 1, upright, without a readable one."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return exif.get(0x0112, 1)
    except Exception:  # a damaged record can fail in any way, and the picture may yet be good
        return 1
