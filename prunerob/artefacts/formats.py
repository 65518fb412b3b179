"""The formats of artefacts, by the names that a command line has for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prunerob.artefacts.executorch import ExecuTorch
from prunerob.artefacts.exported_program import ExportedProgram
from prunerob.artefacts.format import Format
from prunerob.artefacts.onnx import Onnx
from prunerob.artefacts.plain import Safetensors

FORMATS: Mapping[str, Format] = {
    "onnx": Onnx(),
    "pt2": ExportedProgram(),
    "safetensors": Safetensors(),
    "executorch": ExecuTorch(),
}
FORMATS_BY_SUFFIX = {form.suffix: form for form in FORMATS.values()}


def format_of(file: Path) -> Format | None:
    """The format of an artefact's file; None of a file that is none, such as bare weights.

    Args:
        file: as a command line names it.
    """
    if file.suffix == ".safetensors" and not file.with_suffix(".json").is_file():
        return None
    return FORMATS_BY_SUFFIX.get(file.suffix)
