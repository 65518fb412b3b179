"""Data modules: images in memory, served in batches of tensors."""

from prunerob.data.images import ImageDataModule
from prunerob.data.mnist import MNIST

__all__ = ["MNIST", "ImageDataModule"]
