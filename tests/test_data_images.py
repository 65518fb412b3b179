"""Splits and subsets."""

from __future__ import annotations

import pytest
import torch

from prunerob.data import MNIST
from prunerob.data.batches import Batches, Images
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError


@pytest.fixture(scope="module")
def mnist() -> MNIST:
    data = MNIST(validation_size=5000)
    data.setup("fit")
    return data


def test_splits_do_not_overlap_and_are_stratified(mnist: MNIST) -> None:
    validation = mnist.val_dataloader()
    assert isinstance(validation, Batches)
    train = mnist.train_dataloader()
    held_out, used = set(validation.index.tolist()), set(train.index.tolist())
    assert len(held_out) == 5000
    assert len(used) == 55000
    assert not held_out & used
    labels = mnist.load()[0].labels
    whole = torch.bincount(labels) / len(labels)
    for index in (validation.index, validation.index[:500], train.index):
        share = torch.bincount(labels[index]) / len(index)
        assert (share - whole).abs().max() < 1.5 / len(index) + 1e-4


def test_the_held_out_images_do_not_depend_on_the_seed() -> None:
    a, b = MNIST(seed=0, train_size=10), MNIST(seed=1, train_size=10)
    first, second = a.val_dataloader(), b.val_dataloader()
    assert isinstance(first, Batches)
    assert isinstance(second, Batches)
    assert torch.equal(first.index, second.index)
    assert torch.equal(a.train_dataloader().index, b.train_dataloader().index)


def test_a_test_subset_is_stratified_and_named_by_its_place() -> None:
    data = MNIST(test_size=100)
    data.setup("test")
    index = torch.cat([batch.indices for batch in data.test_dataloader()])
    assert len(index.unique()) == 100
    labels = data.load()[1].labels
    assert torch.bincount(labels[index]).tolist() == pytest.approx([10] * 10, abs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_size": 60000}, "data.validation_size: 60000, but there are 59999"),
        ({"train_size": 55001}, "data.train_size: 55001, but there are 55000"),
        ({"test_size": 10001}, "data.test_size: 10001, but there are 10000"),
        ({"batch_size": 0}, "data.batch_size: 0 is below 1"),
        ({"validation_size": -1}, "data.validation_size: -1 is below 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MNIST(**settings).setup("fit")


class Sorted(ImageDataModule):
    """A data set in class order, as a user has it."""

    def load(self) -> tuple[Images, Images]:
        labels = torch.arange(10).repeat_interleave(20)
        images = Images(torch.zeros(200, 1, 4, 4, dtype=torch.uint8), labels)
        return images, images


def test_an_attacker_of_a_sorted_data_set_gets_images_of_all_classes() -> None:
    data = Sorted(validation_size=20, eval_batch_size=50)
    data.setup("test")
    assert len(set(next(iter(data.attacker_dataloader())).y.tolist())) == 10
    mnist = MNIST(eval_batch_size=150)
    mnist.setup("test")
    first = next(iter(mnist.attacker_dataloader())).indices
    assert first.tolist() == list(range(150)), "as in the tutorial"


def test_a_test_can_be_of_images_that_are_held_out() -> None:
    data = MNIST(validation_size=60, test_size=20, test_on="validation")
    data.prepare_data()
    data.setup("test")
    held_out = MNIST(validation_size=60)
    held_out.setup("fit")
    expected = next(iter(held_out.val_dataloader()))  # type: ignore[call-overload]
    batch = next(iter(data.test_dataloader()))
    assert len(batch.y) == 20
    assert torch.equal(batch.x, expected.x[batch.indices])
    assert torch.equal(batch.y, expected.y[batch.indices])
    sample = data.test_sample(5)
    assert torch.equal(sample.x, expected.x[sample.indices])
    with pytest.raises(UserError, match=r"data\.test_on: validation, but data\.validation_size 0"):
        MNIST(validation_size=0, test_on="validation").test_sample(5)
    with pytest.raises(UserError, match=r"data\.test_size: 100, but there are 60 images for it"):
        MNIST(validation_size=60, test_size=100, test_on="validation").setup("test")
