"""Eight-bit integers: an ONNX file with weights, and if calibrated activations, of 8 bits."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prunerob.artefacts.format import INPUT, needed
from prunerob.errors import UserError, first_line

Mode = Literal["static", "dynamic"]
CALIBRATION = 512
"""Training images by which static quantisation finds the ranges of activations."""


def quantize(file: Path, to: Path, images: Tensor, mode: Mode) -> None:
    """Write a quantised copy of an ONNX file, by onnxruntime's quantiser, per channel.

    Args:
        file: in float32.
        to: the copy.
        images: training images for the ranges of "static", float32, (N, C, H, W), in [0, 1].
        mode: "static" fixes the ranges of activations by the images; "dynamic" finds them for each
            batch, and quantises linear layers alone.

    Raises:
        UserError: it cannot be quantised, or a package is missing.
    """
    quantization = needed("onnxruntime.quantization")
    needed("onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises to do what is done here
    try:
        with tempfile.TemporaryDirectory(dir=to.parent) as place:
            prepared = Path(place) / "prepared.onnx"
            quantization.shape_inference.quant_pre_process(
                str(file), str(prepared), skip_symbolic_shape=True
            )
            if mode == "dynamic":
                quantization.quantize_dynamic(str(prepared), str(to), per_channel=True)
            else:
                quantization.quantize_static(
                    str(prepared),
                    str(to),
                    _Images(images),
                    per_channel=True,
                    quant_format=quantization.QuantFormat.QDQ,
                )
    except (UserError, OSError):
        raise
    except Exception as error:  # the quantiser may fail in any way
        told = f"this network cannot be quantised ({first_line(error):.200})"
        raise UserError(f"--int8: {told}") from None
    finally:
        root.setLevel(level)


class _Images:
    """What the quantiser reads images from, batch by batch."""

    def __init__(self, images: Tensor) -> None:
        self._batches: Iterator[Any] = iter(torch.split(images, 64))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch by the name of the input; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Of no effect: all batches are read."""

    def rewind(self) -> None:
        """Of no effect: they are read once."""
