"""All stages on real CIFAR-10 images, in small: trained, pruned, fine-tuned, attacked.

The images are not part of the project: PRUNEROB_CIFAR10 names a folder of them, as ImageFolder or
torchvision's CIFAR10 takes it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from prunerob.attacks.attack import has_bfloat16
from prunerob.attacks.pgd import PGD
from prunerob.cli import main
from prunerob.data import CIFAR10, ImageDataModule, ImageFolder
from prunerob.networks import WideResNet
from prunerob.pixels import Pixels
from prunerob.runs.weights import load_weights
from tests.test_attacks_precision import accuracy_left

FOLDER = Path(os.environ.get("PRUNEROB_CIFAR10", ""))
CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_pgd_fast.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        "PRUNEROB_CIFAR10" not in os.environ, reason="PRUNEROB_CIFAR10 names no folder of images"
    ),
]


def images() -> tuple[list[str], ImageDataModule]:
    """The data set as settings and as it is."""
    if (FOLDER / "train").is_dir():
        name, data = "ImageFolder", ImageFolder(folder=str(FOLDER))
    else:
        name, data = "CIFAR10", CIFAR10(folder=str(FOLDER), download=False)
    return ["--data", f"prunerob.data.{name}", "--data.folder", str(FOLDER)], data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WRN-10-2, trained against PGD on 8,000 images, 70 % of its weights pruned, and tested."""
    folder = tmp_path_factory.mktemp("cifar10")
    small = ["--model.network.init_args.depth", "10", "--model.network.init_args.widen_factor", "2"]
    small += ["--data.train_size", "8000", "--data.validation_size", "500"]
    small += ["--data.init_args.test_size", "1000", "--data.batch_size", "128"]
    small += ["--trainer.max_epochs", "8", "--pruning.epoch", "6"]
    small += ["--trainer.logger.init_args.save_dir", str(folder)]
    main(["fit", "--config", str(CONFIG), *images()[0], *small])
    found = folder / "cifar10_pgd_fast" / "version_0"
    main(["test", "--ckpt_path", str(found)])
    return found


def test_all_stages(run: Path) -> None:
    rows = {
        row["attack"]: row["accuracy"]
        for row in json.loads((run / "robustness.json").read_text())["rows"]
    }
    print(rows)
    assert rows["clean"] > 0.35, "it has learned"
    order = ["clean", *(f"FGSM {n}/255" for n in (1, 2, 3, 4, 8)), "PGD 8/255", "PGD-20 8/255"]
    accuracies = [rows[name] for name in order]
    assert accuracies == sorted(accuracies, reverse=True)
    assert rows["PGD-20 8/255"] > 0.1, "above a network that was not trained to resist"
    report = json.loads((run / "pruning.json").read_text())
    assert report["shares"]["weights"] == pytest.approx(0.7, abs=1e-5)


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="bfloat16 would be emulated")
@pytest.mark.parametrize("steps", [7, 20])
def test_bfloat16_attacks_as_strongly(run: Path, steps: int) -> None:
    """PGD at 8/255, the one radius of it that ships; FGSM is in float32 always."""
    network = WideResNet(10, 2)
    load_weights(network, run / "checkpoints" / "last.ckpt")
    network = network.eval().to(memory_format=torch.channels_last)
    test = images()[1].load()[1]
    left = {}
    for precision in ("float32", "bfloat16"):
        attack = PGD(
            eps=Pixels("8/255"),
            step_size=Pixels("2/255"),
            steps=steps,
            precision=precision,  # type: ignore[arg-type]
        )
        left[precision] = accuracy_left(network, attack, test)
    print(left)
    assert 5 < left["float32"] < 95
    assert left["bfloat16"] <= left["float32"] + 0.2
