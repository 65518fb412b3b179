"""Zeros left out of an ONNX file: its own first nodes put them back when a session begins.

A weight that was pruned one by one costs as many bytes in a file as any other. Here a tensor of
many zeros becomes its values other than 0 and the gaps between them, and standard operators of ONNX
make it whole again. They hang on nothing but what is in the file, so runtimes fold them away when
they open it: the same session, the same speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunerob.artefacts.format import needed
from prunerob.errors import UserError

LEAST = 2000
"""Bytes that a tensor must become smaller by: what the nodes that unpack it take, and some more."""
WIDTHS = (2, 4, 8)
"""Bits in which a gap may be written: those that fill bytes."""
OPSET = 18
"""Of ONNX's own operators, the first that masks bits."""


@dataclass(frozen=True)
class Gaps:
    """Where the values of a tensor lie that are not 0, as distances in codes of a few bits.

    A code below the largest is the number of zeros before the next value. The largest stands for as
    many zeros as it says, and no value.

    Args:
        codes: uint8, (n,), several in each, the first in the lowest bits.
        width: bits of a code.
        values: other than 0, (k,).
    """

    codes: Tensor
    width: int
    values: Tensor

    @property
    def bytes(self) -> int:
        """What it takes in a file."""
        return self.codes.numel() + self.values.numel() * self.values.element_size()


def encode(tensor: Tensor, width: int) -> Gaps:
    """Write a tensor as gaps and values.

    Args:
        tensor: of any shape; at least one element is not 0.
        width: bits of a code: 1, 2, 4 or 8.
    """
    flat = tensor.flatten()
    places = flat.nonzero().flatten()
    skip = 2**width - 1
    zeros = places.diff(prepend=torch.tensor([-1])) - 1
    # Each value's code, behind as many of the largest as its gap asks for.
    ends = (zeros // skip + 1).cumsum(0)
    codes = torch.full((int(ends[-1]),), skip, dtype=torch.uint8)
    codes[ends - 1] = (zeros % skip).to(torch.uint8)
    per_byte = 8 // width
    filled = torch.full((-(-len(codes) // per_byte), per_byte), skip, dtype=torch.uint8)
    filled.view(-1)[: len(codes)] = codes
    shifts = torch.arange(per_byte, dtype=torch.int64) * width
    packed = (filled.long() << shifts).sum(1).to(torch.uint8)
    return Gaps(packed, width, flat[places])


def smallest(tensor: Tensor) -> Gaps | None:
    """The shortest way to write a tensor as gaps; None if all of it as it is takes no more.

    Args:
        tensor: of any shape.
    """
    if not tensor.count_nonzero():
        return None
    gaps = min((encode(tensor, width) for width in WIDTHS), key=lambda gaps: gaps.bytes)
    return gaps if gaps.bytes + LEAST < tensor.numel() * tensor.element_size() else None


def leave_out_zeros(file: Path, to: Path) -> None:
    """Write an ONNX file anew without the zeros of its tensors.

    Args:
        file: in float32 or 8-bit integers.
        to: the copy.

    Raises:
        UserError: its operators are too old, or a package is missing.
    """
    onnx = needed("onnx")
    model = onnx.load(str(file))
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if not versions or versions[0] < OPSET:
        raise UserError(f"--sparse: {file} has operators of version {versions}; {OPSET} is needed")
    graph = model.graph
    unpacking = Unpacking(onnx)
    kept: list[Any] = []
    for initializer in graph.initializer:
        array = onnx.numpy_helper.to_array(initializer)
        is_weight = array.dtype in ("float32", "int8")
        gaps = smallest(torch.from_numpy(array.copy())) if is_weight else None
        if gaps is None:
            kept.append(initializer)
        else:
            unpacking.add(initializer.name, gaps, array.shape)
    nodes = [*unpacking.nodes, *graph.node]
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend([*kept, *unpacking.tensors.values()])
    graph.node.extend(nodes)
    for node in graph.node:
        node.name = ""
    onnx.checker.check_model(model)
    onnx.save(model, str(to))


class Unpacking:
    """The nodes of a graph that make tensors whole again, and what they are made from.

    Args:
        onnx: the package.
    """

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        """By name; a constant that several tensors need is there once."""

    def _given(self, tensor: Tensor, name: str = "") -> str:
        name = name or f"_{tensor.dtype}{tensor.flatten().tolist()}".replace("torch.", "")
        self.tensors.setdefault(name, self._onnx.numpy_helper.from_array(tensor.numpy(), name))
        return name

    def _made(self, operator: str, *inputs: str, called: str = "", **attributes: Any) -> str:
        output = called or f"_{len(self.nodes)}"
        make = self._onnx.helper.make_node
        self.nodes.append(make(operator, list(inputs), [output], **attributes))
        return output

    def add(self, name: str, gaps: Gaps, shape: Sequence[int]) -> None:
        """Unpack one tensor.

        Args:
            name: of the tensor.
            gaps: what it is made of.
            shape: of the tensor.
        """
        given, made = self._given, self._made
        skip, count = 2**gaps.width - 1, math.prod(shape)
        codes = given(gaps.codes[:, None], f"{name}.gaps")
        if gaps.width < 8:
            shifts = torch.arange(0, 8, gaps.width, dtype=torch.uint8)
            codes = made("BitShift", codes, given(shifts), direction="RIGHT")
            codes = made("BitwiseAnd", codes, given(torch.tensor(skip, dtype=torch.uint8)))
        codes = made("Reshape", codes, given(torch.tensor([-1])))
        has_value = made("Less", codes, given(torch.tensor(skip, dtype=torch.uint8)))
        int32 = self._onnx.TensorProto.INT32
        zeros, one = (made("Cast", x, to=int32) for x in (codes, has_value))
        # Compress would be shorter, but is not folded by onnxruntime. So a code without a value
        # writes a 0 where a 0 is, and those that fill the last byte one behind the end.
        none, single, end = (given(torch.tensor(n, dtype=torch.int32)) for n in (0, 1, count))
        ends = made("CumSum", made("Add", zeros, one), none)
        places = made("Min", made("Sub", ends, single), end)
        which = made("Max", made("Sub", made("CumSum", one, none), single), none)
        values = made("Gather", given(gaps.values, f"{name}.values"), which)
        zero = given(torch.zeros(1, dtype=gaps.values.dtype))
        empty = made("Expand", zero, given(torch.tensor([count + 1])))
        whole = made("ScatterElements", empty, places, made("Where", has_value, values, zero))
        whole = made("Slice", whole, given(torch.tensor([0])), given(torch.tensor([count])))
        made("Reshape", whole, given(torch.tensor(list(shape))), called=name)
