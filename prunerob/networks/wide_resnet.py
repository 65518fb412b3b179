"""Wide residual networks, the CIFAR-10 networks of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prunerob.networks.channels import Channels, Stream
from prunerob.networks.folding import FoldedConvolution, can_fold
from prunerob.networks.normalize import CIFAR10_MEAN, CIFAR10_STD, Normalize
from prunerob.networks.rewrite import AsItIs


class WideBlock(nn.Module):
    """A pre-activation residual block: BatchNorm, ReLU, convolution, twice.

    Args:
        inputs: channels that come in.
        filters: channels that go out, and those between the two convolutions.
        stride: of the first convolution; with it, or with new channels, the shortcut is a 1x1
            convolution of the block's activated input.
    """

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Conv2d(inputs, filters, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features, float, (B, inputs, H, W)."""
        activated = self.bn1(x).relu()
        if self.shortcut is not None:
            x = self.shortcut(activated)
        change: Tensor = self.conv2(self.bn2(self.conv1(activated)).relu())
        return x + change


class WideResNet(nn.Module):
    """A wide residual network (Zagoruyko and Komodakis, arXiv:1605.07146) for 32x32 images.

    Three stages of 16, 32 and 64 filters times the widen factor. WRN-28-4, the paper's network for
    CIFAR-10, has depth 28 and widen factor 4: 5,849,050 parameters.

    Args:
        depth: number of convolutional layers, with n blocks in each of the three stages and a
            shortcut of one layer in each: 6 n + 4.
        widen_factor: width of the stages, in multiples of 16, 32 and 64 filters.
        classes: number of classes.
        mean: of each colour, in pixel units of [0, 1]; by default CIFAR-10's. Their number is that
            of the images' channels.
        std: standard deviation of each colour, in the same units.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 4,
        classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet: depth {depth} is not 10, 16, 22, 28 or so: 6 n + 4")
        if widen_factor < 1 or classes < 2:
            raise ValueError(
                f"WideResNet: needs a widen_factor, not {widen_factor}, and classes, not {classes}"
            )
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(len(mean), 16, 3, padding=1, bias=False)
        self.stage1 = self._stage(depth, 16, widths[0], stride=1)
        self.stage2 = self._stage(depth, widths[0], widths[1], stride=2)
        self.stage3 = self._stage(depth, widths[1], widths[2], stride=2)
        self.bn = nn.BatchNorm2d(widths[2])
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    @staticmethod
    def _stage(depth: int, inputs: int, filters: int, *, stride: int) -> nn.Sequential:
        first = WideBlock(inputs, filters, stride)
        others = [WideBlock(filters, filters, 1) for _ in range((depth - 4) // 6 - 1)]
        return nn.Sequential(first, *others)

    def blocks(self) -> Mapping[str, WideBlock]:
        """All residual blocks, in order, by name."""
        return {
            f"{stage}.{name}": cast(WideBlock, block)
            for stage in ("stage1", "stage2", "stage3")
            for name, block in self.get_submodule(stage).named_children()
        }

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: images, float, (B, C, H, W), pixels in [0, 1].

        Returns:
            logits, float, (B, classes).
        """
        x = self.stem(self.normalize(x))
        return self.classify(self.stage3(self.stage2(self.stage1(x))))

    def classify(self, features: Tensor) -> Tensor:
        """Logits, float, (B, classes), of the last stage's features, float, (B, C, H, W)."""
        logits: Tensor = self.linear(self.bn(features).relu().mean((2, 3)))
        return logits

    def rewrite(self, shape: torch.Size) -> FoldedWideResNet | None:
        """The same function with fewer normalisations; see `prunerob.networks.rewrite`."""
        as_built = all(
            type(block) is WideBlock
            and can_fold(block.conv1, block.bn2)
            and type(block.bn1) is nn.BatchNorm2d  # whose answer may be overwritten
            for block in self.blocks().values()
        )
        return FoldedWideResNet(self) if as_built else None

    def channels(self) -> Mapping[str, Channels]:
        """Where the output of each convolution goes; see `prunerob.networks.channels`.

        The first convolution of a block is read by the second one alone. The stem, the second
        convolutions and the shortcuts write to residual streams: one a stage, and the stem's own
        where the first block has a shortcut.
        """
        channels: dict[str, Channels] = {}
        writers, readers, norms = ["stem"], list[str](), list[str]()
        for name, block in self.blocks().items():
            readers.append(f"{name}.conv1")
            norms.append(f"{name}.bn1")
            channels[f"{name}.conv1"] = Channels(readers=(f"{name}.conv2",), norms=(f"{name}.bn2",))
            if block.shortcut is not None:
                # It reads the old stream and begins a new one.
                readers.append(f"{name}.shortcut")
                channels |= _stream(f"before {name}", writers, readers, norms)
                writers, readers, norms = [f"{name}.shortcut"], [], []
            writers.append(f"{name}.conv2")
        channels |= _stream("last", writers, [*readers, "linear"], [*norms, "bn"])
        order = [name for name, _ in self.named_modules() if name in channels]
        return {name: channels[name] for name in order}


def _stream(
    name: str, writers: Sequence[str], readers: Sequence[str], norms: Sequence[str]
) -> dict[str, Channels]:
    stream = Stream(name=name, readers=tuple(readers), norms=tuple(norms))
    return {writer: Channels(stream=stream) for writer in writers}


class FoldedBlock(nn.Module):
    """WideBlock in evaluation mode, where the second BatchNorm is linear: part of a convolution.

    Args:
        block: in evaluation mode.
    """

    def __init__(self, block: WideBlock) -> None:
        super().__init__()
        self.block = block
        self.inner = FoldedConvolution(block.conv1, block.bn2)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features, float, (B, inputs, H, W)."""
        # In place: what a ReLU comes from is not needed again, and memory is what costs here.
        activated = self.block.bn1(x).relu_()
        if self.block.shortcut is not None:
            x = self.block.shortcut(activated)
        change: Tensor = self.block.conv2(self.inner(activated).relu_())
        return x + change


class FoldedWideResNet(AsItIs):
    """WideResNet in evaluation mode with every BatchNorm in a convolution that can be there.

    Those on the residual stream cannot: a ReLU lies between them and what comes next.

    Args:
        network: whose present weights to fold, in evaluation mode.
    """

    def __init__(self, network: WideResNet) -> None:
        super().__init__(network)
        self.network: WideResNet
        self.blocks = nn.Sequential(*map(FoldedBlock, network.blocks().values()))

    def forward(self, packed: Tensor) -> Tensor:
        """Classify images, laid out channels-last."""
        x = self.blocks(self.network.stem(self.network.normalize(packed)))
        return self.network.classify(x)
