"""The three-layer CNN of the paper's MNIST experiments."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from prunerob.networks.channels import Channels


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
