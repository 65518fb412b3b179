"""One command from a run to verified, attacked, described artefacts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import write_jpeg

from prunerob.artefacts.speed import Latency
from prunerob.cli import main
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent


def photographs(folder: Path, size: int) -> None:
    """Ten classes of noise around a colour of their own."""
    draw = torch.Generator().manual_seed(0)
    for part, count in (("train", 40), ("test", 4)):
        for name in range(10):
            place = folder / part / str(name)
            place.mkdir(parents=True)
            colour = torch.randint(0, 255, (3, 1, 1), generator=draw)
            for i in range(count):
                noise = torch.randint(-40, 40, (3, size, size), generator=draw)
                write_jpeg((colour + noise).clamp(0, 255).byte(), str(place / f"{i}.jpg"))


def exported(run: str, to: str, attack: str, formats: str) -> dict[str, object]:
    """The card of a run that was exported and attacked in one command."""
    args = ["--format", formats, "--int8", "static", "--sparse", "--images", "40"]
    settings = ["--model.attacks", attack, "--model.scrutinized_images", "0"]
    main(["export", run, *args, "--test", "--to", to, *settings])
    card: dict[str, object] = json.loads(Path(to, "MODEL_CARD.json").read_text())
    return card


def test_a_run_is_exported_attacked_and_described() -> None:
    main(["fit", "--config", TINY, "--pruning.criterion", "prunerob.pruning.filter_l1"])
    attack = (
        "{PGD: {class_path: prunerob.attacks.PGD, init_args: {eps: 0.3, steps: 3}}, "
        "Square: {class_path: prunerob.attacks.Square, init_args: {eps: 0.3, queries: 20}}}"
    )
    card = exported("lightning_logs/tiny/version_0", "net", attack, "onnx,executorch")
    attacked = card["attacked"]
    assert isinstance(attacked, dict)
    assert list(attacked) == ["model.onnx", "model.int8.onnx", "model.int8.pte"]
    for test in attacked.values():
        names = [row["attack"] for row in test["rows"]]
        assert names == ["clean", "PGD", "Square", "PGD, transferred", "worst case"]
        assert test["rows"][2]["gradients"] == "none: answers alone"
    text = Path("net/MODEL_CARD.md").read_text()
    assert "| model.int8.pte | PGD |" in text
    code = [sys.executable, str(ROOT / "examples" / "deploy.py"), "net/model.int8.sparse.onnx"]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size"),
    [
        ("{class_path: prunerob.networks.WideResNet, init_args: {depth: 10, widen_factor: 1}}", 32),
        ("{class_path: torchvision.models.resnet18, init_args: {num_classes: 10}}", 48),
    ],
)
def test_networks_of_colours_too(network: str, size: int, tmp_path: Path) -> None:
    photographs(tmp_path / "photographs", size)
    data = ["--data", "prunerob.data.ImageFolder", "--data.folder", str(tmp_path / "photographs")]
    data += ["--data.validation_size", "20", "--data.batch_size", "20", "--data.train_size", "null"]
    data += ["--data.test_size", "null"]
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.3"]
    # Long enough that the logits are no near ties, which integers turn.
    fgsm = "{class_path: prunerob.attacks.FGSM, init_args: {eps: 2/255}}"
    training = ["--model.adversarial_training.attack", fgsm, "--model.validation_attack", fgsm]
    training += ["--model.validation_attack_images", "20"]
    training += ["--trainer.max_epochs", "6", "--pruning.epoch", "2"]
    main(["fit", "--config", TINY, "--model.network", network, *data, *filters, *training])
    attack = "{PGD: {class_path: prunerob.attacks.PGD, init_args: {eps: 8/255, steps: 3}}}"
    card = exported("lightning_logs/tiny/version_0", "net", attack, "onnx,pt2,safetensors")
    attacked, counts = card["attacked"], card["parameters"]
    assert isinstance(attacked, dict)
    assert isinstance(counts, dict)
    assert list(attacked) == ["model.onnx", "model.int8.onnx"]
    assert counts["exported"] < counts["full"]


def test_a_narrow_file_that_is_slower_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from prunerob.artefacts.export import WIDE, _tell_if_slow

    def latency(p50: float) -> Latency:
        return Latency(images=128, threads=1, p50=p50, p95=p50)

    _tell_if_slow({WIDE: [latency(1.0)], "model.onnx": [latency(0.5)]})
    assert capsys.readouterr().out == ""
    _tell_if_slow({WIDE: [latency(1.0)], "model.onnx": [latency(2.0)]})
    assert "try --multiple-of 8" in capsys.readouterr().out
