"""CIFAR-10."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from prunerob.data import CIFAR10
from prunerob.errors import UserError


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the official files, with seven images each; torchvision knows their sums."""
    generator = np.random.default_rng(0)
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    sums = {}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        content: dict[str, object] = {"label_names": [f"class {i}" for i in range(10)]}
        if name != "batches.meta":
            content = {
                "data": generator.integers(0, 256, (7, 3072), dtype=np.uint8),
                "labels": generator.integers(0, 10, 7).tolist(),
            }
        file = inner / name
        file.write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5(file.read_bytes()).hexdigest()
    cifar = datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(cifar, "meta", meta)
    return tmp_path


def test_cifar_10_is_read_from_torchvision_s_files(batches: Path) -> None:
    data = CIFAR10(folder=str(batches), download=False, validation_size=5)
    data.prepare_data()
    train, test = data.load()
    assert train.pixels.shape == (35, 3, 32, 32)
    assert test.pixels.shape == (7, 3, 32, 32)
    raw = pickle.loads((batches / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    rows = torch.from_numpy(raw["data"]).view(7, 3, 32, 32)  # red, green, blue; row by row
    assert torch.equal(train.pixels[7:14], rows)
    assert train.labels[7:14].tolist() == raw["labels"]
    assert train.labels.dtype == torch.int64
    assert data.class_names == [f"class {i}" for i in range(10)]


def test_what_is_missing_of_cifar_10_is_told(
    batches: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    empty = str(tmp_path_factory.mktemp("empty"))
    for call in (CIFAR10(folder=empty).prepare_data, CIFAR10(folder=empty).load):
        with pytest.raises(UserError) as error:
            call()
        told = str(error.value)
        assert told.startswith(f"data.folder: {empty} holds no intact cifar-10-batches-py; fetch")
        assert ("no route" in told) == (call.__name__ == "prepare_data")
        assert "fetch cifar-10-python.tar.gz from https://" in told
    CIFAR10(folder=empty, download=False).prepare_data()  # leaves it to load
    with pytest.raises(UserError, match="holds the batches themselves; name its parent"):
        CIFAR10(folder=str(batches / "cifar-10-batches-py")).prepare_data()
    (Path(empty) / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    for download in (True, False):
        with pytest.raises(UserError, match=r"gz is damaged, and was not downloaded \("):
            CIFAR10(folder=empty, download=download).prepare_data()
    with pytest.raises(UserError, match="cannot be written"):
        CIFAR10(folder=str(Path(empty) / "cifar-10-python.tar.gz")).prepare_data()

    # A file that is not the official one is not read: it is a pickle, and could do anything.
    file = batches / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match="holds no intact"):
        CIFAR10(folder=str(batches)).load()


def test_an_archive_in_the_folder_is_unpacked_without_a_network(
    batches: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("archive")
    archive = place / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", digest)
    monkeypatch.setattr("urllib.request.urlopen", None)
    data = CIFAR10(folder=str(place), validation_size=5, download=False)
    data.prepare_data()
    assert torch.equal(data.load()[0].pixels, CIFAR10(folder=str(batches)).load()[0].pixels)
