"""Files that nobody would write: each reader takes them, or refuses them in one line.

The examples are the same each time (see `tests.conftest`): a few in the quick tests, 500 of each
kind in the slow ones.
"""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prunerob.cli import main
from prunerob.commands.configurations import check_file
from prunerob.data.files import read_image
from prunerob.errors import UserError
from prunerob.reports.reading import read_results
from prunerob.runs.weights import load_weights
from prunerob.training.resuming import check_training_state
from tests.conftest import TINY, made_once, small

Test = Callable[..., None]

FEW, MANY = 40, 500


def fuzz(test: Test, *fixtures: str) -> tuple[Test, ...]:
    """A quick and a slow test of the same property, with some fixtures."""
    common: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    quick = settings(max_examples=FEW, **common)(given(st.data())(test))

    def many(data: st.DataObject) -> None:
        test(data)

    slow = settings(max_examples=MANY, **common)(given(st.data())(many))
    slow = pytest.mark.timeout(7200)(pytest.mark.slow(slow))
    return tuple(pytest.mark.usefixtures(*fixtures)(t) if fixtures else t for t in (quick, slow))


def refused_in_a_line(read: Callable[[], object]) -> bool:
    """Whether a file is refused; any other error fails the test."""
    try:
        read()
    except UserError as error:
        told = " ".join(str(error).split())
    else:
        return False
    assert 0 < len(told) < 2000
    return True


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some of its bytes changed, cut off, repeated or put in."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "repeat", "drop", "zero"]))
        if kind == "change" and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=40))
        elif kind == "repeat":
            content[place:place] = content[place : place + draw(st.integers(1, 200))]
        elif kind == "drop":
            del content[place : place + draw(st.integers(1, 200))]
        else:
            size = min(draw(st.integers(1, 200)), len(content) - place)
            content[place : place + size] = bytes(size)
    return bytes(content)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "nan", "torch.nn.Linear", "../..", "-1", "{}", "\x00", "=1+1"]),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3)
    ),
    max_leaves=6,
)
"""Values that JSON and YAML know."""


@st.composite
def altered(draw: st.DrawFn, value: Any, new: st.SearchStrategy[Any] = plain) -> Any:
    """Plain values with one of them, somewhere, taken away or replaced."""
    value = copy.copy(value)
    if not (isinstance(value, dict | list) and value) or draw(st.integers(0, 5)) == 0:
        return draw(new)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 4)) == 0:
        del value[key]
    else:
        value[key] = draw(altered(value[key], new))
    return value


# Configurations


def configurations(data: st.DataObject) -> None:
    file = Path("c.yaml")
    whole = Path(TINY).read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "damaged", "altered"]))
    if kind == "bytes":
        file.write_bytes(data.draw(st.binary(max_size=300)))
    elif kind == "damaged":
        file.write_bytes(data.draw(damaged(whole)))
    else:
        changed = data.draw(altered(yaml.safe_load(whole)))
        file.write_text(yaml.safe_dump(changed, allow_unicode=True), "utf-8", "surrogatepass")
    refused_in_a_line(lambda: check_file(file))


test_configurations, test_configurations_many = fuzz(configurations)


# Checkpoints

BYTES: dict[Path, bytes] = {}
"""Files that were read before."""


def bytes_of(file: Path) -> bytes:
    if file not in BYTES:
        BYTES[file] = file.read_bytes()
    return BYTES[file]


tensors = st.sampled_from(
    [
        torch.zeros(0),
        torch.full((3, 3), torch.nan),
        torch.eye(3).to_sparse(),
        torch.arange(4),
        torch.ones(2, dtype=torch.complex64),
        torch.zeros(8, 1, 5, 5),
    ]
)


@pytest.fixture(scope="session")
def checkpoint(finished: Path) -> Path:
    CHECKPOINT.append(finished / "checkpoints" / "last.ckpt")
    return CHECKPOINT[-1]


CHECKPOINT: list[Path] = []


def damaged_checkpoints(data: st.DataObject) -> None:
    """What is not refused has the weights that were written."""
    file = Path("made.ckpt")
    file.write_bytes(data.draw(damaged(bytes_of(CHECKPOINT[-1]))))
    network = small()
    if not refused_in_a_line(lambda: load_weights(network, file)):
        sound = small()
        load_weights(sound, CHECKPOINT[-1])
        for name, value in sound.state_dict().items():
            assert torch.equal(network.state_dict()[name], value)


def made_checkpoints(data: st.DataObject) -> None:
    file = Path("made.ckpt")
    sound = torch.load(CHECKPOINT[-1], weights_only=True)
    changed = data.draw(altered(sound, plain | tensors))
    torch.save(changed, file)
    refused_in_a_line(lambda: check_training_state(small(), file, 9, ends=False))


test_damaged_checkpoints, test_damaged_checkpoints_many = fuzz(damaged_checkpoints, "checkpoint")
test_made_checkpoints, test_made_checkpoints_many = fuzz(made_checkpoints, "checkpoint")


# Images


def _image(kind: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, len(mode)), dtype=np.uint8)
    content = io.BytesIO()
    image = Image.fromarray(pixels.squeeze(), mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(content, kind, exif=exif)
    return content.getvalue()


IMAGES = [_image("PNG", "L"), _image("PNG", "RGB"), _image("JPEG", "L"), _image("JPEG", "RGB")]


def images(data: st.DataObject) -> None:
    file = Path("image.png")
    file.write_bytes(data.draw(damaged(data.draw(st.sampled_from(IMAGES)))))
    channels = data.draw(st.sampled_from([1, 3]))
    read = []
    if not refused_in_a_line(lambda: read.append(read_image(file, (channels,)))):
        assert read[0].dtype == torch.uint8
        assert read[0].shape[0] == channels


test_images, test_images_many = fuzz(images)


# Result files


@pytest.fixture(scope="session")
def tested(finished: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A finished run with its test; its files are put back after each example."""

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder / "run")
        main(["test", "--ckpt_path", str(folder / "run")])

    run = made_once("tested", make, tmp_path_factory, worker_id) / "run"
    TESTED.append(run)
    return run


TESTED: list[Path] = []
FILES = ("robustness.json", "robustness_images.csv", "summary.json", "pruning.json", "config.yaml")


def result_files(data: st.DataObject) -> None:
    """What is not refused has accuracies that are ones."""
    run = Path("tested")
    shutil.rmtree(run, ignore_errors=True)
    (run / "checkpoints").mkdir(parents=True)
    for name in FILES:
        (run / name).write_bytes(bytes_of(TESTED[-1] / name))
    name = data.draw(st.sampled_from(FILES))
    whole = bytes_of(TESTED[-1] / name)
    if name.endswith(".json") and data.draw(st.booleans()):
        changed = data.draw(altered(json.loads(whole)))
        (run / name).write_text(json.dumps(changed), "utf-8")
    else:
        (run / name).write_bytes(data.draw(damaged(whole)))
    read: list[Any] = []
    if not refused_in_a_line(lambda: read.append(read_results([str(run)]))):
        for result in read[0].all:
            for row in result.robustness.rows:
                assert math.isfinite(row.accuracy)
                assert 0 <= row.accuracy <= 1


test_result_files, test_result_files_many = fuzz(result_files, "tested")
