"""Augmentation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prunerob.data import MNIST, CropAndFlip
from prunerob.data.batches import Batch


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(5, 9), st.integers(5, 9), st.integers(0, 4), st.booleans())
def test_every_crop_is_one_of_the_mirrored_image_and_depends_on_its_key_alone(
    channels: int, height: int, width: int, padding: int, flip: bool
) -> None:
    pixels = torch.randint(0, 256, (6, channels, height, width), dtype=torch.uint8)
    augmentation = CropAndFlip(padding=padding, flip=flip)
    prepared = augmentation.prepare(pixels)
    index = torch.tensor([5, 0, 3, 3])
    key = torch.tensor([7, 8, 9, 10])
    taken = augmentation.take(prepared, index, key)
    assert taken.dtype == torch.uint8
    for one, image in zip(taken, pixels[index], strict=True):
        padded = F.pad(image[None].float(), (padding,) * 4, mode="reflect")[0].byte()
        crops = [
            crop
            for i in range(2 * padding + 1)
            for j in range(2 * padding + 1)
            for straight in [padded[:, i : i + height, j : j + width]]
            for crop in ([straight, straight.flip(2)] if flip else [straight])
        ]
        assert any(torch.equal(one, crop) for crop in crops)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(augmentation.take(prepared, index[order], key[order]), taken[order])


def test_crops_and_flips_are_evenly_drawn() -> None:
    pixels = torch.arange(20, dtype=torch.uint8).view(1, 1, 4, 5)
    augmentation = CropAndFlip(padding=1)
    n = 18_000
    taken = augmentation.take(augmentation.prepare(pixels), torch.zeros(n).long(), torch.arange(n))
    counts = taken.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 18, "nine crops, straight and mirrored"
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_training_images_vary_by_epoch_and_seed_and_others_do_not() -> None:
    def epoch(number: int, seed: int = 0) -> Batch:
        data = MNIST(augmentation=CropAndFlip(), seed=seed, train_size=64, validation_size=32)
        batches = data.train_dataloader()
        batches.epoch, batches.size = lambda: number, 64
        (batch,) = batches
        order = batch.indices.argsort()
        return Batch(*(column[order] for column in batch))

    assert torch.equal(epoch(1).x, epoch(1).x)
    assert torch.equal(epoch(1).indices, epoch(2).indices)
    assert not torch.equal(epoch(1).x, epoch(2).x)
    assert not torch.equal(epoch(1).x, epoch(1, seed=1).x)
    plain, varied = MNIST(validation_size=32), MNIST(validation_size=32, augmentation=CropAndFlip())
    for name in ("val_dataloader", "test_dataloader"):
        assert torch.equal(
            next(iter(getattr(plain, name)())).x, next(iter(getattr(varied, name)())).x
        )


@pytest.mark.parametrize("padding", [-1, 28])
def test_padding_that_cannot_be_mirrored_is_refused(padding: int) -> None:
    with pytest.raises(ValueError, match=f"^padding of CropAndFlip: {padding}"):
        next(iter(MNIST(augmentation=CropAndFlip(padding=padding)).train_dataloader()))
