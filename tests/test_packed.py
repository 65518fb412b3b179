"""Packed weights: the same to the bit, smaller, and refused where they are damaged."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.pruning import weight_magnitude
from prunerob.pruning.masks import apply_masks, make_masks
from prunerob.runs.folder import load_weights
from prunerob.runs.packed import FIELDS, PARTS, WORTH_SPLITTING, pack, unpack


@given(
    st.lists(st.integers(0, 4), max_size=4) | st.just([3, 2, WORTH_SPLITTING]),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_what_is_unpacked_is_what_was_packed(
    shape: list[int], share: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator)
    value[torch.rand(shape, generator=generator) < share] = 0
    value[torch.rand(shape, generator=generator) < 0.1] = -0.0
    value[torch.rand(shape, generator=generator) < 0.01] = -torch.inf
    value[torch.rand(shape, generator=generator) < 0.01] = 1e-42
    weights = {"a.weight": value.to(dtype), "b.bias": torch.ones(2)}
    found = unpack(pack(weights))
    assert found.keys() == weights.keys()
    for name, expected in weights.items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)
        assert torch.equal(found[name].signbit(), expected.signbit())


def test_a_pruned_network_loads_from_a_small_file(network: MnistCNN, tmp_path: Path) -> None:
    apply_masks(network, make_masks(network, weight_magnitude(network, 0), 0.98))
    file = tmp_path / "packed.safetensors"
    save_file(pack(network.state_dict()), file)
    assert file.stat().st_size < 38_000
    other = MnistCNN()
    load_weights(other, file)
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize("part", [*PARTS, *FIELDS])
def test_damage_is_told(part: str) -> None:
    stored = pack({"w": torch.zeros(10, 10), "v": torch.ones(WORTH_SPLITTING)})
    name = next(name for name in stored if name.endswith(part))
    for damage in (None, torch.ones(3), torch.ones(1, dtype=torch.uint8), torch.tensor([7])):
        broken: dict[str, Tensor] = {k: v for k, v in stored.items() if k != name}
        if damage is not None:
            broken[name] = damage
        with pytest.raises(UserError, match=f"packed weights of {name[0]} are damaged"):
            unpack(broken)


def test_a_file_does_not_unpack_to_more_than_memory() -> None:
    stored = pack({"w": torch.zeros(10, 10)})
    for sizes in ([2**40, 2**10], [2**62, 4], [2**33]):
        stored["w.packed.shape"] = torch.tensor(sizes)
        with pytest.raises(UserError, match="packed weights of w are damaged"):
            unpack(stored)
    stored = pack({"v": torch.ones(WORTH_SPLITTING)})
    bomb = bytearray(zlib.compress(bytes(10**7)))
    stored["v" + FIELDS[0]] = torch.frombuffer(bomb, dtype=torch.uint8)
    with pytest.raises(UserError, match="packed weights of v are damaged"):
        unpack(stored)
