"""Images in folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import write_jpeg, write_png

from prunerob.data import ImageFolder
from prunerob.data.files import find_images, read_image
from prunerob.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, PNG and JPEG, 6x5 pixels; each image's brightness tells where it belongs."""
    for part, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = torch.full((3, 5, 6), 100 * label + 10 * i, dtype=torch.uint8)
                write = write_png if i % 2 else write_jpeg
                write(pixels, str(place / f"{i}.{'png' if i % 2 else 'jpg'}"))
    return tmp_path


@pytest.mark.parametrize("grey", [False, True])
def test_folders_of_images_are_a_data_set(folder: Path, grey: bool) -> None:
    data = ImageFolder(folder=str(folder), grey=grey, validation_size=4, batch_size=6)
    train, test = data.load()
    assert train.pixels.shape == (10, 1 if grey else 3, 5, 6)
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert data.class_names == ["cat", "dog"]
    brightness = train.pixels.float().mean((1, 2, 3))
    expected = torch.tensor([100.0 * label + 10 * i for label in (0, 1) for i in range(5)])
    assert (brightness - expected).abs().max() <= 2
    (batch,) = data.train_dataloader()
    assert batch.x.shape == (6, 1 if grey else 3, 5, 6)
    assert batch.y.bincount().tolist() == [3, 3], "stratified"


def test_images_of_any_size_are_made_one(folder: Path) -> None:
    large = torch.zeros(3, 40, 80, dtype=torch.uint8)
    large[0, :, 10:70] = 200  # the square in the middle is red, and what smoothing sees of it
    write_png(large, str(folder / "test" / "dog" / "large.png"))
    data = ImageFolder(folder=str(folder), size=4, validation_size=0)
    train, test = data.load()
    assert train.pixels.shape == (10, 3, 4, 4)
    assert test.pixels.shape == (5, 3, 4, 4)
    assert (test.pixels[-1] == torch.tensor([200, 0, 0]).view(3, 1, 1)).all()
    data.predict_folder = str(folder / "test")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert torch.equal(batch.x, test.pixels.float() / 255)
    with pytest.raises(UserError, match=r"data\.size: 0 is below 1"):
        ImageFolder(folder=str(folder), size=0)
    with pytest.raises(UserError, match=r"data\.size: an image of 10000 pixels a side has more"):
        ImageFolder(folder=str(folder), size=10_000)


def test_images_that_fill_the_memory_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensors: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 40000000000 bytes")

    monkeypatch.setattr(torch, "stack", refuse)
    with pytest.raises(UserError, match=r"data\.folder: 10 images of .* do not fit into memory"):
        ImageFolder(folder=str(folder), size=4).load()


def test_what_is_wrong_with_a_folder_is_told(folder: Path) -> None:
    def told(where: Path = folder) -> str:
        with pytest.raises(UserError) as error:
            ImageFolder(folder=str(where)).load()
        return str(error.value)

    assert "there is no folder" in told(folder / "nowhere")
    bad = folder / "train" / "dog" / "bad.jpg"
    bad.write_bytes(b"no image")
    assert told().startswith(f"{bad}: not a readable")
    bad.unlink()
    write_png(torch.zeros(3, 5, 7, dtype=torch.uint8), str(folder / "test" / "dog" / "wide.png"))
    assert "wide.png: 7x5 pixels, but the data set's are 6x5" in told()
    (folder / "test" / "dog" / "wide.png").unlink()
    (folder / "test" / "fox").mkdir()
    assert "fox holds no .png" in told()
    write_png(torch.zeros(3, 5, 6, dtype=torch.uint8), str(folder / "test" / "fox" / "1.png"))
    assert "test has the class fox, but train has not" in told()
    for part in ("train", "test"):
        (folder / "flat" / part).mkdir(parents=True)
    assert "holds no folders, one for each class" in told(folder / "flat")
    single = folder / "single" / "train" / "cat"
    single.mkdir(parents=True)
    shutil.copytree(folder / "train" / "cat", single, dirs_exist_ok=True)
    shutil.copytree(folder / "train" / "cat", folder / "single" / "test" / "cat")
    assert "train has a single class, cat" in told(folder / "single")


def test_hidden_files_are_not_images_and_pictures_stand_upright(folder: Path) -> None:
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / "._1.jpg").write_bytes(b"what macOS leaves behind")
    assert len(ImageFolder(folder=str(folder)).load()[0].labels) == 10

    array = np.zeros((5, 6, 3), dtype=np.uint8)
    array[:3] = 255  # as taken, bright above; the camera says it was held sideways
    exif = Image.Exif()
    exif[0x0112] = 6
    file = folder / "test" / "sideways.jpg"
    Image.fromarray(array).save(file, exif=exif, quality=100)
    pixels = read_image(file, (3,))
    assert pixels.shape == (3, 6, 5)
    assert pixels[:, :, 4].min() > 200
    assert pixels[:, :, 0].max() < 50

    for name in ("moving.png", "webp.png"):
        strange = folder / "test" / name
        frames = [Image.fromarray(array), Image.fromarray(255 - array)]
        if name == "webp.png":
            frames[0].save(strange, format="WEBP")
        else:
            frames[0].save(strange, format="GIF", save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=f"{name}: not a "):
            read_image(strange, (1,))


def test_images_in_hidden_folders_are_none(folder: Path) -> None:
    before = find_images(folder, "data.folder")
    hidden = folder / before[0].parent.relative_to(folder) / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(before[0], hidden / "copy.png")
    (folder / "folder.png").mkdir()
    assert find_images(folder, "data.folder") == before


def test_an_attacker_of_a_folder_gets_images_of_all_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in "abcde":
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
                write_png(pixels, str(folder / f"{i}.png"))
    data = ImageFolder(folder=str(tmp_path), validation_size=5, eval_batch_size=10)
    data.setup("test")
    own, mixed = data.test_dataloader(), data.attacker_dataloader()
    assert set(next(iter(own)).y.tolist()) == {0, 1}, "the test is class by class"
    assert set(next(iter(mixed)).y.tolist()) == {0, 1, 2, 3, 4}
    assert sorted(mixed.index.tolist()) == own.index.tolist() == list(range(30))
