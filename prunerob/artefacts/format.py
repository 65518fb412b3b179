"""What every format of artefacts is: it writes a network into a file, and answers from the file."""

from __future__ import annotations

import hashlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunerob.errors import UserError, first_line
from prunerob.networks.narrow import Narrowing, find_narrowing

Answers = Callable[[Tensor], Tensor]
"""From images, float32, (B, C, H, W), pixels in [0, 1], to logits, float32, (B, classes)."""

INPUT, OUTPUT = "images", "logits"
TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
"""What tracing notes of the code that it saw, paths of this machine among it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an artefact is made from.

    Args:
        network: in its full shape, in evaluation mode, on the CPU.
        narrowing: which of its channels stay; all of them where nothing is taken out.
        shape: of an image, (C, H, W).
        record: of the network in the run's configuration, a class path with its settings.
        about: what else the file says of itself, as text by name.
    """

    network: nn.Module
    narrowing: Narrowing
    shape: torch.Size
    record: Mapping[str, Any]
    about: Mapping[str, str]

    @cached_property
    def exported(self) -> nn.Module:
        """The network that goes into the file."""
        return self.narrowing.network(self.network).eval() if self.narrowing.kept else self.network

    @cached_property
    def traced(self) -> torch.export.ExportedProgram:
        """The same as torch.export sees it, for any number of images; it names no file."""
        return self.trace(None)

    def trace(self, most: int | None) -> torch.export.ExportedProgram:
        """The exported network as torch.export sees it.

        Args:
            most: images that it must answer at once, 2 or more; None for any number.
        """
        # Two images: sizes of 0 and 1 are taken for constants.
        x = torch.zeros(2, *self.shape)
        shapes = {INPUT: {0: torch.export.Dim("batch", min=1, max=most)}}
        with torch.no_grad():
            program = torch.export.export(_Named(self.exported), (x,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            for trace in TRACES:
                node.meta.pop(trace, None)
        return program

    @classmethod
    def of(
        cls,
        network: nn.Module,
        shape: torch.Size,
        record: Mapping[str, Any],
        about: Mapping[str, str],
        *,
        full: bool = False,
        multiple_of: int = 1,
    ) -> Source:
        """Of a network without the channels that nothing reads.

        Args:
            network: in its full shape, on the CPU.
            shape: of an image, (C, H, W).
            record: of the network in the run's configuration.
            about: what else the file says of itself.
            full: leave all channels where they are.
            multiple_of: as many emptied channels stay as make the others such a number.
        """
        narrowing = Narrowing({}) if full else find_narrowing(network, multiple_of=multiple_of)
        network = network.eval()
        return cls(network=network, narrowing=narrowing, shape=shape, record=record, about=about)


class Format(ABC):
    """A format of artefacts."""

    suffix: ClassVar[str]
    """How its files end."""

    @abstractmethod
    def write(self, source: Source, file: Path) -> None:
        """Write a network into a file.

        Raises:
            UserError: the network cannot be written so, or a package is missing.
        """

    @abstractmethod
    def open(self, file: Path, *, network: nn.Module, threads: int = 1) -> Answers:
        """What answers from the file; opening it runs nothing of the file's own.

        Args:
            file: of this format, anyone's.
            network: in its full shape; what gives a format of tensors alone its layers.
            threads: of the CPU, where the format runs by a library with threads of its own.

        Raises:
            UserError: it is damaged, or asks for more than a network needs.
        """


class _Named(nn.Module):
    """A network whose input has the artefact's name for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def sha256(file: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def needed(package: str, form: str = "onnx", extra: str = "export") -> Any:
    """Import a package of an extra.

    Raises:
        UserError: it is not installed.
    """
    name = package.partition(".")[0]
    try:
        return import_module(package)
    except ImportError as error:
        is_there = find_spec(name) is not None
        problem = f"cannot be imported ({first_line(error):.200})" if is_there else "is missing"
        raise UserError(
            f"{form}: needs {name}, which {problem}; pip install 'prunerob[{extra}]'"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Let exporters tell nothing of their own ways."""
    names = ("torch.onnx", "torch.export", "torch.utils._pytree", "onnxscript", "executorch")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Tell in a line that a network cannot be exported."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # tracing a network of the user's may fail in any way
        reason = f"{first_line(error):.200}"
        raise UserError(f"--format {name}: this network cannot be exported ({reason})") from None


def answered(file: Path, answer: Callable[[], Tensor], x: Tensor) -> Tensor:
    """Logits of a file for images, or a line that says why there are none.

    Args:
        file: that is asked.
        answer: asks it.
        x: the images.

    Raises:
        UserError: it takes no such images, or its answers are no logits.
    """
    if type(x) is not Tensor:  # what tracing passes would end the process in a library of C++
        raise TypeError(f"{file} answers tensors, no {type(x).__name__}")
    try:
        logits = answer()
    except Exception as error:  # each library has errors of its own
        told = f"takes no images {tuple(x.shape)}: {first_line(error):.200}"
        raise UserError(f"{file}: {told}") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = tuple(getattr(logits, "shape", ()))
        raise UserError(f"{file}: answers {shape} to {len(x)} images; logits were expected")
    return logits
