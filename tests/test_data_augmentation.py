"""Augmentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from prunerob.cli import main
from prunerob.data import MNIST, Augmentation, CropAndFlip, ProgressiveResizing
from prunerob.data.batches import Batch, Batches, Images
from tests.conftest import TINY


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


def test_progressive_resizing_shows_each_epoch_its_size() -> None:
    images = Images(torch.randint(0, 256, (9, 3, 8, 12), dtype=torch.uint8), torch.arange(9))
    crops = CropAndFlip(padding=2)
    augmentation = ProgressiveResizing(augmentation=crops, sizes=(4, 6, 8, 5), until=(1, 3, 4, 6))
    epoch = 0

    def batches(augmentation: Augmentation) -> Batches:
        return Batches(
            images,
            torch.arange(9),
            size=4,
            shuffle_seed=7,
            epoch=lambda: epoch,
            augmentation=augmentation,
        )

    one, full = batches(augmentation), batches(crops)  # for all epochs, as in a run
    shapes = []
    for epoch in range(8):  # noqa: B007  (`batches` asks for it)
        seen = list(one)
        for small, large in zip(seen, full, strict=True):
            shape = small.x.shape[2:]
            assert torch.equal(small.indices, large.indices)
            assert torch.equal(small.y, large.y)
            if shape == large.x.shape[2:]:
                assert torch.equal(small.x, large.x)
            expected = F.interpolate(large.x, shape, mode="bilinear", antialias=True)
            assert (small.x - expected).abs().max() <= 0.5 / 255 + 1e-6, "the same crops, smaller"
            assert torch.equal(small.x, (small.x * 255).round() / 255), "whole pixels"
        shapes.append(tuple(seen[0].x.shape[2:]))
        for before, resumed in zip(seen, batches(augmentation), strict=True):
            assert torch.equal(before.x, resumed.x), "whatever epochs were seen before"
    assert shapes == [(4, 6), (6, 9), (6, 9), (8, 12), (5, 8), (5, 8), (8, 12), (8, 12)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (), "until": ()}, r"sizes of ProgressiveResizing: \(\) are not"),
        ({"sizes": (16, 0), "until": (1, 2)}, r"sizes of ProgressiveResizing: \(16, 0\) are not"),
        ({"sizes": (16, 24), "until": (3, 3)}, r"until of ProgressiveResizing: \(3, 3\) are not"),
        ({"sizes": (16,), "until": (0,)}, r"until of ProgressiveResizing: \(0,\) are not"),
        ({"sizes": (16,), "until": (1, 2)}, r"until of ProgressiveResizing: \(1, 2\) are not"),
        ({"sizes": (29,), "until": (1,)}, "sizes of ProgressiveResizing: 29 pixels are more"),
    ],
)
def test_progressive_resizing_refuses_what_makes_no_sense(
    settings: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        next(iter(MNIST(augmentation=ProgressiveResizing(**settings)).train_dataloader()))


def test_a_run_on_growing_images_goes_on_to_the_same_bits() -> None:
    """Adversarial training on small images, full ones and, in fine-tuning, both once more."""
    command = ["fit", "--config", TINY]
    command += ["--model.network", "prunerob.networks.WideResNet"]
    command += ["--model.network.depth", "10", "--model.network.widen_factor", "1"]
    command += ["--model.network.mean", "[0.5]", "--model.network.std", "[0.5]"]
    command += ["--data.augmentation", "prunerob.data.ProgressiveResizing"]
    command += ["--data.augmentation.augmentation", "prunerob.data.CropAndFlip"]
    command += ["--data.augmentation.augmentation.padding", "2"]
    command += ["--data.augmentation.sizes", "[14,28,21]", "--data.augmentation.until", "[1,2,3]"]
    command += ["--data.train_size", "96", "--data.test_size", "20"]
    main(command)
    whole, branch = (Path("lightning_logs/tiny") / name for name in ("version_0", "version_1"))
    main([*command, "--ckpt_path", str(whole / "checkpoints" / "before_pruning.ckpt")])
    one, other = (load_file(run / "weights.safetensors") for run in (whole, branch))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
