"""Data modules: images in memory, served in batches of tensors."""

from prunerob.data.augmentation import Augmentation, CropAndFlip, NoAugmentation
from prunerob.data.image_folder import ImageFolder
from prunerob.data.images import ImageDataModule
from prunerob.data.mnist import MNIST

__all__ = [
    "MNIST",
    "Augmentation",
    "CropAndFlip",
    "ImageDataModule",
    "ImageFolder",
    "NoAugmentation",
]
