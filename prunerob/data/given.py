"""Images that are given as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from prunerob.data.batches import Images
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError


class GivenImages(ImageDataModule):
    """Labelled images, as they are; they are test images.

    Args:
        images: float, (N, C, H, W), in [0, 1]; or uint8, of 256 shades.
        labels: integers, (N,).
        batch_size: images per batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int = 250) -> None:
        super().__init__(eval_batch_size=batch_size, validation_size=0)
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is below 1")
        if images.dim() != 4 or labels.shape != images.shape[:1] or not len(labels):
            raise UserError(
                f"images and labels are {tuple(images.shape)} and {tuple(labels.shape)}; (N, C, H, "
                "W) and (N,) were expected"
            )
        if labels.is_floating_point() or int(labels.min()) < 0:
            raise UserError("labels: are no classes, which are integers that count from 0")
        pixels = images.detach()
        if pixels.dtype != torch.uint8:
            if not pixels.is_floating_point() or not bool(((pixels >= 0) & (pixels <= 1)).all()):
                raise UserError("images: pixels lie outside [0, 1]; nothing may normalise them")
            # Batches divide by 255. Images of 256 shades are exactly what they were.
            pixels = pixels.float() * 255
            shades = pixels.round()
            pixels = shades.byte() if torch.allclose(pixels, shades, rtol=0, atol=1e-3) else pixels
        self._given = Images(pixels, labels.detach().long())

    def load(self) -> tuple[Images, Images]:
        """There is nothing to read."""
        return self._given, self._given

    def _images(self) -> tuple[Images, Images]:
        return self._given, self._given
