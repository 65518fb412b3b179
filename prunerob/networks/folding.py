"""Folding a BatchNorm into the convolution before it: in evaluation mode both are linear."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def can_fold(conv: nn.Module, bn: nn.Module) -> bool:
    """Whether `FoldedConvolution` stands for these two: neither is a class of another's making."""
    return (
        type(conv) is nn.Conv2d
        and type(bn) is nn.BatchNorm2d
        and bn.running_mean is not None
        and (conv.bias, conv.padding_mode) == (None, "zeros")
        and (conv.dilation, conv.groups) == ((1, 1), 1)
        and conv.padding == (conv.kernel_size[0] // 2,) * 2
    )


class FoldedConvolution(nn.Module):
    """A convolution in evaluation mode with the BatchNorm behind it folded into it.

    Args:
        conv: the convolution, without bias.
        bn: its normalisation.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        assert bn.running_mean is not None
        assert bn.running_var is not None
        self.weight, self.bias = fuse_conv_bn_weights(
            conv.weight, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        self.stride, self.padding = conv.stride, cast(tuple[int, int], conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features, float, (B, inputs, H, W)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
