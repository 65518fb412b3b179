"""Networks: plain `nn.Module`s from pixels in [0, 1] to logits; normalisation is a first layer."""

from prunerob.networks.channels import ChannelMap, Channels, Stream
from prunerob.networks.mnist_cnn import MnistCNN
from prunerob.networks.parts import Part
from prunerob.networks.resnet import ResNet18
from prunerob.networks.rewrite import Rewrite, rewrite
from prunerob.networks.wide_resnet import WideResNet

__all__ = [
    "ChannelMap",
    "Channels",
    "MnistCNN",
    "Part",
    "ResNet18",
    "Rewrite",
    "Stream",
    "WideResNet",
    "rewrite",
]
