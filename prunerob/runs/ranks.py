"""Several processes, one run: what the ranks tell each other. On a single device they are one."""

from __future__ import annotations

import gc
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from prunerob.errors import UserError

T = TypeVar("T")


def ranks() -> int:
    """How many processes run together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def gather(value: T) -> list[T]:
    """What every rank has, in their order; all must ask.

    Args:
        value: this rank's; tensors in it on the CPU.
    """
    if ranks() == 1:
        return [value]
    values: list[Any] = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def destroy_process_group() -> None:
    """End what the ranks have in common, after the last word between them.

    Left to the interpreter's end, gloo's threads can outlive what they need, and a finished run
    ends with an abort (https://github.com/pytorch/pytorch/pull/179291).
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # whatever still refers to it


@contextmanager
def lost_ranks(go_on: str) -> Iterator[None]:
    """Tell in one line that another of several processes has ended.

    Args:
        go_on: the command to go on with.

    Raises:
        UserError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        words = " ".join(str(error).split())
        if ranks() == 1 or not re.search(LOST, words, re.IGNORECASE):
            raise
        sys.stderr.write(f"{words}\n")
        raise UserError(
            f"rank {rank()} lost another process of this run, which may have said why above "
            f"(killed, out of memory, another machine); go on with: {go_on}"
        ) from None


LOST = r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|tcpstore|monitoredbarrier"
"""What the libraries between the ranks say when one is gone."""


def broadcast_object(value: T) -> T:
    """What rank 0 has, on all ranks; all must ask."""
    return gather(value)[0]


@torch.no_grad()
def broadcast_buffers(network: nn.Module) -> None:
    """Give all ranks the buffers of rank 0: each has normalised batches of its own."""
    if ranks() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def rewrap_ddp(trainer: Trainer) -> None:
    """Let DDP reduce the gradients of the parameters that the module has now."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()


def check_agreement(when: str, tensors: Mapping[str, Tensor]) -> None:
    """Stop where ranks differ that must be the same, to the bit.

    Args:
        when: at which moment, for the error.
        tensors: weights or masks, by name.

    Raises:
        UserError: a rank differs from rank 0; on all ranks, with its number and the tensor's name.
    """
    if ranks() == 1:
        return
    first, *others = gather({name: _digest(tensor) for name, tensor in tensors.items()})
    for number, other in enumerate(others, 1):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{when}, rank {number} differs from rank 0 in {name}: their devices or "
                    "libraries are not alike, or something draws from a generator of its own"
                )


def _digest(tensor: Tensor) -> str:
    """A fingerprint of a tensor's shape and bits."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + content).hexdigest()
