"""MNIST."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from prunerob.data import MNIST
from prunerob.errors import UserError


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


def test_the_shipped_data_set_is_as_it_should_be() -> None:
    data = MNIST()
    data.setup("fit")
    assert len(data._images()[0].labels) == 60_000
