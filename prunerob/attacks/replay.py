"""Recorded once, replayed for each batch: an attack's loop as one CUDA graph.

A step of an attack on a small network is dozens of kernels, each done before Python has launched
the next. A CUDA graph holds all kernels of all steps, with their arguments, and is launched as one.
A replay does what was recorded, at the same addresses: so the inputs are copied to where the
recording read its own, the weights are those of the moment, which training changes in place, and
nothing that Python decided is decided again. What Python's decisions hang on is therefore part of
a recording's key, and only networks are recorded whose rewrite says what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prunerob.networks.rewrite import has_own_rewrite

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
    and the network's weights are where they were.

    Args:
        loop: what to compute. Its results are read from the tensors alone that it is given, and
            from the network's weights.
        network: on whose device to compute; one without a rewrite is not recorded.
        arguments: of the loop: tensors, and hashable settings.

    Returns:
        the loop's tensors, of no graph.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    record = RECORDERS.get(tensors[0].device.type)
    if record is None or not has_own_rewrite(network):
        return loop(network, *arguments)
    weights = tuple(
        (value.data_ptr(), value.stride()) for value in (*network.parameters(), *network.buffers())
    )
    kept = _kept.get(network)
    if kept is None or kept.weights != weights:
        kept = _kept[network] = _Recordings(weights)
    kind: Hashable = (loop, *map(_kind, arguments))
    if kind not in kept.recorded:
        if kind not in kept.seen or len(kept.recorded) == MOST:
            kept.seen.add(kind)
            return loop(network, *arguments)
        kept.recorded[kind] = _Recording.of(record, loop, network, arguments)
    return kept.recorded[kind](tensors)


@dataclass
class _Recordings:
    """What is kept of a network while its weights are where they are."""

    weights: Hashable
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
        own = [value.clone() if isinstance(value, Tensor) else value for value in arguments]

        def run() -> tuple[Tensor, ...]:
            # Weights that autocast has cast before are no part of the recording, and those that it
            # casts here hold values only while it is replayed: neither may meet the other.
            torch.clear_autocast_cache()
            try:
                return loop(network, *own)
            finally:
                torch.clear_autocast_cache()

        replay, outputs = record(run)
        return cls([value for value in own if isinstance(value, Tensor)], outputs, replay)

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


Recorder = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[Replay, tuple[Tensor, ...]]]
"""From a function without arguments to its replay and where that leaves its results."""


def record_cuda_graph(
    run: Callable[[], tuple[Tensor, ...]],
) -> tuple[Replay, tuple[Tensor, ...]]:
    """Record a function's kernels as a CUDA graph.

    Args:
        run: launches the kernels; called twice.

    Returns:
        the graph's launch, on the current stream, and the tensors that it leaves its results in.
    """
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries choose their kernels and allocate before recording
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # "thread_local": other threads, as that which watches over NCCL, may go on calling CUDA.
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
        outputs = run()
    return graph.replay, outputs


@cache
def _pool() -> Any:
    """One memory for all graphs: they run one after the other, and their results are copied."""
    return torch.cuda.graph_pool_handle()


RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}
"""By type of device; where there is none, nothing is recorded."""
