"""Data modules: MNIST as it is, splits and orders as functions of seed and epoch."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets
from torchvision.io import write_jpeg, write_png

from prunerob.data import CIFAR10, MNIST, CropAndFlip, ImageFolder
from prunerob.data.batches import Batch, Batches, Images, stratified_order
from prunerob.data.files import find_images, read_image
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.robustness.files import write_predictions


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


# Augmentation


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


# Image folders


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


def test_what_is_wrong_with_a_folder_is_told(folder: Path) -> None:
    def told(where: Path = folder, *, grey: bool = False) -> str:
        with pytest.raises(UserError) as error:
            ImageFolder(folder=str(where), grey=grey).load()
        return str(error.value)

    assert "there is no folder" in told(folder / "nowhere")
    bad = folder / "train" / "dog" / "bad.jpg"
    bad.write_bytes(b"no image")
    assert told().startswith(f"{bad}: not a readable")
    bad.unlink()
    deep = folder / "train" / "dog" / "deep.png"
    Image.fromarray(np.full((5, 6), 40000, dtype=np.uint16)).save(deep)
    assert "deep.png: has more than 8 bits a colour" in told(grey=True)
    deep.unlink()
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


# CIFAR-10


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


def test_predictions_are_called_by_their_classes_names(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    write_predictions(
        file, [(torch.tensor([0, 1]), probabilities)], ["a.png", "b.png"], ["cat", "dog"]
    )
    header, *lines = file.read_text().splitlines()
    assert header == "image,class,probability of cat,probability of dog,probability of 2"
    assert [line.split(",")[:2] for line in lines] == [["a.png", "dog"], ["b.png", "2"]]


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
