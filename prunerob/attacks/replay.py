"""Recorded once, replayed for each batch: an attack's loop as one CUDA graph.

A step of an attack on a small network is dozens of kernels, each done before Python has launched
the next. A CUDA graph holds all kernels of all steps, with their arguments, and is launched as one.
A replay does what was recorded, at the same addresses: so the inputs are copied to where the
recording read its own, the weights are those of the moment, which training changes in place, and
nothing that Python decided is decided again. What Python's decisions hang on is therefore part of
a recording's key, and only networks are recorded whose rewrite says what they compute.

All replays of a network belong to one thread and one stream.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prunerob.networks.rewrite import AsItIs, has_own_rewrite, rewrite

Loop = Callable[..., tuple[Tensor, ...]]
"""A function of a network, tensors and settings that waits for no value on the device."""

Replay = Callable[[], None]
"""Computes the outputs of a recording once more, from what is in its inputs now."""

MOST = 8
"""Recordings kept of one network: each holds its inputs and outputs on the device."""


def replayed(loop: Loop, network: nn.Module, *arguments: Any) -> tuple[Tensor, ...]:
    """What `loop(network, *arguments)` returns, replayed from its third call of a kind on.

    The first call of a kind runs plainly, for it may be the only one; the second records. Calls are
    of a kind if their tensors have the same shapes and layouts, their other arguments are equal,
    and the network has the same modules with the same settings, and its weights where they were.

    Args:
        loop: what to compute. Its results are read from the tensors alone that it is given, and
            from the network's weights.
        network: on whose device to compute; one without a rewrite is not recorded.
        arguments: of the loop: tensors, the first of them images, (B, C, H, W), and hashable
            settings.

    Returns:
        the loop's tensors, of no graph.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    record = RECORDERS.get(tensors[0].device.type)
    # Anomaly detection reads a value after every kernel of a backward pass.
    if record is None or torch.is_anomaly_enabled() or not has_own_rewrite(network):
        return loop(network, *arguments)
    state = _state(network)
    kept = _kept.get(network)
    if kept is None or kept.state != state:
        kept = _kept[network] = _Recordings(state)
    kind: Hashable = (loop, *map(_kind, arguments))
    if kind in kept.recorded:
        return kept.recorded[kind](tensors)
    full = len(kept.recorded) == MOST
    if kind not in kept.seen or full or _declines(network, tensors[0]):
        kept.seen.add(kind)
        return loop(network, *arguments)
    kept.recorded[kind] = _Recording.of(record, loop, network, arguments)
    return kept.recorded[kind](tensors)


def _state(network: nn.Module) -> Hashable:
    """What a network computes, but for the values of its weights: a recording has it built in."""
    weights = tuple(
        (value.data_ptr(), value.shape, value.stride(), value.dtype)
        for value in (*network.parameters(), *network.buffers())
    )
    modules = tuple(
        (id(module), type(module), *filter(_is_setting, vars(module).values()))
        for module in network.modules()
    )
    return weights, modules


def _declines(network: nn.Module, x: Tensor) -> bool:
    """Whether a network has no rewrite as it is, or for such images, though its class has one."""
    return type(rewrite(network, x.shape[1:])) is AsItIs


def _is_setting(value: object) -> bool:
    """Stride, padding, eps, and the like."""
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return isinstance(value, int | float | str)


@dataclass
class _Recordings:
    """What is kept of a network while it computes the same, but for the values of its weights."""

    state: Hashable
    seen: set[Hashable] = field(default_factory=set)
    recorded: dict[Hashable, _Recording] = field(default_factory=dict)


_kept: WeakKeyDictionary[nn.Module, _Recordings] = WeakKeyDictionary()


@dataclass
class _Recording:
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    replay: Replay

    @classmethod
    def of(
        cls, record: Recorder, loop: Loop, network: nn.Module, arguments: tuple[Any, ...]
    ) -> _Recording:
        own = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
        inputs = [value for value in own if isinstance(value, Tensor)]

        def run() -> tuple[Tensor, ...]:
            # Weights that autocast has cast before are no part of the recording, and those that it
            # casts here hold values only while it is replayed: neither may meet the other.
            torch.clear_autocast_cache()
            try:
                return loop(network, *own)
            finally:
                torch.clear_autocast_cache()

        replay, outputs = record(run, inputs[0].device)
        return cls(inputs, outputs, replay)

    @torch.no_grad()
    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.replay()
        # The next replay writes to the same place, and so may other recordings' kernels.
        return tuple(output.clone() for output in self.outputs)


def _kind(argument: Any) -> Hashable:
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    return cast(Hashable, argument)


Recorder = Callable[
    [Callable[[], tuple[Tensor, ...]], torch.device], tuple[Replay, tuple[Tensor, ...]]
]
"""From a function of no arguments and a device to a replay and where that leaves the results."""


def record_cuda_graph(
    run: Callable[[], tuple[Tensor, ...]], device: torch.device
) -> tuple[Replay, tuple[Tensor, ...]]:
    """Record a function's kernels as a CUDA graph.

    Args:
        run: launches the kernels; called twice.
        device: that it launches them on.

    Returns:
        the graph's launch, on the current stream, and the tensors that it leaves its results in.
    """
    with torch.cuda.device(device):
        place = _place(device)
        # Libraries choose their kernels, and allocate, before recording. Not on the stream that
        # records: what they allocated for that one would not be the graph's, and could go.
        place.aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(place.aside):
            run()
        torch.cuda.current_stream().wait_stream(place.aside)
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # it might free another graph, which is not allowed now
        try:
            with place.recording(graph):
                outputs = run()
        finally:
            if collecting:
                gc.enable()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, outputs


class _Place:
    """What all recordings on the present device share: streams, and memory.

    They run one after the other and their results are copied, so each may use the same memory. A
    small graph that stays keeps it from being given up when no other is left.
    """

    pool: Any = None

    def __init__(self) -> None:
        self.aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.keeper = torch.cuda.CUDAGraph()
        with self.recording(self.keeper):
            self.kept = torch.zeros(1, device="cuda")
        self.pool = self.keeper.pool()

    def recording(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        """The context in which kernels are recorded, not run."""
        # Other threads, as that which watches over NCCL, may go on calling CUDA.
        return torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )


@cache
def _place(device: torch.device) -> _Place:
    return _Place()


RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}
"""By type of device; where there is none, nothing is recorded."""
