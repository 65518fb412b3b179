"""Operations: what those of torch do to channels, by name, as far as that is known."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


def _named(names: str) -> frozenset[str]:
    return frozenset(names.split())


POINTWISE = _named(
    "abs celu ceil clamp clamp_max clamp_min clip clone contiguous cos detach double elu erf exp "
    "expm1 float floor gelu half hardshrink hardsigmoid hardswish hardtanh leaky_relu log log1p "
    "logit logsigmoid mish nan_to_num neg pos pow reciprocal relu relu6 round rrelu rsqrt selu "
    "sigmoid sign silu sin softplus softshrink softsign sqrt square tanh tanhshrink threshold to "
    "trunc type"
)
"""What is done to each number by itself."""

DROPOUT = _named(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout "
    "stochastic_depth"
)
"""What leaves numbers alone, or makes them 0."""

POOLINGS = frozenset(
    {
        f"{kind}{dims}d"
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
        for dims in (1, 2, 3)
    }
    | {"interpolate", "upsample"}
)
"""What goes over each channel's pixels by itself, and leaves the number of dimensions."""

MEANS = _named("amax amin mean sum")
"""What takes dimensions together."""

SUMS = _named("add sub subtract maximum minimum")
"""What two values with the same channels go into, one by one."""

PRODUCTS = _named("mul multiply")
QUOTIENTS = _named("truediv div divide")
CONCATENATIONS = _named("cat concat concatenate")
RESHAPES = _named("flatten view reshape squeeze unsqueeze getitem expand_as")
SIZES = _named("size dim getattr")

_KNOWN = (
    *(POINTWISE | DROPOUT | POOLINGS | MEANS | SUMS | PRODUCTS | QUOTIENTS),
    *(CONCATENATIONS | RESHAPES | SIZES),
)
_NAMES: Mapping[Any, str] = {
    getattr(home, spelled): name
    for home in (operator, torch, F)
    for name in _KNOWN
    for spelled in (name, f"i{name}" if home is operator else f"{name}_")
    if hasattr(home, spelled)
} | {getattr: "getattr"}

_ACTIVATIONS = "torch.nn.modules.activation"
_MIX_CHANNELS = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU)


def name_of(node: fx.Node) -> str:
    """The name of a function or method that a node calls; in place or not."""
    if node.op == "call_method":
        return str(node.target).rstrip("_").lstrip("_")
    target = node.target
    if getattr(target, "__module__", None) == "torchvision.ops.stochastic_depth":
        return "stochastic_depth"
    try:
        known = _NAMES.get(target)
    except TypeError:  # it has no hash
        known = None
    return known or f"{getattr(target, '__name__', target)}()"


def is_in_place(node: fx.Node) -> bool:
    """Whether a node overwrites its first argument."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    name = str(name)
    return (name.endswith("_") and not name.startswith("_")) or node.kwargs.get("inplace") is True


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module of torch does the same to each number by itself."""
    kind = type(module)
    if kind.__module__ == _ACTIVATIONS:
        return not isinstance(module, (*_MIX_CHANNELS, nn.MultiheadAttention, nn.PReLU))
    return kind in (nn.Identity, nn.PReLU)


def goes_by_channel(module: nn.Module) -> bool:
    """Whether a module of torch goes over each channel's pixels by itself, and makes 0 of zeros."""
    kind = type(module)
    if kind.__module__ == "torch.nn.modules.pooling":
        unpools = isinstance(module, nn.MaxUnpool1d | nn.MaxUnpool2d | nn.MaxUnpool3d)
        return not unpools and not getattr(module, "return_indices", False)
    homes = ("torch.nn.modules.dropout", "torch.nn.modules.upsampling")
    return kind.__module__ in homes or kind is nn.Identity


def pads_with_zeros(module: nn.Module) -> bool | None:
    """Whether a padding of torch leaves channels of zeros as they are; None of another module."""
    if type(module).__module__ != "torch.nn.modules.padding":
        return None
    return getattr(module, "value", 0) == 0


def keeps_zero(function: Callable[..., Any], *args: Any, **settings: Any) -> bool:
    """Whether a function of numbers makes 0 of 0."""
    try:
        return not bool(function(torch.zeros(1, 1, 1, 1), *args, **settings).any())
    except Exception:  # what its arguments stand for is known only when it runs
        return False


def keeps_zero_here(node: fx.Node) -> bool:
    """The same of what a node calls, with its settings."""
    args: Sequence[Any] = node.args[1:]
    if any(isinstance(a, fx.Node) for a in (*args, *node.kwargs.values())):
        return False
    if node.op == "call_method":
        target = str(node.target)
        return keeps_zero(lambda x, *a, **k: getattr(x, target)(*a, **k), *args, **node.kwargs)
    assert callable(node.target)
    return keeps_zero(node.target, *args, **node.kwargs)
