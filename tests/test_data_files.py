"""Image files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.io import write_jpeg, write_png

from prunerob.data import MNIST
from prunerob.data.batches import Batch
from prunerob.errors import UserError
from prunerob.robustness.files import write_predictions
from tests.conftest import TINY, refused, small


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


def test_predictions_are_called_by_their_classes_names(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    write_predictions(
        file, [(torch.tensor([0, 1]), probabilities)], ["a.png", "b.png"], ["cat", "dog"]
    )
    header, *lines = file.read_text().splitlines()
    assert header == "image,class,probability of cat,probability of dog,probability of 2"
    assert [line.split(",")[:2] for line in lines] == [["a.png", "dog"], ["b.png", "2"]]


def test_images_that_do_not_fit_the_network_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    save_file(small().state_dict(), "small.safetensors")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = Path("colour", split, name)
            folder.mkdir(parents=True)
            for i in range(3):
                write_png(torch.zeros(3, 28, 28, dtype=torch.uint8), str(folder / f"{i}.png"))
    data = ["--data", "prunerob.data.ImageFolder", "--data.folder", "colour"]
    data += ["--data.validation_size", "2", "--data.train_size", "null", "--data.test_size", "null"]
    for command in ("test", "validate", "predict"):
        told = refused(capsys, command, "--config", TINY, "--ckpt_path", "small.safetensors", *data)
        assert "MnistCNN does not take images (3, 28, 28)" in told
