"""Recorded attacks: what a replay computes is what the loop would.

A stand-in records and replays on the CPU as a CUDA graph does on a GPU: every operation with the
tensors that it had, none of Python's decisions, and nothing is computed while it records. Whether
CUDA does the same is asked where there is a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunerob.attacks import PGD
from prunerob.attacks.attack import has_bfloat16
from prunerob.attacks.replay import MOST, RECORDERS, Replay, _kept
from prunerob.networks import MnistCNN, ResNet18, WideResNet
from prunerob.pixels import Pixels

ATTACK = PGD(steps=3, cuda_graph=True)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "MnistCNN": (MnistCNN, (1, 28, 28)),
    "WRN-10-1": (lambda: WideResNet(10, 1), (3, 32, 32)),
    "ResNet-18": (lambda: ResNet18(4), (3, 32, 32)),
}

PRECISIONS = ["float32", *["bfloat16"] * has_bfloat16("cpu")]


class Tape(TorchDispatchMode):
    """All operations below autograd and autocast, each with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], list[Tensor], list[bool]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {memory(value) for value in tensors(args, kwargs)}
        results = tensors(result)
        self.calls.append((func, args, kwargs, results, [memory(r) not in given for r in results]))
        return result

    def forget(self) -> None:
        """As after recording a CUDA graph: nothing of it has been computed."""
        for *_, results, fresh in self.calls:
            for result, own in zip(results, fresh, strict=True):
                if own and result.is_floating_point():
                    result.detach().fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all once more, into the same memory."""
        for func, args, kwargs, results, fresh in self.calls:
            again = tensors(func(*args, **kwargs))
            for result, own, value in zip(results, fresh, again, strict=True):
                if own:
                    result.copy_(value)


def tensors(*found: Any) -> list[Tensor]:
    return [value for value in tree_leaves(found) if isinstance(value, Tensor)]


def memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """The tapes recorded so far, with recording on."""
    made: list[Tape] = []

    def record(
        run: Callable[[], tuple[Tensor, ...]], device: torch.device
    ) -> tuple[Replay, tuple[Tensor, ...]]:
        tape = Tape()
        with tape:
            outputs = run()
        tape.forget()
        made.append(tape)
        return tape.replay, outputs

    monkeypatch.setitem(RECORDERS, "cpu", record)
    yield made
    _kept.clear()


def batch(shape: tuple[int, int, int], seed: int, size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(size, *shape, generator=generator)
    return x, torch.randint(10, (size,), generator=generator)


def train(network: nn.Module, seed: int) -> None:
    """Change all weights in place, and what BatchNorm remembers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            if value.is_floating_point():
                factor = 1 + 0.2 * torch.rand(value.shape, generator=generator)
                value.mul_(factor.to(value.device))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_replay_is_the_loop(tapes: list[Tape], name: str, precision: Any) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    attack = replace(ATTACK, precision=precision)
    plain = replace(attack, cuda_graph=False)
    found, expected = [], []
    for call in range(4):
        x, y = batch(shape, call)
        found.append(attack(network, x, y))
        expected.append(plain(network, x, y))
        assert len(tapes) == (call > 0)
        train(network, call)
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_a_replay_keeps_out_of_the_caller_s_mixed_precision(tapes: list[Tape]) -> None:
    """Neither meets weights that the other has cast."""
    network = WideResNet(10, 1).eval()
    for call in range(4):
        x, y = batch((3, 32, 32), call)
        with torch.autocast("cpu", torch.bfloat16):
            before = network(x)
            x_adv = ATTACK(network, x, y)
            assert torch.equal(network(x), before)
        assert torch.equal(x_adv, replace(ATTACK, cuda_graph=False)(network, x, y))
        train(network, call)
    assert len(tapes) == 1


def test_images_with_an_eps_of_their_own(tapes: list[Tape]) -> None:
    network = MnistCNN()
    for call in range(4):
        x, y = batch((1, 28, 28), call)
        eps = torch.linspace(0, 0.1 * (call + 1), len(x))
        expected = replace(ATTACK, cuda_graph=False)(network, x, y, eps=eps)
        assert torch.equal(ATTACK(network, x, y, eps=eps), expected)
    assert len(tapes) == 1


