"""The methods that keep robustness, on the paper's CIFAR-10 networks: smoke runs on real images.

The images are not part of the project: see test_configs_cifar10.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from prunerob.cli import main
from tests.test_configs_cifar10 import CONFIG, FOLDER, images, pytestmark  # noqa: F401

NETWORKS = {
    "WRN-28-4": ["--model.network", "prunerob.networks.WideResNet"],
    "ResNet-18": ["--model.network", "prunerob.networks.ResNet18"],
}

PRUNING = "prunerob.pruning."
OBJECTIVES = "prunerob.training.objectives."
GRADUAL = ["--pruning.schedule", PRUNING + "Gradual", "--pruning.schedule.epochs", "1"]
AWP = ["--model.adversarial_training.weight_perturbation", "0.005"]
AWP += ["--model.adversarial_training.weight_perturbation_warmup", "0"]
EMA = ["--model.averaging", "0.9"]


def criterion(name: str, amount: float, *settings: str) -> list[str]:
    """Options that prune by it; settings are its own."""
    words = ["--pruning.criterion", PRUNING + name, "--pruning.amount", str(amount)]
    for setting in settings:
        key, _, value = setting.partition("=")
        words += [f"--pruning.criterion.{key}", value]
    return words


def objective(name: str) -> list[str]:
    """Options of fine-tuning."""
    return ["--model.fine_tuning.objective", OBJECTIVES + name]


METHODS = {
    "LAMP, gradual, TRADES, AWP": [*criterion("lamp", 0.9), *GRADUAL, *objective("TRADES"), *AWP],
    "Taylor, RSLAD, EMA": [*criterion("Taylor", 0.95, "batches=2"), *objective("RSLAD"), *EMA],
    "HYDRA, uniform, MART": [
        *criterion("Hydra", 0.9, "epochs=1"),
        *("--pruning.budget", "uniform"),
        *objective("MART"),
    ],
    "HARP, gradual, ARD": [*criterion("Harp", 0.9, "epochs=1"), *GRADUAL, *objective("ARD")],
    "filters, Taylor, AWP, EMA": [*criterion("FilterTaylor", 0.3, "batches=2"), *AWP, *EMA],
    "filters, HYDRA, uniform, gradual": [
        *criterion("FilterHydra", 0.4, "epochs=1"),
        *("--pruning.budget", "uniform", "--pruning.residual", "remove"),
        *GRADUAL,
    ],
    "filters, HARP, RSLAD": [*criterion("FilterHarp", 0.3, "epochs=1"), *objective("RSLAD")],
}


def few_images() -> list[str]:
    """The data set as settings; of a folder some images of each class, which are read sooner."""
    if not (FOLDER / "train").is_dir():
        return images()[0]
    for part in ("train", "test"):
        for label in sorted((FOLDER / part).iterdir()):
            there = Path("few") / part / label.name
            there.mkdir(parents=True)
            for file in sorted(label.iterdir())[:20]:
                (there / file.name).symlink_to(file.resolve())
    return ["--data", "prunerob.data.ImageFolder", "--data.folder", "few"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_method_runs(network: str, method: str) -> None:
    small = ["--data.train_size", "48", "--data.validation_size", "20"]
    small += ["--data.init_args.test_size", "20", "--data.batch_size", "24"]
    small += ["--trainer.max_epochs", "3", "--pruning.epoch", "1"]
    small += ["--model.adversarial_training.attack.steps", "1"]
    small += ["--model.validation_attack_images", "20", "--model.validation_probe_images", "0"]
    options = METHODS[method]
    main(["fit", "--config", str(CONFIG), *few_images(), *small, *NETWORKS[network], *options])
    run = Path("lightning_logs/cifar10_pgd_fast/version_0")
    report = json.loads((run / "pruning.json").read_text())
    amount = float(options[options.index("--pruning.amount") + 1])
    # Filters go as wholes, so that the last one may take more than what was asked for.
    more = 0.05 if report["unit"] == "filters" else 1e-4
    assert amount - 1e-4 <= report["shares"]["weights"] <= amount + more
    held = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state = held["state_dict"]
    for name, mask in held["callbacks"]["Pruning"]["masks"].items():
        key = next(k for k in state if k.endswith(name))
        assert not state[key][~mask].any(), name
    assert all(math.isfinite(float(v.abs().sum())) for v in state.values())
