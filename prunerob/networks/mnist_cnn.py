"""The three-layer CNN of the paper's MNIST experiments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.networks.channels import Channels
from prunerob.networks.rewrite import Rewrite


class MnistCNN(nn.Module):
    """The paper's MNIST network: three convolutions and a linear layer, 178,986 parameters.

    Kernel/stride/padding of the convolutions are 8/2/3, 6/2/0 and 5/1/0, each followed by ReLU:
    28 -> 14 -> 5 -> 1 pixels. Source: Wang et al., "Adversarial Robustness of Pruned Neural
    Networks" (2018), footnote 1; the "basic CNN" of the cleverhans tutorials at half its width.

    Args:
        filters: number of filters of the three convolutions.
        classes: number of classes.
    """

    def __init__(self, filters: tuple[int, int, int] = (32, 64, 64), classes: int = 10) -> None:
        super().__init__()
        if min(filters) < 1 or classes < 2:
            raise ValueError(f"MnistCNN: needs filters, not {filters}, and classes, not {classes}")
        self.conv1 = nn.Conv2d(1, filters[0], kernel_size=8, stride=2, padding=3)
        self.conv2 = nn.Conv2d(filters[0], filters[1], kernel_size=6, stride=2)
        self.conv3 = nn.Conv2d(filters[1], filters[2], kernel_size=5)
        self.linear = nn.Linear(filters[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: images, float, (B, 1, 28, 28), pixels in [0, 1].

        Returns:
            logits, float, (B, classes).
        """
        x = self.conv1(x).relu()
        x = self.conv2(x).relu()
        x = self.conv3(x).relu()
        logits: Tensor = self.linear(x.flatten(1))
        return logits

    def channels(self) -> Mapping[str, Channels]:
        """Where the output of each convolution goes; see `prunerob.networks.channels`."""
        return {
            "conv1": Channels(readers=("conv2",)),
            "conv2": Channels(readers=("conv3",)),
            "conv3": Channels(readers=("linear",)),
        }

    def rewrite(self, shape: torch.Size) -> PackedMnistCNN | None:
        """The same function of packed images; see `prunerob.networks.rewrite`."""
        layers = {self.conv1: (8, 2, 3), self.conv2: (6, 2, 0), self.conv3: (5, 1, 0)}
        as_built = all(
            type(layer) is nn.Conv2d
            and layer.bias is not None
            and layer.padding_mode == "zeros"
            and (layer.kernel_size, layer.stride) == ((kernel,) * 2, (stride,) * 2)
            and (layer.padding, layer.dilation, layer.groups) == ((padding,) * 2, (1, 1), 1)
            for layer, (kernel, stride, padding) in layers.items()
        )
        as_built &= type(self.linear) is nn.Linear and self.linear.bias is not None
        return PackedMnistCNN(self) if as_built and tuple(shape) == (1, 28, 28) else None


class PackedMnistCNN(Rewrite):
    """MnistCNN on images whose blocks of 4x4 pixels have become 16 channels.

    A convolution of stride 2 with one input channel keeps a processor's vector units idle, above
    all in its input gradient. On blocks there is no stride: two steps of the first convolution are
    one block, so four of its outputs (2x2) see 3x3 blocks and become channels, too. The second
    convolution's 6x6 pixels at stride 2 are then 3x3 blocks of those, and the third's output is a
    single pixel: a matrix product.

    Args:
        network: whose present weights to lay out.
    """

    def __init__(self, network: MnistCNN) -> None:
        super().__init__()
        # Output (a, b) of a 2x2 block begins 2a + 1 rows and 2b + 1 columns into the 12x12 pixels
        # that the block sees: the padding is 3, and the first block begins at 4.
        kernel = network.conv1.weight
        shifted = [
            F.pad(kernel, (2 * b + 1, 3 - 2 * b, 2 * a + 1, 3 - 2 * a))
            for a in (0, 1)
            for b in (0, 1)
        ]
        self.weight1 = _laid_out(F.pixel_unshuffle(torch.stack(shifted, 1).flatten(0, 1), 4))
        self.bias1 = _laid_out(network.conv1.get_parameter("bias").repeat_interleave(4))
        self.weight2 = _laid_out(F.pixel_unshuffle(network.conv2.weight, 2))
        self.bias2 = _laid_out(network.conv2.get_parameter("bias"))
        self.weight3 = _laid_out(network.conv3.weight.permute(0, 2, 3, 1).flatten(1))
        self.bias3 = _laid_out(network.conv3.get_parameter("bias"))
        self.weight4 = _laid_out(network.linear.weight)
        self.bias4 = _laid_out(network.linear.bias)

    def pack(self, x: Tensor) -> Tensor:
        """Images, float, (B, 1, 28, 28), to blocks, (B, 16, 7, 7)."""
        return F.pixel_unshuffle(x, 4).contiguous(memory_format=torch.channels_last)

    def unpack(self, packed: Tensor) -> Tensor:
        """Blocks to images."""
        return F.pixel_shuffle(packed, 4).contiguous()

    def forward(self, packed: Tensor) -> Tensor:
        """Classify packed images."""
        x = F.conv2d(packed, self.weight1, self.bias1, padding=1).relu_()
        x = F.conv2d(x, self.weight2, self.bias2).relu_()
        x = F.linear(x.permute(0, 2, 3, 1).flatten(1), self.weight3, self.bias3).relu_()
        return F.linear(x, self.weight4, self.bias4)


def _laid_out(values: Tensor) -> nn.Parameter:
    """A copy, channels-last; a leaf that asks for gradients, so that autocast casts it once."""
    layout = torch.channels_last if values.dim() == 4 else torch.contiguous_format
    return nn.Parameter(values.detach().clone(memory_format=layout))
