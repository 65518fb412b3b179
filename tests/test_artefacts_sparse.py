"""Zeros left out of ONNX files: what is put back is the same to the bit, and as fast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunerob
from prunerob.artefacts.format import Source
from prunerob.artefacts.onnx import Onnx
from prunerob.artefacts.sparse import WIDTHS, Gaps, encode, leave_out_zeros, smallest
from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.pruning import lamp


def decoded(gaps: Gaps, count: int) -> Tensor:
    """What the codes say, read one after another."""
    skip, place, values, whole = 2**gaps.width - 1, -1, gaps.values.tolist(), torch.zeros(count)
    for byte in gaps.codes.tolist():
        for shift in range(0, 8, gaps.width):
            code = (byte >> shift) & skip
            place += code + (code < skip)
            if code < skip:
                whole[place] = values.pop(0)
    assert not values
    return whole


@given(st.lists(st.integers(0, 3), min_size=1, max_size=400), st.sampled_from([1, *WIDTHS]))
def test_gaps_say_where_every_value_lies(draws: list[int], width: int) -> None:
    tensor = torch.tensor([max(0, draw - 2) * (i + 1) for i, draw in enumerate(draws)]).float()
    if tensor.count_nonzero():
        assert torch.equal(decoded(encode(tensor, width), len(draws)), tensor)


def test_long_gaps_and_both_ends() -> None:
    tensor = torch.zeros(3000, dtype=torch.int8)
    tensor[[0, 700, 2999]] = torch.tensor([5, -128, 127], dtype=torch.int8)
    for width in WIDTHS:
        assert torch.equal(decoded(encode(tensor, width), 3000), tensor.float())
    short = smallest(tensor)
    assert short is not None
    assert short.bytes < 50
    assert smallest(torch.ones(3000)) is None
    assert smallest(torch.zeros(3000)) is None


def sparse_network() -> nn.Module:
    torch.manual_seed(0)
    network = MnistCNN()
    prunerob.prune(network, 0.9, criterion=lamp)
    return network.eval()


def test_a_file_without_zeros_answers_the_same_bits_with_the_same_operators(tmp_path: Path) -> None:
    source = Source.of(sparse_network(), torch.Size((1, 28, 28)), {}, {"prunerob": "a test"})
    file, sparse = tmp_path / "model.onnx", tmp_path / "model.sparse.onnx"
    Onnx().write(source, file)
    leave_out_zeros(file, sparse)
    assert sparse.stat().st_size < 0.2 * file.stat().st_size
    x = torch.rand(9, 1, 28, 28)
    assert torch.equal(
        Onnx().open(sparse, network=MnistCNN())(x), Onnx().open(file, network=MnistCNN())(x)
    )
    operators = []
    for place in (file, sparse):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
        operators.append([node.op_type for node in graph.node])
    assert operators[0] == operators[1]


def test_operators_that_are_too_old_are_told(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph([node], "old", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), str(tmp_path / "old.onnx"))
    with pytest.raises(UserError, match=r"--sparse: .* has operators of version \[13\]; 18"):
        leave_out_zeros(tmp_path / "old.onnx", tmp_path / "new.onnx")


def test_a_tensor_of_no_zeros_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = Source.of(MnistCNN().eval(), torch.Size((1, 28, 28)), {}, {})
    file, sparse = tmp_path / "model.onnx", tmp_path / "model.sparse.onnx"
    Onnx().write(source, file)
    leave_out_zeros(file, sparse)
    tensors = [
        {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(str(f)).graph.initializer}
        for f in (file, sparse)
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
