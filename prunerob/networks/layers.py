"""Layers whose channels can be taken out: of which kind they are, and their sizes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def is_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution, but no transposed one, whose weights stand otherwise."""
    return isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)


def is_normalisation(module: nn.Module) -> bool:
    """Whether it normalises channel by channel: BatchNorm or InstanceNorm."""
    return isinstance(module, _NormBase)


def is_layer(module: nn.Module) -> bool:
    """Whether it is a convolution, a linear layer or a normalisation."""
    return is_convolution(module) or isinstance(module, nn.Linear) or is_normalisation(module)


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution with one filter for each channel, which reads that one alone."""
    return (
        isinstance(module, _ConvNd)
        and is_convolution(module)
        and 1 < module.groups == module.in_channels == module.out_channels
    )


def set_sizes(module: nn.Module) -> None:
    """Tell a layer the sizes of its new tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvNd):
        if is_depthwise(module):
            module.groups = len(module.weight)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _NormBase):
        module.num_features = len(module.running_mean if module.weight is None else module.weight)


def is_as_named(module: nn.Module) -> bool:
    """Whether a layer does what torch's does, as far as channels are concerned.

    torch's own do. A subclass is asked: without channels that are 0 it must answer as with them,
    which it does not where, say, weights are standardised over the channels that they read.

    Args:
        module: a layer (`is_layer`).
    """
    own = {name for name, value in module._parameters.items() if value is not None}
    expected = {"weight", "bias"} if isinstance(module, _ConvNd | nn.Linear) else own
    weighs = isinstance(module, _ConvNd | nn.Linear)
    if own - expected or (weighs and "weight" not in own):
        return False  # computed from something else, as by parametrisations
    if type(module).__module__.startswith("torch.nn.modules."):
        return True
    try:
        return _answers_without_channels(module)
    except Exception:  # somebody's own class may fail in any way
        return False


@torch.no_grad()
def is_silent(module: nn.Module) -> bool:
    """Whether a channel whose weights are all 0 comes out of a layer as 0.

    Args:
        module: a layer that is as named.
    """
    if type(module).__module__.startswith("torch.nn.modules."):
        return not isinstance(module, _NormBase) or module.affine or module.running_mean is None
    masked, x = _randomised(module)
    for value in masked.parameters(recurse=False):
        value.zero_()
    return not bool(masked(x).any())


@torch.no_grad()
def _answers_without_channels(module: nn.Module) -> bool:
    """Whether every other channel can be taken out of what a layer reads and gives."""
    masked, x = _randomised(module)
    narrow = copy.deepcopy(masked)
    served = is_depthwise(module) or is_normalisation(module)
    for name, value in [*masked.named_parameters(), *masked.named_buffers()]:
        if value.dim() == 0 or "." in name:
            continue
        part = value[::2]
        if isinstance(value, nn.Parameter):
            value[1::2] = 0
            if name == "weight" and not served:
                value[:, 1::2] = 0
                part = part[:, ::2]
            part = nn.Parameter(part.clone())
        setattr(narrow, name, part)
    set_sizes(narrow)
    wide: Tensor = masked(x)
    return torch.allclose(narrow(x[:, ::2]), wide[:, ::2], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def _randomised(module: nn.Module) -> tuple[nn.Module, Tensor]:
    """A copy of a layer with weights drawn anew, in float64, and something that it can read."""
    layer, draws = copy.deepcopy(module).cpu().double().eval(), torch.Generator().manual_seed(0)
    for value in [*layer.parameters(), *layer.buffers()]:
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=draws, dtype=torch.float64) + 0.5)
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (layer.in_features,)
    elif isinstance(layer, _ConvNd):
        reach = zip(layer.kernel_size, layer.dilation, strict=True)
        shape = (layer.in_channels, *((size - 1) * step + 4 for size, step in reach))
    else:
        assert isinstance(layer, _NormBase)
        dims = {"1": 1, "3": 3}.get("".join(filter(str.isdigit, type(layer).__name__)), 2)
        shape = (layer.num_features, *(4,) * dims)
    return layer, torch.rand((2, *shape), generator=draws, dtype=torch.float64) - 0.5
