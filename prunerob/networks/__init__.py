"""Networks: plain `nn.Module`s from pixels in [0, 1] to logits; normalisation is a first layer."""

from prunerob.networks.channels import ChannelMap, Channels
from prunerob.networks.mnist_cnn import MnistCNN

__all__ = ["ChannelMap", "Channels", "MnistCNN"]
