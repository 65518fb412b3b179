"""Batches of images in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunerob.data.batches import Batches, Images, stratified_order
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 2**31))
def test_every_prefix_of_a_stratified_order_is_stratified(n: int, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(0, classes, (n,))
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(n))
    share = torch.bincount(labels, minlength=classes) / n
    for m in range(1, n + 1):
        counts = torch.bincount(labels[order[:m]], minlength=classes)
        assert (counts - share * m).abs().max() <= classes


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 1000), st.integers(0, 50))
def test_batches_hold_every_image_once_in_an_order_of_seed_and_epoch(
    n: int, size: int, seed: int, epoch: int
) -> None:
    images = Images(torch.randint(0, 256, (60, 1, 2, 2), dtype=torch.uint8), torch.arange(60))
    index = torch.arange(5, 5 + n)

    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(images, index, size=size, shuffle_seed=seed, epoch=lambda: epoch)
        seen = list(batches)
        assert len(seen) == len(batches)
        for batch in seen:
            assert len(batch.y) == size or batch is seen[-1]
            assert torch.equal(batch.x, images.pixels[batch.indices] / 255)
            assert torch.equal(batch.y, batch.indices)
        return torch.cat([batch.indices for batch in seen]).tolist()

    assert sorted(order(seed, epoch)) == index.tolist()
    assert order(seed, epoch) == order(seed, epoch)
    if n > 10:
        assert order(seed, epoch) != order(seed, epoch + 1)
        assert order(seed, epoch) != order(seed + 1, epoch)


class Own(ImageDataModule):
    """A data set whose `load` returns what it is told."""

    def __init__(self, images: Images) -> None:
        super().__init__(validation_size=0)
        self.images = images

    def load(self) -> tuple[Images, Images]:
        return self.images, self.images


@pytest.mark.parametrize(
    ("pixels", "labels", "told"),
    [
        (torch.zeros(3, 1, 4, 4), torch.zeros(3).long(), r"pixels of torch.float32, \(3, 1, 4, 4"),
        (torch.zeros(3, 4, 4).byte(), torch.zeros(3).long(), "should have torch.uint8, .N, C, H"),
        (torch.zeros(3, 1, 4, 4).byte(), torch.zeros(3).int(), "labels of torch.int32"),
        (torch.zeros(3, 1, 4, 4).byte(), torch.zeros(2).long(), "are 3, their labels 2"),
        (torch.zeros(0, 1, 4, 4).byte(), torch.zeros(0).long(), "are 0"),
        (torch.zeros(3, 1, 4, 4).byte(), torch.tensor([0, 1, -1]), "a label below 0"),
    ],
)
def test_a_data_set_must_be_of_bytes_and_classes(pixels: Tensor, labels: Tensor, told: str) -> None:
    with pytest.raises(UserError, match=rf"Own\.load: the training images .*{told}"):
        Own(Images(pixels, labels)).setup("fit")
