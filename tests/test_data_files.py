"""Image files."""

from __future__ import annotations

import errno
import io
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.io import ImageReadMode, decode_image, write_jpeg, write_png

from prunerob.data import MNIST
from prunerob.data.batches import Batch
from prunerob.data.files import find_images, read_image
from prunerob.errors import UserError
from prunerob.robustness.predictions import write_predictions
from tests.conftest import TINY, refused, small

PNG = b"\x89PNG\r\n\x1a\n"


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


@pytest.mark.parametrize("leads", ["nothing", "a.png", "folder"])
def test_what_is_called_an_image_and_is_none_is_told(tmp_path: Path, leads: str) -> None:
    write_png(torch.zeros(1, 28, 28, dtype=torch.uint8), str(tmp_path / "good.png"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.png").symlink_to(leads)  # to nothing, to itself, to a folder
    with pytest.raises(UserError, match=r"folder: .*a\.png is a link that leads to no file"):
        find_images(tmp_path, "data.predict_folder")
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe\.jpg is no file; remove or rename it"):
        find_images(tmp_path, "data.predict_folder")


def test_what_is_passed_over_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "images"
    (folder / "more.png").mkdir(parents=True)  # a folder, whatever it is called
    write_png(torch.zeros(1, 28, 28, dtype=torch.uint8), str(folder / "more.png" / "good.PNG"))
    (folder / ".hidden.txt").touch()
    data = MNIST(predict_folder=str(folder))
    data.setup("predict")
    assert len(data.predict_dataloader().index) == 1
    assert "Passed over" not in caplog.text
    (folder / "notes.txt").touch()
    (folder / "linked").symlink_to(tmp_path)  # which may lead in a circle
    (folder / "more.png" / "dangling").symlink_to("nothing")
    assert len(data.predict_dataloader().index) == 1
    assert f"Passed over in {folder}: 3 files are neither .png, .jpg nor .jpeg" in caplog.text


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may read all folders, so this one's refusal is made up."""
    (tmp_path / "closed").mkdir()
    write_png(torch.zeros(1, 28, 28, dtype=torch.uint8), str(tmp_path / "good.png"))
    scan = os.scandir

    def refuse(place: Any) -> Any:
        if str(place).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        find_images(tmp_path, "data.predict_folder")


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


def kinds() -> dict[str, bytes]:
    """Small images of every kind that is read, as files."""
    picture = Image.fromarray(smooth(3))
    grey = Image.fromarray(smooth(1)[..., 0])
    exif = {turn: Image.Exif() for turn in range(1, 9)}
    for turn, record in exif.items():
        record[0x0112] = turn
    alpha = picture.copy()
    alpha.putalpha(grey)
    palette = picture.quantize(64)
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.png": (grey, {}),
        "colour.png": (picture, {}),
        "alpha.png": (alpha, {}),
        "grey_alpha.png": (alpha.convert("LA"), {}),
        "palette.png": (palette, {}),
        "transparent.png": (palette, {"transparency": bytes(range(64))}),
        "bits.png": (grey.convert("1"), {}),
        "turned.png": (picture, {"exif": exif[6]}),
        "grey.jpg": (grey, {}),
        "progressive.jpg": (picture, {"progressive": True}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "best.jpg": (picture, {"quality": 100, "subsampling": 0}),
        **{f"turned_{turn}.jpg": (picture, {"exif": record}) for turn, record in exif.items()},
    }
    files = {}
    for name, (image, settings) in made.items():
        file = io.BytesIO()
        image.save(file, "PNG" if name.endswith("png") else "JPEG", **settings)
        files[name] = file.getvalue()
    return files


def smooth(channels: int) -> np.ndarray[Any, Any]:
    """A picture without noise, (31, 26, channels)."""
    y, x = np.mgrid[:31, :26]
    waves = [128 + 120 * np.sin(x / (3 + c) + y / (5 - c)) for c in range(channels)]
    return np.stack(waves, 2).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_torchvision(tmp_path: Path, channels: int) -> None:
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    for name, data in kinds().items():
        (tmp_path / name).write_bytes(data)
        pixels = read_image(tmp_path / name, (channels,))
        expected = decode_image(str(tmp_path / name), mode, apply_exif_orientation=True)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == expected.shape, name
        apart = (pixels.int() - expected.int()).abs().max()
        # libpng weighs colours a little otherwise than JPEG and Pillow do.
        coloured = name in ("colour.png", "alpha.png", "palette.png", "transparent.png")
        assert apart <= int(channels == 1 and (coloured or name == "turned.png")), name


def deep_png(values: np.ndarray[Any, Any]) -> bytes:
    """A PNG of 16 bits a colour, by the format's own rules: (H, W, 1 or 3), uint16."""
    height, width, channels = values.shape
    kind = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    file = PNG
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        sum_ = struct.pack(">I", zlib.crc32(name + data))
        file += struct.pack(">I", len(data)) + name + data + sum_
    return file


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_upper_8_are_taken(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(deep_png(values))
    expected = torch.from_numpy((values >> 8).astype(np.uint8)).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "deep.png", (channels, 9, 7)), expected)
    if channels == 1:
        in_colour = read_image(tmp_path / "deep.png", (3,))
        assert torch.equal(in_colour, expected.expand(3, -1, -1))


READ = """
import sys
import zlib
from pathlib import Path
from prunerob.data.files import read_image
from prunerob.errors import UserError
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        pixels = read_image(file, (3,))
    except UserError as error:
        message = str(error)
        print("refused" if message.startswith(f"{file}: ") and "\\n" not in message else message)
    else:
        print(f"read {zlib.crc32(pixels.numpy().tobytes())}")
"""


def test_no_damaged_image_ends_the_process(tmp_path: Path) -> None:
    chance = random.Random(0)
    files, whole = kinds(), dict[str, str]()
    for name in ("colour.png", "palette.png", "turned.png", "best.jpg", "turned_6.jpg"):
        data, (stem, ending) = files[name], name.split(".")
        for i in range(50):
            changed = bytearray(data)
            place = chance.randrange(len(data))
            changed[place] ^= chance.randrange(1, 256)
            (tmp_path / f"changed_{stem}_{i}.{ending}").write_bytes(changed)
            cut = data[: chance.randrange(len(data))]
            (tmp_path / f"cut_{stem}_{i}.{ending}").write_bytes(cut)
    for name in ("colour.png", "palette.png", "turned.png"):
        (tmp_path / name).write_bytes(files[name])
        pixels = read_image(tmp_path / name, (3,))
        whole[name.split(".")[0]] = str(zlib.crc32(pixels.numpy().tobytes()))
        (tmp_path / name).unlink()
    wide = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(1 + 3 * 30_000))
    chunks = [(b"IHDR", wide), (b"IDAT", row), (b"IEND", b"")]
    bomb = PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "huge.png").write_bytes(bomb)
    (tmp_path / "empty.png").write_bytes(b"")
    command = [sys.executable, "-c", READ, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    names = sorted(file.name for file in tmp_path.iterdir())
    results = dict(zip(names, answer.stdout.splitlines(), strict=True))
    assert results["empty.png"] == results["huge.png"] == "refused"
    for name, result in results.items():
        assert result.split()[0] in ("refused", "read"), result
        # A JPEG has no checksums: a changed byte may well be another picture. Of a PNG, the last
        # four bytes say nothing about the pixels.
        if result != "refused" and not name.endswith(".jpg"):
            assert result.split()[1] == whole[name.split("_")[1]], name
    assert sum(result == "refused" for result in results.values()) > 300


def test_an_image_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(torch.zeros(3, 20, 20, dtype=torch.uint8), str(tmp_path / "large.png"))
    monkeypatch.setattr("prunerob.data.files.MOST_PIXELS", 399)
    with pytest.raises(UserError, match=r"large\.png: has more than 89 million pixels"):
        read_image(tmp_path / "large.png", (3,))
