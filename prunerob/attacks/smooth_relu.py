"""Gradients through ReLUs that are off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

RELUS = frozenset({torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu_})
"""The functions that networks call for a ReLU; `nn.ReLU` is one of them."""


@contextmanager
def smooth_relus(temperature: float) -> Iterator[None]:
    """Let gradients through ReLUs as if they were softplus, while this lasts.

    Outputs stay those of ReLU; its derivative at z becomes sigmoid(z / temperature), so that a unit
    that is off passes some gradient on (backward pass differentiable approximation: Athalye et al.,
    arXiv:1802.00420).

    Args:
        temperature: in the units of what goes into the ReLUs; 0 for ReLU's own derivative.
    """
    if not temperature:
        yield
        return
    with _SmoothReLUs(temperature):
        yield


def check_temperature(attack: object, temperature: float) -> None:
    """Refuse a temperature below 0, or none.

    Args:
        attack: whose setting it is.
        temperature: the setting.

    Raises:
        ValueError: it is.
    """
    if not 0 <= temperature < math.inf:
        name = type(attack).__name__
        raise ValueError(f"relu_temperature of {name}: {temperature} is not 0 or a number above")


class _SmoothReLUs(TorchFunctionMode):
    """Replaces ReLUs, wherever a network calls one."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in RELUS or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        x = args[0] if args else (kwargs or {})["input"]
        return _SmoothReLU.apply(x, self.temperature)


class _SmoothReLU(torch.autograd.Function):
    """ReLU with softplus' derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.temperature = temperature
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(x / ctx.temperature), None
