"""torch.export's programs, written without traces of this machine, read without running code.

torch reads them with pickle, with sympy's `sympify` (an `eval`) and with generated source code. So
what is read here is taken apart first, and only what a network needs is handed on to torch: tensors
as raw bytes, and a graph of ATen operators in which every text is a name.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunerob.artefacts.format import Answers, Format, Source, answered, quiet, refusing
from prunerob.errors import UserError, first_line
from prunerob.runs.archives import check_archive

PICKLED = "data/sample_inputs/model.pt"
"""The images that it was traced with, pickled: of no use later, and left empty."""
RAW = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
GRAPH = "models/model.json"
MARKS = (
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
)
NAME = re.compile(r"[\w.]*")
"""All that a text in a graph may be: no more than names can be put into source code."""
EXPRESSION = re.compile(
    r"-?\d+|[su]\d+|Integer\(-?\d+\)|Symbol\('[su]\d+'(, (positive|integer|nonnegative)=True)*\)"
)
"""Sizes of the batch, as sympy writes a symbol and a number."""
OPERATOR = re.compile(r"torch\.ops\.aten\.(?!from_file)\w+\.\w+")
TREE = re.compile(r"[\w.\[\]{}:\", ]*")
"""How arguments are nested: JSON of names and numbers."""


class ExportedProgram(Format):
    """torch.export's program, for torch without the network's own code."""

    suffix = ".pt2"

    def write(self, source: Source, file: Path) -> None:
        """Write the traced program; see `Format`."""
        with quiet(), refusing("pt2"):
            written = io.BytesIO()
            torch.export.save(source.traced, written, extra_files=dict(source.about))
            # What a device opens needs no pickle either.
            with zipfile.ZipFile(written) as archive, zipfile.ZipFile(file, "w") as out:
                for record in archive.infolist():
                    place = record.filename.partition("/")[2]
                    out.writestr(record.filename, b"" if place == PICKLED else archive.read(record))

    def open(self, file: Path, *, threads: int = 1) -> Answers:
        """The program, of which nothing but a graph of ATen's operators is read; see `Format`."""
        check_archive(file)
        try:
            cleaned = _without_code(file)
            with quiet():
                program = torch.export.load(cleaned).module()
        except (UserError, OSError):
            raise
        except Exception as error:  # a damaged file can fail in any way
            told = f"{first_line(error):.200}"
            raise UserError(f"{file} is no program of torch.export's ({told})") from None

        def answers(x: Tensor) -> Tensor:
            def answer() -> Tensor:
                with torch.no_grad():
                    logits: Tensor = program(x)
                return logits

            return answered(file, answer, x)

        return answers


def _without_code(file: Path) -> io.BytesIO:
    """The same program as an archive that holds data alone.

    Raises:
        UserError: it holds more than a network needs.
    """

    def refused(what: str) -> UserError:
        return UserError(f"{file} was refused: it holds {what}, more than a network needs")

    kept = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(kept, "w") as out:
        for record in archive.infolist():
            place = record.filename.partition("/")[2]
            content = archive.read(record)
            if place == PICKLED:
                content = b""
            elif place in CONFIGS:
                for entry in json.loads(content)["config"].values():
                    if entry.get("use_pickle") is not False or "tensor_meta" not in entry:
                        raise refused("pickled tensors")
                    if not RAW.fullmatch(f"{place.rpartition('/')[0]}/{entry['path_name']}"):
                        raise refused("tensors of another place")
            elif place == GRAPH:
                content = json.dumps(_plain_graph(json.loads(content), refused)).encode()
            elif place.startswith("extra/"):
                continue
            elif place not in MARKS and not RAW.fullmatch(place):
                raise refused(f"{place!r}")
            out.writestr(record.filename, content)
    kept.seek(0)
    return kept


def _plain_graph(model: dict[str, Any], refused: Any) -> dict[str, Any]:
    """A graph without what was noted beside it, every text of it seen.

    Raises:
        UserError: a text is more than a name, or an operator is none of ATen's.
    """
    model["guards_code"] = []  # source code, by which sizes are checked
    model["torch_version"] = ""
    graph_module = model["graph_module"]
    graph_module["metadata"] = {}
    for node in graph_module["graph"]["nodes"]:
        node["metadata"] = {}
        if not OPERATOR.fullmatch(node["target"]):
            raise refused(f"the operator {node['target']!r:.100}")
    for key, text in _texts(model, ""):
        form = {"expr_str": EXPRESSION, "in_spec": TREE, "out_spec": TREE}.get(key, NAME)
        if not form.fullmatch(text):
            raise refused(f"the text {text!r:.100}")
    return model


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts of a JSON, keys too, each with the key that it is the value of."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield "", name
            yield from _texts(item, name)
