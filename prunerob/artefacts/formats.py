"""Formats of artefacts: each writes a network into a file, and answers from the file alone."""

from __future__ import annotations

import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from prunerob.errors import UserError, first_line
from prunerob.networks.narrow import Narrowing, find_narrowing
from prunerob.runs.configuration import instantiate
from prunerob.runs.folder import write_whole

Answers = Callable[[Tensor], Tensor]
"""From images, float32, (B, C, H, W), pixels in [0, 1], to logits, float32, (B, classes)."""

INPUT, OUTPUT = "images", "logits"


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
        """The same as torch.export sees it, for any number of images."""
        # Two images: sizes of 0 and 1 are taken for constants.
        x = torch.zeros(2, *self.shape)
        shapes = {INPUT: {0: torch.export.Dim("batch", min=1)}}
        with torch.no_grad():
            return torch.export.export(_Named(self.exported), (x,), dynamic_shapes=shapes)

    @classmethod
    def of(
        cls,
        network: nn.Module,
        shape: torch.Size,
        record: Mapping[str, Any],
        about: Mapping[str, str],
        *,
        full: bool = False,
    ) -> Source:
        """Of a network without the channels that nothing reads.

        Args:
            network: in its full shape, on the CPU.
            shape: of an image, (C, H, W).
            record: of the network in the run's configuration.
            about: what else the file says of itself.
            full: leave all channels where they are.
        """
        narrowing = Narrowing({}) if full else find_narrowing(network)
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
    def open(self, file: Path) -> Answers:
        """What answers from the file alone."""


class Onnx(Format):
    """ONNX, by torch's exporter; answered by onnxruntime on one thread."""

    suffix = ".onnx"

    def write(self, source: Source, file: Path) -> None:
        """Write it with named input and output and any number of images; see `Format`."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package)
        with _quiet(), _refusing("onnx"):
            program = torch.onnx.export(
                source.traced,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props.update(source.about)
            program.save(str(file))

    def open(self, file: Path) -> Answers:
        """A session of onnxruntime; see `Format`."""
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong comes as an error
        try:
            session = runtime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has errors of its own for each way to fail
            raise UserError(
                f"{file} is no ONNX file that runs here ({first_line(error):.200})"
            ) from None
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
            raise UserError(
                f"{file}: takes {len(inputs)} inputs and gives {len(outputs)} outputs; images, "
                "float32, (B, C, H, W), and logits were expected"
            )

        def answers(x: Tensor) -> Tensor:
            if type(x) is not Tensor:  # what tracing passes would end the process in there
                raise TypeError(f"{file} answers tensors, no {type(x).__name__}")
            try:
                (found,) = session.run(None, {inputs[0].name: x.numpy()})
            except Exception as error:
                told = f"takes no images {tuple(x.shape)}: {first_line(error):.200}"
                raise UserError(f"{file}: {told}") from None
            return torch.from_numpy(found)

        return answers


class ExportedProgram(Format):
    """torch.export's program, for torch without the network's own code."""

    suffix = ".pt2"

    def write(self, source: Source, file: Path) -> None:
        """Write the traced program; see `Format`."""
        with _quiet(), _refusing("pt2"):
            torch.export.save(source.traced, file, extra_files=dict(source.about))

    def open(self, file: Path) -> Answers:
        """The program; a file of one's own alone, as torch reads it by pickle."""
        program = torch.export.load(file).module()

        def answers(x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = program(x)
            return logits

        return answers


class Safetensors(Format):
    """Plain tensors, and beside them a JSON that says how the narrow network is built."""

    suffix = ".safetensors"

    def write(self, source: Source, file: Path) -> None:
        """Write tensors and JSON; see `Format`."""
        state = source.exported.state_dict()
        state = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
        kept = {
            name: [None if p is None else p.tolist() for p in positions]
            for name, positions in source.narrowing.kept.items()
        }
        write_whole(file, save(state, metadata=dict(source.about)))
        record = {"network": source.record, "kept": kept, "image": list(source.shape)}
        write_whole(file.with_suffix(".json"), json.dumps(record) + "\n")

    def open(self, file: Path) -> Answers:
        """The network, built as the JSON says; its class must be there. See `Format`."""
        record = json.loads(file.with_suffix(".json").read_text("utf-8"))
        network = instantiate(record["network"])
        kept = {
            name: tuple(None if p is None else torch.tensor(p) for p in positions)
            for name, positions in record["kept"].items()
        }
        if kept:
            network = Narrowing(kept).network(network)  # type: ignore[arg-type]
        network.load_state_dict(load_file(file))
        network.eval()

        def answers(x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = network(x)
            return logits

        return answers


FORMATS: Mapping[str, Format] = {
    "onnx": Onnx(),
    "pt2": ExportedProgram(),
    "safetensors": Safetensors(),
}


class _Named(nn.Module):
    """A network whose input has the artefact's name for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def needed(package: str) -> Any:
    """Import a package of the extra `export`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise UserError(
            f"--format onnx: needs {package}, which is missing; pip install 'prunerob[export]'"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Let exporters tell nothing of their own ways."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
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
def _refusing(name: str) -> Iterator[None]:
    """Tell in a line that a network cannot be exported."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # tracing a network of the user's may fail in any way
        reason = f"{first_line(error):.200}"
        raise UserError(f"--format {name}: this network cannot be exported ({reason})") from None
