"""The networks in zoo/: complete, small, and as good as their tables say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from prunerob.cli import main
from prunerob.networks import MnistCNN
from prunerob.runs.weights import load_weights

ZOO = Path(__file__).parent.parent / "zoo"
NETWORKS = sorted(file.stem for file in ZOO.glob("*.safetensors"))


def rows(file: Path) -> dict[str, float]:
    return {row["attack"]: row["accuracy"] for row in json.loads(file.read_text())["rows"]}


def test_it_is_small() -> None:
    kept = [file for ending in ("safetensors", "yaml", "json") for file in ZOO.glob(f"*.{ending}")]
    assert sum(file.stat().st_size for file in kept) < 20e6
    assert len(NETWORKS) >= 10


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_its_configuration_and_table(name: str) -> None:
    network = MnistCNN()
    load_weights(network, ZOO / f"{name}.safetensors")
    config = yaml.safe_load((ZOO / f"{name}.yaml").read_text())
    found = json.loads((ZOO / f"{name}_table.json").read_text())
    assert found["seed"] == config["seed_everything"]
    assert found["suite"]["attacks"] == config["model"]["attacks"]
    assert found["rows"][0]["images"] == 10_000
    assert found["rows"][-1]["attack"] == "worst case"
    weights = [p for p in network.parameters() if p.dim() > 1]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    if "weight" in config["pruning"]["criterion"]:
        amount = config["pruning"]["amount"] if config["pruning"]["epoch"] is not None else 0
        assert zeros == pytest.approx(amount, abs=1e-5)


def test_a_row_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean and FGSM, which take seconds; the slow test does the whole suite."""
    name = "mnist_pgd_weight-0.94"
    for ending in (".safetensors", ".yaml"):
        shutil.copy(ZOO / f"{name}{ending}", tmp_path)
    config = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
    attacks = config["model"]["attacks"]
    config["model"]["attacks"] = {n: a for n, a in attacks.items() if n.startswith("FGSM")}
    config["model"]["scrutinized_images"] = 0
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    main(["test", "--ckpt_path", f"{name}.safetensors"])
    found, expected = rows(Path(f"{name}_robustness.json")), rows(ZOO / f"{name}_table.json")
    for attack in ("clean", *config["model"]["attacks"]):
        assert found[attack] == pytest.approx(expected[attack], abs=0.001), attack


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_pgd_weight-0.94", "mnist_standard_dense"])
def test_whole_tables_are_measured_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ending in (".safetensors", ".yaml"):
        shutil.copy(ZOO / f"{name}{ending}", tmp_path)
    monkeypatch.chdir(tmp_path)
    main(["test", "--ckpt_path", f"{name}.safetensors"])
    found, expected = rows(Path(f"{name}_robustness.json")), rows(ZOO / f"{name}_table.json")
    assert found.keys() == expected.keys()
    for attack, accuracy in expected.items():
        assert found[attack] == pytest.approx(accuracy, abs=0.005), attack
