"""Residual networks for small images: what adversarial-pruning benchmarks use on CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prunerob.networks.channels import Channels, Stream
from prunerob.networks.folding import FoldedConvolution, can_fold
from prunerob.networks.normalize import CIFAR10_MEAN, CIFAR10_STD, Normalize
from prunerob.networks.rewrite import AsItIs


class BasicBlock(nn.Module):
    """A residual block: convolution, BatchNorm, ReLU; convolution, BatchNorm; sum, ReLU.

    Args:
        inputs: channels that come in.
        filters: channels that go out, and those between the two convolutions.
        stride: of the first convolution; with it, or with new channels, the shortcut is a 1x1
            convolution and a BatchNorm.
    """

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut: nn.Conv2d | None = None
        self.shortcut_bn: nn.BatchNorm2d | None = None
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Conv2d(inputs, filters, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features, float, (B, inputs, H, W)."""
        change = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.shortcut is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut(x))
        out: Tensor = (change + x).relu()
        return out


class ResNet18(nn.Module):
    """ResNet-18 (He et al., arXiv:1512.03385) in its form for 32x32 images.

    A 3x3 convolution of stride 1 in the place of the first 7x7 and its pooling, and four stages of
    two blocks. 11,173,962 parameters for CIFAR-10.

    Args:
        width: filters of the first stage; the others have 2, 4 and 8 times as many.
        classes: number of classes.
        mean: of each colour, in pixel units of [0, 1]; by default CIFAR-10's. Their number is that
            of the images' channels.
        std: standard deviation of each colour, in the same units.
    """

    def __init__(
        self,
        width: int = 64,
        classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
    ) -> None:
        super().__init__()
        if width < 1 or classes < 2:
            raise ValueError(f"ResNet18: needs a width, not {width}, and classes, not {classes}")
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(len(mean), width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.stage1 = self._stage(width, width, stride=1)
        self.stage2 = self._stage(width, 2 * width, stride=2)
        self.stage3 = self._stage(2 * width, 4 * width, stride=2)
        self.stage4 = self._stage(4 * width, 8 * width, stride=2)
        self.linear = nn.Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    @staticmethod
    def _stage(inputs: int, filters: int, *, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, filters, stride), BasicBlock(filters, filters, 1))

    def blocks(self) -> Mapping[str, BasicBlock]:
        """All residual blocks, in order, by name."""
        return {
            f"{stage}.{name}": cast(BasicBlock, block)
            for stage in ("stage1", "stage2", "stage3", "stage4")
            for name, block in self.get_submodule(stage).named_children()
        }

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: images, float, (B, C, H, W), pixels in [0, 1].

        Returns:
            logits, float, (B, classes).
        """
        x = self.stem_bn(self.stem(self.normalize(x))).relu()
        return self.classify(self.stage4(self.stage3(self.stage2(self.stage1(x)))))

    def classify(self, features: Tensor) -> Tensor:
        """Logits, float, (B, classes), of the last stage's features, float, (B, C, H, W)."""
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits

    def rewrite(self, shape: torch.Size) -> FoldedResNet18 | None:
        """The same function without normalisations; see `prunerob.networks.rewrite`."""
        pairs = [(self.stem, self.stem_bn)]
        for block in self.blocks().values():
            if type(block) is not BasicBlock:
                return None
            pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            if block.shortcut is not None and block.shortcut_bn is not None:
                pairs.append((block.shortcut, block.shortcut_bn))
        as_built = all(can_fold(conv, bn) for conv, bn in pairs)
        return FoldedResNet18(self) if as_built else None

    def channels(self) -> Mapping[str, Channels]:
        """Where the output of each convolution goes; see `prunerob.networks.channels`.

        The first convolution of a block is read by the second one alone. The stem, the second
        convolutions and the shortcuts write to residual streams, one a stage.
        """
        channels: dict[str, Channels] = {}
        writers, readers = {"stem": "stem_bn"}, list[str]()
        for name, block in self.blocks().items():
            readers.append(f"{name}.conv1")
            channels[f"{name}.conv1"] = Channels(readers=(f"{name}.conv2",), norms=(f"{name}.bn1",))
            if block.shortcut is not None:
                # It reads the old stream and begins a new one.
                readers.append(f"{name}.shortcut")
                channels |= _stream(f"before {name}", writers, readers)
                writers, readers = {f"{name}.shortcut": f"{name}.shortcut_bn"}, []
            writers[f"{name}.conv2"] = f"{name}.bn2"
        channels |= _stream("last", writers, [*readers, "linear"])
        order = [name for name, _ in self.named_modules() if name in channels]
        return {name: channels[name] for name in order}


def _stream(name: str, writers: Mapping[str, str], readers: Sequence[str]) -> dict[str, Channels]:
    stream = Stream(name=name, readers=tuple(readers))
    return {writer: Channels(norms=(norm,), stream=stream) for writer, norm in writers.items()}


class FoldedBasicBlock(nn.Module):
    """BasicBlock in evaluation mode, where its normalisations are linear.

    Args:
        block: in evaluation mode.
    """

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1 = FoldedConvolution(block.conv1, block.bn1)
        self.conv2 = FoldedConvolution(block.conv2, block.bn2)
        self.shortcut: FoldedConvolution | None = None
        if block.shortcut is not None and block.shortcut_bn is not None:
            self.shortcut = FoldedConvolution(block.shortcut, block.shortcut_bn)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features, float, (B, inputs, H, W)."""
        # In place: what a ReLU comes from is not needed again, and memory is what costs here.
        change: Tensor = self.conv2(self.conv1(x).relu_())
        return change.add_(x if self.shortcut is None else self.shortcut(x)).relu_()


class FoldedResNet18(AsItIs):
    """ResNet18 in evaluation mode with every BatchNorm in the convolution before it.

    Args:
        network: whose present weights to fold, in evaluation mode.
    """

    def __init__(self, network: ResNet18) -> None:
        super().__init__(network)
        self.network: ResNet18
        self.stem = FoldedConvolution(network.stem, network.stem_bn)
        self.blocks = nn.Sequential(*map(FoldedBasicBlock, network.blocks().values()))

    def forward(self, packed: Tensor) -> Tensor:
        """Classify images, laid out channels-last."""
        x = self.stem(self.network.normalize(packed)).relu_()
        return self.network.classify(self.blocks(x))
