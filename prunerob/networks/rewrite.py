"""Exact rewrites: the same logits and gradients, computed faster, for the inner loop of attacks.

An attack asks a network for one gradient after another, with respect to the same images and with
the same weights. So it pays to lay both out once, before the loop, in the way that the machine's
kernels like best. L-infinity attacks do not care about the order of pixels: signs, sums and clamps
go pixel by pixel, so the whole loop runs in the rewrite's layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, cast

import torch
from torch import Tensor, nn


class Rewrite(nn.Module, ABC):
    """A network's function, with its present weights, of images in a layout of its own.

    It is made for one attack and then forgotten; it gives no gradients to the network's weights.
    """

    @abstractmethod
    def pack(self, x: Tensor) -> Tensor:
        """Lay out images, float, (B, C, H, W), as (B, ...): every pixel once; added ones are 0."""

    @abstractmethod
    def unpack(self, packed: Tensor) -> Tensor:
        """Undo `pack`: images, float, (B, C, H, W), contiguous."""

    @abstractmethod
    def forward(self, packed: Tensor) -> Tensor:
        """Logits, float, (B, classes), of packed images: those of the network up to rounding."""


class Rewritable(Protocol):
    """A network that knows an exact rewrite of itself."""

    def rewrite(self, shape: torch.Size) -> Rewrite | None:
        """Lay out the present weights; called once per attack, in evaluation mode.

        Args:
            shape: of the images, (C, H, W).

        Returns:
            the rewrite; None if there is none for such images, or for the network as it is.
        """
        ...


class AsItIs(Rewrite):
    """The plain path of a network without a rewrite: only its images' layout is chosen.

    Channels-last, as the gradients of channels-last networks come; but plain for a network without
    such weights: its code may ask for it, as `view` does.

    Args:
        network: any network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.layout = layout_of(network)

    def pack(self, x: Tensor) -> Tensor:
        """Lay out images."""
        return x.contiguous(memory_format=self.layout) if x.dim() == 4 else x

    def unpack(self, packed: Tensor) -> Tensor:
        """Undo `pack`."""
        return packed.contiguous()

    def forward(self, packed: Tensor) -> Tensor:
        """Ask the network."""
        logits: Tensor = self.network(packed)
        return logits


def layout_of(network: nn.Module) -> torch.memory_format:
    """The layout of a network's convolutions: channels-last, if any has it alone."""
    is_channels_last = any(
        weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        for weight in network.parameters()
        if weight.dim() == 4
    )
    return torch.channels_last if is_channels_last else torch.contiguous_format


def survives_channels_last(network: nn.Module) -> bool:
    """Whether oneDNN's training of a channels-last network stays within its memory.

    With AVX2 alone, the gradient of a 1x1 convolution that takes steps and reads fewer than 8
    channels writes past its workspace: the process ends, hangs or learns wrong weights
    (uxlfoundation/oneDNN, issue 6035). All processors avoid it, so that they train alike.

    Args:
        network: with its convolutions, of any layout.
    """
    return not any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and module.in_channels < 8
        for module in network.modules()
    )


def rewrite(network: nn.Module, shape: torch.Size) -> Rewrite:
    """The fastest known form of a network for an attack.

    A network's own rewrite is taken if it speaks for the `forward` in use: not where a subclass or
    the object itself has another `forward`, nor where hooks listen to the modules that a rewrite
    passes by.

    Args:
        network: any network, or a rewrite, which is taken as it is.
        shape: of the images, (C, H, W).
    """
    if isinstance(network, Rewrite):
        return network
    if has_own_rewrite(network):
        return cast(Rewritable, network).rewrite(shape) or AsItIs(network)
    return AsItIs(network)


def has_own_rewrite(network: nn.Module) -> bool:
    """Whether a rewrite is known that speaks for the network as it is; or whether it is one."""
    if isinstance(network, Rewrite):
        return type(network) is not AsItIs
    bases = type(network).__mro__
    computing = next(i for i, base in enumerate(bases) if "forward" in vars(base))
    rewriting = next((i for i, base in enumerate(bases) if "rewrite" in vars(base)), len(bases))
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    return rewriting <= computing and "forward" not in vars(network) and not hooked
