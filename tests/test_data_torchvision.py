"""torchvision's data sets by name."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

from prunerob.data import Torchvision
from prunerob.errors import UserError
from tests.conftest import TINY, refused


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def made(folder: Path, name: str, patch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """A data set in its official files; its training images come back."""
    draws, kind = np.random.default_rng(0), getattr(datasets, name)
    shape = {"CIFAR100": (3, 32, 32), "SVHN": (3, 32, 32), "FashionMNIST": (1, 28, 28)}[name]
    parts = {}
    for part, size in (("train", 30), ("test", 12)):
        pixels = draws.integers(0, 256, (size, *shape), dtype=np.uint8)
        parts[part] = pixels, np.arange(size) % 10
        if name == "CIFAR100":
            inner = folder / kind.base_folder
            inner.mkdir(exist_ok=True)
            content = {"data": pixels.reshape(size, -1), "fine_labels": parts[part][1].tolist()}
            (inner / part).write_bytes(pickle.dumps(content))
            (inner / "meta").write_bytes(
                pickle.dumps({"fine_label_names": [f"class {i}" for i in range(10)]})
            )
            patch.setattr(kind, f"{part}_list", [[part, md5(inner / part)]])
            patch.setattr(kind, "meta", {**kind.meta, "md5": md5(inner / "meta")})
        elif name == "SVHN":
            file = folder / f"{part}_32x32.mat"  # where class 0 has the number 10
            labels = np.where(parts[part][1] == 0, 10, parts[part][1])[:, None]
            savemat(file, {"X": pixels.transpose(2, 3, 1, 0), "y": labels})
            old = kind.split_list
            patch.setattr(kind, "split_list", {**old, part: [old[part][0], file.name, md5(file)]})
        else:
            raw = folder / name / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            stem = {"train": "train", "test": "t10k"}[part]
            for ending, array in (
                ("images-idx3-ubyte", pixels[:, 0]),
                ("labels-idx1-ubyte", parts[part][1].astype(np.uint8)),
            ):
                header = (0x0800 + array.ndim).to_bytes(4, "big")
                header += b"".join(length.to_bytes(4, "big") for length in array.shape)
                (raw / f"{stem}-{ending}").write_bytes(header + array.tobytes())
    return parts["train"]


@pytest.mark.parametrize("name", ["CIFAR100", "SVHN", "FashionMNIST"])
def test_images_are_those_of_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = made(tmp_path, name, monkeypatch)
    data = Torchvision(dataset=name, folder=str(tmp_path), download=False, validation_size=10)
    data.prepare_data()
    train, test = data.load()
    assert torch.equal(train.pixels, torch.from_numpy(pixels))
    assert train.labels.tolist() == labels.tolist()
    assert (len(test.labels), test.labels.dtype) == (12, torch.int64)
    data.setup("fit")
    x, y, index = next(iter(data.val_dataloader()))  # type: ignore[arg-type]
    assert torch.equal(x, torch.from_numpy(pixels)[index].float() / 255)
    assert y.tolist() == labels[index].tolist()
    if name == "CIFAR100":
        assert data.class_names == [f"class {i}" for i in range(10)]


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for name, told in (
        ("SVHN", f"data.folder: {tmp_path} holds no intact SVHN"),
        ("Nothing", "data.dataset: torchvision has no Nothing"),
        ("ImageFolder", "data.dataset: torchvision has no ImageFolder"),
        ("Flowers102", f"data.folder: {tmp_path} holds no intact Flowers102"),
    ):
        with pytest.raises(UserError, match=told):
            Torchvision(dataset=name, folder=str(tmp_path), download=False).load()


def test_a_data_module_of_lightning_s_is_told_what_to_write(
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = "pytorch_lightning.demos.boring_classes.BoringDataModule"
    told = refused(capsys, "fit", "--config", TINY, "--data", foreign)
    assert "BoringDataModule is no prunerob.data.ImageDataModule" in told
    assert "load()" in told
