"""Image files: found in folders, read into tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from prunerob.errors import UserError


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
