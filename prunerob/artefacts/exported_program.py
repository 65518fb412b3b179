"""torch.export's programs, written without traces of this machine, read without running code.

torch reads them with pickle, with sympy's `sympify` (an `eval`) and with generated source code. So
what is read here is taken apart first, and only what a network needs is handed on to torch: tensors
as raw bytes, and a graph of ATen operators in which every text is a name.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunerob.artefacts.format import Answers, Format, Source, answered, quiet, refusing
from prunerob.errors import UserError, first_line
from prunerob.runs.archives import check_archive

PICKLED = "data/sample_inputs/model.pt"
"""The images that it was traced with, pickled: of no use later, and left empty."""
RAW = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+", re.ASCII)
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
GRAPH = "models/model.json"
MARKS = (
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
)
NAME = re.compile(r"[\w.]*", re.ASCII)
"""All that a text in a graph may be: no more than names can be put into source code."""
EXPRESSION = re.compile(
    r"-?\d+|[su]\d+|Integer\(-?\d+\)|Symbol\('[su]\d+'(, (positive|integer|nonnegative)=True)*\)",
    re.ASCII,
)
"""Sizes of the batch, as sympy writes a symbol and a number."""
OPERATOR = re.compile(r"torch\.ops\.aten\.([a-z0-9_]+?)_?\.\w+", re.ASCII)
OPERATORS = frozenset(
    (
        # convolutions and linear layers
        *("conv2d", "convolution", "linear", "addmm", "bmm", "matmul", "mm"),
        *("scaled_dot_product_attention",),
        # normalisation
        *("batch_norm", "group_norm", "instance_norm", "layer_norm", "dropout"),
        # activations
        *("elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_softmax"),
        *("prelu", "relu", "relu6", "sigmoid", "silu", "softmax", "softplus", "tanh"),
        # pooling and size
        *("adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d"),
        *("constant_pad_nd", "pad", "pixel_shuffle", "upsample_bilinear2d"),
        *("upsample_nearest2d",),
        # numbers
        *("abs", "add", "amax", "clamp", "clamp_max", "clamp_min", "div", "exp", "log", "mean"),
        *("mul", "neg", "pow", "rsqrt", "sqrt", "sub", "sum"),
        # shapes
        *("alias", "cat", "chunk", "clone", "contiguous", "detach", "expand", "flatten"),
        *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze"),
        *("stack", "sym_size", "t", "to", "transpose", "unsqueeze", "view"),
    )
)
"""Of ATen's, those that networks of images are made of; in place, too. None reads or writes beyond
its tensors, or changes a setting of torch's."""
NESTING = {
    "in_spec": '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": '
    '"builtins.tuple", "context": "null", "children_spec": [{"type": null, "context": null, '
    '"children_spec": []}]}, {"type": "builtins.dict", "context": "[]", "children_spec": []}]}]',
    "out_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
}
"""How arguments and answers are nested in a network of one tensor to one tensor."""


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

    def open(self, file: Path, *, network: nn.Module, threads: int = 1) -> Answers:
        """The program, of which nothing but a graph of ATen's operators is read; see `Format`."""
        with file.open("rb") as opened:
            if opened.read(4) != b"PK\x03\x04":
                raise UserError(f"{file} is no program of torch.export's")
        check_archive(file)
        try:
            cleaned = _without_code(file)
            with quiet():
                program = torch.export.load(cleaned).module()
        except (UserError, OSError):
            raise
        except Refused as reason:
            told = f"{file} was refused: it holds {reason}, more than a network needs"
            raise UserError(told) from None
        except Exception as error:  # a damaged file can fail in any way
            told = f"{first_line(error):.200}"
            raise UserError(f"{file} is no program of torch.export's ({told})") from None

        def answers(x: Tensor) -> Tensor:
            def answer() -> Tensor:
                with torch.no_grad():
                    logits: Tensor = program(x.clone())  # what it may write into
                return logits

            return answered(file, answer, x)

        return answers


class Refused(Exception):  # noqa: N818  (a reason)
    """What a file holds that a network does not need."""


def _without_code(file: Path) -> io.BytesIO:
    """The same program as an archive that holds data alone.

    Raises:
        Refused: it holds more than a network needs.
    """
    kept = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(kept, "w") as out:
        records = archive.infolist()
        names = [record.filename for record in records]
        if len({name.partition("/")[0] for name in names}) > 1 or len(set(names)) < len(names):
            raise Refused("several programs, or one twice")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise Refused("compressed records")
        for record in records:
            folder, _, place = record.filename.partition("/")
            if place.startswith("extra/"):
                continue
            content = b"" if place == PICKLED else archive.read(record)
            if place in CONFIGS:
                inner = place.rpartition("/")[0]
                for entry in json.loads(content)["config"].values():
                    _check_tensor(archive, f"{folder}/{inner}", inner, entry)
            elif place == GRAPH:
                content = json.dumps(_plain_graph(json.loads(content))).encode()
            elif place != PICKLED and place not in MARKS and not RAW.fullmatch(place):
                raise Refused(f"{place!r}")
            out.writestr(record.filename, content)
    kept.seek(0)
    return kept


def _check_tensor(archive: zipfile.ZipFile, folder: str, place: str, entry: dict[str, Any]) -> None:
    """See that a tensor is raw bytes of the archive, all of them and no more.

    Args:
        archive: opened.
        folder: where its bytes are.
        place: the same without the program's name.
        entry: what is said of it.

    Raises:
        Refused: it is not.
    """
    if entry.get("use_pickle") is not False or "tensor_meta" not in entry:
        raise Refused("pickled tensors")
    if not RAW.fullmatch(f"{place}/{entry['path_name']}"):
        raise Refused("tensors of another place")
    size = archive.getinfo(f"{folder}/{entry['path_name']}").file_size
    if not _is_whole(entry["tensor_meta"], size):
        raise Refused("tensors larger than their bytes")


def _is_whole(meta: dict[str, Any], size: int) -> bool:
    """Whether a tensor is as large as its bytes: one that repeats them may have any size."""
    count = math.prod(int(part["as_int"]) for part in meta["sizes"])
    return int(meta["storage_offset"]["as_int"]) == 0 and (
        size == count == 0 or (count > 0 and size % count == 0 and size // count in (1, 2, 4, 8))
    )


def _plain_graph(model: dict[str, Any]) -> dict[str, Any]:
    """A graph without what was noted beside it, every text of it seen.

    Raises:
        Refused: a text is more than a name, or an operator is none of those that are known.
    """
    model["guards_code"] = []  # source code, by which sizes are checked
    model["torch_version"] = ""
    module = model["graph_module"]
    module["metadata"], module["treespec_namedtuple_fields"] = {}, {}
    # The nesting names classes to import.
    signature = {**module["module_call_graph"][0]["signature"], **NESTING}
    module["module_call_graph"] = [{"fqn": "", "signature": signature}]
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}
        operator = OPERATOR.fullmatch(node["target"])
        if operator is None or operator[1] not in OPERATORS:
            raise Refused(f"the operator {node['target']!r:.100}")
    for key, text in _texts(model, ""):
        if key in NESTING:
            continue
        if text in ("as_graph", "as_operator"):  # keys of arguments that are code themselves
            raise Refused(f"the argument {text!r:.100}")
        form = EXPRESSION if key == "expr_str" else NAME
        if not form.fullmatch(text):
            raise Refused(f"the text {text!r:.100}")
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