def test_restarts_and_searches(tapes: list[Tape]) -> None:
    torch.manual_seed(0)
    network = MnistCNN()
    attack = replace(ATTACK, eps=Pixels(0.02), steps=11, restarts=2)
    plain = replace(attack, cuda_graph=False)
    x, y = batch((1, 28, 28), 0, size=40)
    with torch.no_grad():
        y[::2] = network(x[::2]).argmax(1)
    key = torch.arange(len(y))
    for _ in range(3):
        assert torch.equal(attack(network, x, y), plain(network, x, y))
    found = attack.fools(network, x, y, key=key, batch_size=8)
    assert torch.equal(found, plain.fools(network, x, y, key=key, batch_size=8))
    assert tapes


def test_what_a_recording_cannot_follow_is_not_replayed(tapes: list[Tape]) -> None:
    network = MnistCNN()
    x, y = batch((1, 28, 28), 0)
    for _ in range(3):
        ATTACK(nn.Sequential(network), x, y)
    assert not tapes, "no rewrite says what a container computes"

    for _ in range(3):
        ATTACK(network, x, y)
    calls = []
    hook = network.conv1.register_forward_hook(lambda *_: calls.append(0))
    ATTACK(network, x, y)
    assert len(calls) == ATTACK.steps
    hook.remove()

    network.conv2 = Waits(network.conv2)
    for _ in range(3):
        ATTACK(network, x, y)
    assert len(tapes) == 1

    network = WideResNet(10, 1)
    x, y = batch((3, 32, 32), 0)
    for number, change in enumerate((lambda _: None, new_weight, another_eps, another_module)):
        change(network)
        for _ in range(3):
            expected = replace(ATTACK, cuda_graph=False)(network, x, y)
            assert torch.equal(ATTACK(network, x, y), expected)
        assert len(tapes) == 2 + number


class Waits(nn.Module):
    """A layer that reads a value from the device."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        assert float(x.detach().mean()) < torch.inf
        return cast(Tensor, self.layer(x))


class Negative(nn.Linear):
    """A layer of the same weights that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def new_weight(network: WideResNet) -> None:
    network.linear.weight = nn.Parameter(-network.linear.weight.detach())


def another_eps(network: WideResNet) -> None:
    network.bn.eps = 10.0


def another_module(network: WideResNet) -> None:
    negative = Negative(*network.linear.weight.shape[::-1])
    negative.weight, negative.bias = network.linear.weight, network.linear.bias
    network.linear = negative


def test_images_of_a_graph_leave_nothing_behind(tapes: list[Tape]) -> None:
    network = MnistCNN()
    x, y = batch((1, 28, 28), 0)
    for _ in range(3):
        x_adv = ATTACK(network, x.requires_grad_() * 1, y)
        assert not x_adv.requires_grad
    (kept,) = _kept.values()
    (recording,) = kept.recorded.values()
    assert not any(value.requires_grad for value in (*recording.inputs, *recording.outputs))


def test_anomalies_are_looked_for_in_the_loop_itself(tapes: list[Tape]) -> None:
    network = MnistCNN()
    with torch.autograd.set_detect_anomaly(True):  # type: ignore[no-untyped-call]
        for call in range(3):
            ATTACK(network, *batch((1, 28, 28), call))
    assert not tapes


def test_recordings_are_few_and_go_with_their_network(tapes: list[Tape]) -> None:
    network = MnistCNN(filters=(2, 2, 2))
    for _ in range(2):
        for size in range(1, MOST + 3):
            ATTACK(network, *batch((1, 28, 28), 0, size))
    assert len(tapes) == MOST
    assert len(_kept) == 1
    tapes.clear()
    del network
    gc.collect()
    assert not _kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks CUDA")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_cuda_graph_is_the_loop(name: str, precision: Any) -> None:
    make, shape = NETWORKS[name]
    network = make().cuda()
    attack = replace(ATTACK, precision=precision)
    for call in range(4):
        x, y = (value.cuda() for value in batch(shape, call, size=64))
        new = attack(network, x, y)
        old = replace(attack, cuda_graph=False)(network, x, y)
        assert (new != old).float().mean() < 0.01  # cuDNN may choose another kernel
        train(network, call)
