"""What leaderboards ask for: names that their code has, numbers that a test found, and no more."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunerob.artefacts.leaderboards import LEADERBOARDS, Entry, their_state
from prunerob.errors import UserError
from prunerob.networks import MnistCNN, ResNet18, WideResNet

AUTO_ATTACK = {"class_path": "prunerob.attacks.AutoAttack", "init_args": {"eps": "8/255"}}


def config(network: str, data: str = "prunerob.data.CIFAR10", **pruning: Any) -> dict[str, Any]:
    weights = "prunerob.pruning.weight_magnitude"
    defaults = {"epoch": 1, "amount": 0.9, "criterion": weights}
    return {
        "model": {"network": {"class_path": f"prunerob.networks.{network}", "init_args": {}}},
        "data": {"class_path": data, "init_args": {}},
        "pruning": {**defaults, **pruning},
    }


def found(images: int = 10_000, eps: str = "8/255") -> dict[str, Any]:
    rows = [
        {"attack": "clean", "accuracy": 0.8342, "images": 10_000},
        {"attack": "AA", "accuracy": 0.4541, "images": images},
    ]
    attack = {**AUTO_ATTACK, "init_args": {"eps": eps}}
    return {"rows": rows, "attacks": {"AA": attack}, "warnings": []}


class TheirBlock(nn.Module):
    """The tensors of a block of RobustBench's WideResNet, by the names of its code."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.change = stride != 1 or inputs != outputs
        if self.change:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.bn1(x).relu()
        out = self.conv2(self.bn2(self.conv1(seen)).relu())
        return out + (self.convShortcut(seen) if self.change else x)


class TheirWideResNet(nn.Module):
    def __init__(self, depth: int, widen: int) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for i, stride in enumerate((1, 2, 2), start=1):
            block = nn.Module()
            layers = [TheirBlock(widths[i - 1], widths[i], stride)]
            layers += [TheirBlock(widths[i], widths[i], 1) for _ in range(n - 1)]
            block.layer = nn.Sequential(*layers)
            setattr(self, f"block{i}", block)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for i in (1, 2, 3):
            x = self.get_submodule(f"block{i}").layer(x)
        logits: torch.Tensor = self.fc(nn.functional.avg_pool2d(self.bn1(x).relu(), 8).flatten(1))
        return logits


def test_a_wide_residual_network_answers_the_same_under_their_names() -> None:
    torch.manual_seed(0)
    ours, theirs = WideResNet(depth=16, widen_factor=2).eval(), TheirWideResNet(16, 2).eval()
    for norm in (m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    theirs.load_state_dict(their_state(ours), strict=True)
    x = torch.rand(3, 3, 32, 32)
    assert ours(x).std() > 0.1
    assert torch.allclose(theirs(ours.normalize(x)), ours(x), atol=1e-5)


def test_a_residual_network_has_their_names() -> None:
    state = their_state(ResNet18())
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{k}" for k in kinds)}
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{layer}.{block}"
            expected |= {f"{at}.conv{n}.weight" for n in (1, 2)}
            expected |= {f"{at}.bn{n}.{k}" for n in (1, 2) for k in kinds}
            if layer > 1 and block == 0:
                expected |= {f"{at}.shortcut.0.weight", *(f"{at}.shortcut.1.{k}" for k in kinds)}
    assert set(state) == expected
    assert state["linear.weight"].shape == (10, 512)


def test_robustbench_gets_weights_a_record_and_a_class(tmp_path: Path) -> None:
    network = WideResNet(depth=10, widen_factor=1)
    of = config("WideResNet")
    of["model"]["network"]["init_args"] = {"depth": 10, "widen_factor": 1}
    entry = Entry.of(network, of, found())
    left = LEADERBOARDS["robustbench"].write(entry, tmp_path)
    assert left == ["model_info.json: link, name, authors and venue are yours to fill in"]
    record = json.loads((tmp_path / "model_info.json").read_text())
    assert record["architecture"] == "WRN-10-1"
    assert (record["clean_acc"], record["autoattack_acc"]) == ("83.42", "45.41")
    assert (record["dataset"], record["eps"]) == ("cifar10", "8/255")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    TheirWideResNet(10, 1).load_state_dict(state, strict=True)
    code = (tmp_path / "model.py").read_text()
    ast.parse(code)
    assert "depth=10, widen_factor=1, num_classes=10" in code
    assert "0.4914, 0.4822, 0.4465" in code


def test_what_a_test_lacks_is_told(tmp_path: Path) -> None:
    board = LEADERBOARDS["robustbench"]
    few = Entry.of(WideResNet(), config("WideResNet"), found(1000, "4/255"))
    assert board.write(few, tmp_path)[:2] == [
        "AutoAttack on all 10,000 test images, not on 1,000",
        "AutoAttack at eps 0.0314, not 0.0157",
    ]
    none = Entry.of(WideResNet(), config("WideResNet"), None)
    assert board.write(none, tmp_path)[0].startswith("AutoAttack was not run")
    assert json.loads((tmp_path / "model_info.json").read_text())["clean_acc"] is None


def test_the_pruning_benchmark_gets_what_its_form_asks(tmp_path: Path) -> None:
    board = LEADERBOARDS["apbench"]
    left = board.write(Entry.of(ResNet18(), config("ResNet18"), found()), tmp_path)
    record = json.loads((tmp_path / "entry.json").read_text())
    assert (record["structure"], record["sparsity_rate"]) == ("weights", "90")
    assert record["robust_accuracy_aa"] == "45.41"
    assert record["normalization"]["mean"] == [0.4914, 0.4822, 0.4465]
    assert len(left) == 1
    filters = config("ResNet18", criterion="prunerob.pruning.filter_l1", amount=0.6)
    left = board.write(Entry.of(ResNet18(), filters, found()), tmp_path)
    assert json.loads((tmp_path / "entry.json").read_text())["structure"] == "filters"
    assert left[0] == "it ranks 50, 75, 90 % pruned, not 60 %"


@pytest.mark.parametrize(
    ("board", "network", "of", "told"),
    [
        ("robustbench", MnistCNN(), config("MnistCNN"), "not MnistCNN"),
        ("robustbench", ResNet18(width=8), config("ResNet18"), "a width of 64 alone"),
        (
            "robustbench",
            WideResNet(depth=10),
            config("WideResNet", "prunerob.data.ImageFolder"),
            "it ranks CIFAR10, not ImageFolder",
        ),
        ("apbench", WideResNet(depth=10), config("WideResNet"), "it ranks ResNet-18 on CIFAR10"),
        ("apbench", ResNet18(), config("ResNet18", amount=0), "nothing of this network was pruned"),
    ],
)
def test_what_has_no_place_is_refused(
    board: str, network: nn.Module, of: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--for") as refused:
        LEADERBOARDS[board].write(Entry.of(network, of, None), tmp_path)
    assert told in str(refused.value)
    assert not list(tmp_path.iterdir())
