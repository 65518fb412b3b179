"""Data modules: images in memory, served in batches of tensors."""

from prunerob.data.augmentation import (
    Augmentation,
    CropAndFlip,
    NoAugmentation,
    ProgressiveResizing,
)
from prunerob.data.cifar10 import CIFAR10
from prunerob.data.image_folder import ImageFolder
from prunerob.data.images import ImageDataModule
from prunerob.data.mnist import MNIST
from prunerob.data.torchvision import Torchvision

__all__ = [
    "CIFAR10",
    "MNIST",
    "Augmentation",
    "CropAndFlip",
    "ImageDataModule",
    "ImageFolder",
    "NoAugmentation",
    "ProgressiveResizing",
    "Torchvision",
]
