"""Data modules: MNIST as it is, splits and orders as functions of seed and epoch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import write_jpeg, write_png

from prunerob.data import MNIST
from prunerob.data.images import Batch, Batches, Images, stratified_order
from prunerob.errors import UserError


@pytest.fixture(scope="module")
def mnist() -> MNIST:
    data = MNIST(validation_size=5000)
    data.setup("fit")
    return data


def test_mnist_is_the_official_one() -> None:
    train, test = MNIST().load()
    header = bytes.fromhex("00000803 0000ea60 0000001c 0000001c")
    sums = {
        "6bbc9ace898e44ae57da46a324031adb": header + train.pixels.numpy().tobytes(),
        "a25bea736e30d166cdddb491f175f624": bytes.fromhex("00000801 0000ea60")
        + train.labels.to(torch.uint8).numpy().tobytes(),
        "2646ac647ad5339dbf082846283269ea": bytes.fromhex("00000803 00002710 0000001c 0000001c")
        + test.pixels.numpy().tobytes(),
        "27ae3e4e09519cfbb04c329615203637": bytes.fromhex("00000801 00002710")
        + test.labels.to(torch.uint8).numpy().tobytes(),
    }
    for expected, content in sums.items():
        assert hashlib.md5(content).hexdigest() == expected


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


def test_a_folder_of_images_is_read(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)
    (tmp_path / "b").mkdir()
    write_png(pixels, str(tmp_path / "b" / "two.png"))
    write_jpeg(pixels, str(tmp_path / "one.jpg"), quality=100)
    data = MNIST(predict_folder=str(tmp_path))
    data.setup("predict")
    (batch,) = list(data.predict_dataloader())
    assert isinstance(batch, Batch)
    assert data.predict_names == [str(tmp_path / "b" / "two.png"), str(tmp_path / "one.jpg")]
    assert torch.equal(batch.x[0], pixels / 255)


@pytest.mark.parametrize(
    ("name", "message"), [("broken.png", "broken.png: not a readable"), ("big.png", "30x29 pixels")]
)
def test_an_unreadable_image_is_named(tmp_path: Path, name: str, message: str) -> None:
    if name == "big.png":
        write_png(torch.zeros(1, 29, 30, dtype=torch.uint8), str(tmp_path / name))
    else:
        (tmp_path / name).write_bytes(b"\x89PNG and then nothing")
    data = MNIST(predict_folder=str(tmp_path))
    data.setup("predict")
    with pytest.raises(UserError, match=message):
        data.predict_dataloader()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "holds no .png"), (tmp_path / "no", "is not a folder")):
        data = MNIST(predict_folder=str(folder))
        data.setup("predict")
        with pytest.raises(UserError, match=message):
            data.predict_dataloader()


@pytest.mark.parametrize("damage", ["truncated", "other", "short"])
def test_a_damaged_data_file_is_named(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lzma
    from importlib.resources import files

    content = (files("prunerob.data") / "mnist.xz").read_bytes()
    damaged = {
        "truncated": content[: len(content) // 2],
        "other": b"not an archive",
        "short": lzma.compress(b"too short"),
    }[damage]
    (tmp_path / "mnist.xz").write_bytes(damaged)
    monkeypatch.setattr("prunerob.data.mnist.files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"mnist\.xz is damaged"):
        MNIST().load()
