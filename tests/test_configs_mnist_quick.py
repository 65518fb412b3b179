"""Minutes of training: what `make demo` promises, and attacks on the network that it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunerob.attacks import PGD, Attack
from prunerob.attacks.pgd import margin
from prunerob.cli import main
from prunerob.data import MNIST
from prunerob.networks import MnistCNN
from prunerob.pixels import Pixels
from prunerob.runs.weights import load_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONFIG = str(Path(__file__).parent.parent / "configs" / "mnist_quick.yaml")


@pytest.fixture(scope="module", params=range(5))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished and tested run of the demo, for each of five seeds."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", CONFIG, "--seed_everything", str(request.param)])
        main(["test"])
    return folder / "lightning_logs" / "mnist_quick" / "version_0"


def test_a_tenth_of_the_weights_keeps_90_percent_under_pgd(run: Path) -> None:
    assert json.loads((run / "pruning.json").read_text())["shares"]["weights"] >= 0.89999
    rows = {r["attack"]: r for r in json.loads((run / "robustness.json").read_text())["rows"]}
    assert rows["PGD 0.3"]["images"] == 10_000
    assert rows["PGD 0.3"]["accuracy"] >= 0.90


def test_bfloat16_attacks_as_strongly_as_float32_on_a_robust_network(run: Path) -> None:
    network = MnistCNN()
    load_weights(network, run / "weights.safetensors")
    test = MNIST().load()[1]

    def accuracy(attack: Attack) -> float:
        right = 0
        for chosen in torch.arange(10_000).split(250):
            x, y = test.pixels[chosen].float() / 255, test.labels[chosen]
            right += int((margin(network, attack(network, x, y, key=chosen), y) > 0).sum())
        return right / 10_000

    for eps in (0.1, 0.2, 0.3):
        exact = accuracy(PGD(eps=Pixels(eps), precision="float32"))
        assert accuracy(PGD(eps=Pixels(eps), precision="bfloat16")) <= exact + 0.002, eps
