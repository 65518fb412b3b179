"""What leaderboards of robustness ask for: weights under their names, and a record in their form.

RobustBench (arXiv:2010.09670) takes networks for CIFAR-10 at eps 8/255, the Adversarial Pruning
Benchmark (arXiv:2409.01249) pruned ones. They have WideResNet or ResNet-18, by names of their own.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.networks.resnet import ResNet18
from prunerob.networks.wide_resnet import WideResNet
from prunerob.pixels import Pixels
from prunerob.pruning.cut import Cut
from prunerob.pruning.scores import scores_filters
from prunerob.runs.configuration import find_object, instantiate
from prunerob.runs.folder import write_whole

EPS = 8 / 255
"""Radius of the balls that RobustBench ranks CIFAR-10 by."""
IMAGES = 10_000
"""Test images that both rank by."""
DATA = {"CIFAR10": "cifar10"}
"""Classes of data that RobustBench has, with its names."""

RENAMED: Mapping[type[nn.Module], Sequence[tuple[str, str]]] = {
    WideResNet: (
        (r"^stem\.", "conv1."),
        (r"^stage(\d)\.(\d+)\.shortcut\.", r"block\1.layer.\2.convShortcut."),
        (r"^stage(\d)\.(\d+)\.", r"block\1.layer.\2."),
        (r"^bn\.", "bn1."),
        (r"^linear\.", "fc."),
    ),
    ResNet18: (
        (r"^stem\.", "conv1."),
        (r"^stem_bn\.", "bn1."),
        (r"^stage(\d)\.(\d+)\.shortcut\.", r"layer\1.\2.shortcut.0."),
        (r"^stage(\d)\.(\d+)\.shortcut_bn\.", r"layer\1.\2.shortcut.1."),
        (r"^stage(\d)\.(\d+)\.", r"layer\1.\2."),
    ),
}
"""Names of tensors, ours and theirs, by network; the first that fits counts."""


def their_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights of a network under the names that both leaderboards' code has for them.

    Args:
        network: WideResNet or ResNet18, in its full shape.

    Raises:
        UserError: it is another.
    """
    rules = RENAMED.get(type(network))
    if rules is None:
        names = ", ".join(known.__name__ for known in RENAMED)
        raise UserError(f"--for: leaderboards have {names}, not {type(network).__name__}")
    if isinstance(network, ResNet18) and network.stem.out_channels != 64:
        raise UserError("--for: leaderboards have ResNet18 with a width of 64 alone")
    state = {}
    for name, tensor in network.state_dict().items():
        pattern, theirs = next(((p, t) for p, t in rules if re.search(p, name)), ("", ""))
        state[re.sub(pattern, theirs, name)] = tensor.detach().clone()
    return state


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is to be submitted.

    Args:
        network: in its full shape, on the CPU.
        config: of the run, in plain values.
        tested: what a test found, as in the card; None if there was none.
        filters: whether filters were pruned; None if nothing was.
    """

    network: nn.Module
    config: Mapping[str, Any]
    tested: dict[str, Any] | None
    filters: bool | None

    @classmethod
    def of(
        cls, network: nn.Module, config: Mapping[str, Any], tested: dict[str, Any] | None
    ) -> Entry:
        """Of a run; its configuration says what was pruned."""
        pruning = config["pruning"]
        is_pruned = pruning["epoch"] is not None and pruning["amount"]
        filters = None
        if is_pruned:
            criterion = pruning["criterion"]
            read = instantiate if isinstance(criterion, Mapping) else find_object
            filters = scores_filters(Cut(criterion=read(criterion)).scores(network))
        return cls(network=network, config=config, tested=tested, filters=filters)

    @property
    def data(self) -> str:
        """The class of its data."""
        return str(self.config["data"]["class_path"]).rpartition(".")[2]

    @property
    def architecture(self) -> str:
        """As papers write it: WRN-28-4, ResNet-18."""
        if isinstance(self.network, WideResNet):
            settings = {"depth": 28, "widen_factor": 4, **self._settings()}
            return f"WRN-{settings['depth']}-{settings['widen_factor']}"
        return "ResNet-18"

    def _settings(self) -> Mapping[str, Any]:
        return self.config["model"]["network"].get("init_args") or {}

    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each colour, in pixel units of [0, 1]."""
        layer = self.network.normalize
        mean, std = (t.flatten().tolist() for t in (layer.mean, layer.std))  # type: ignore[union-attr, operator]
        return [round(v, 6) for v in mean], [round(v, 6) for v in std]

    def row(self, kind: str) -> Mapping[str, Any] | None:
        """The row of the test for clean images, or of AutoAttack's."""
        if self.tested is None:
            return None
        classes = {name: a["class_path"] for name, a in self.tested["attacks"].items()}
        rows: list[Mapping[str, Any]] = self.tested["rows"]
        for row in rows:
            name = str(classes.get(row["attack"], row["attack"])).rpartition(".")[2]
            if name == kind:
                return row
        return None

    def eps(self) -> float | None:
        """Radius of AutoAttack's balls in the test, in pixel units of [0, 1]."""
        row = self.row("AutoAttack")
        if row is None or self.tested is None:
            return None
        return float(Pixels(self.tested["attacks"][row["attack"]]["init_args"]["eps"]))

    def lacks(self, images: int = IMAGES, eps: float = EPS) -> list[str]:
        """What a leaderboard will want that the test does not have, a line each."""
        row, tested_eps = self.row("AutoAttack"), self.eps()
        if row is None or tested_eps is None:
            return ["AutoAttack was not run; `prunerob test` with it in model.attacks"]
        lines = []
        if row["images"] < images:
            lines.append(f"AutoAttack on all {images:,} test images, not on {row['images']:,}")
        if abs(tested_eps - eps) > 1e-6:
            lines.append(f"AutoAttack at eps {eps:.4f}, not {tested_eps:.4f}")
        return lines


class Leaderboard(ABC):
    """A leaderboard: what it takes, and in which form."""

    name: ClassVar[str]

    @abstractmethod
    def write(self, entry: Entry, folder: Path) -> list[str]:
        """Write the files of a submission.

        Args:
            entry: what is to be submitted.
            folder: that is there and takes them.

        Returns:
            what is still to be done, a line each.

        Raises:
            UserError: the leaderboard has no place for such a network.
        """


class RobustBench(Leaderboard):
    """RobustBench: weights for its architectures, its JSON, and the class that normalises."""

    name = "robustbench"

    def write(self, entry: Entry, folder: Path) -> list[str]:
        """See `Leaderboard`."""
        state = their_state(entry.network)
        if entry.data not in DATA:
            told = f"it ranks {', '.join(DATA)}, not {entry.data}"
            raise UserError(f"--for {self.name}: {told}")
        torch.save(state, folder / "weights.pt")
        clean, attacked = entry.row("clean"), entry.row("AutoAttack")
        record = {
            "link": None,
            "name": None,
            "authors": None,
            "additional_data": False,
            "number_forward_passes": 1,
            "dataset": DATA[entry.data],
            "venue": None,
            "architecture": entry.architecture,
            "eps": "8/255",
            "clean_acc": _percent(clean),
            "reported": _percent(attacked),
            "autoattack_acc": _percent(attacked),
        }
        write_whole(folder / "model_info.json", json.dumps(record, indent=2) + "\n")
        write_whole(folder / "model.py", _their_module(entry))
        lacks = entry.lacks()
        return [*lacks, "model_info.json: link, name, authors and venue are yours to fill in"]


class PruningBenchmark(Leaderboard):
    """The Adversarial Pruning Benchmark: weights for its ResNet-18, and what its form asks."""

    name = "apbench"

    def write(self, entry: Entry, folder: Path) -> list[str]:
        """See `Leaderboard`."""
        state = their_state(entry.network)
        if not isinstance(entry.network, ResNet18) or entry.data != "CIFAR10":
            told = f"it ranks ResNet-18 on CIFAR10, not {entry.architecture} on {entry.data}"
            raise UserError(f"--for {self.name}: {told}")
        if entry.filters is None:
            raise UserError(f"--for {self.name}: nothing of this network was pruned")
        pruning = entry.config["pruning"]
        sparsity = 100 * float(pruning["amount"])
        ranked = (50, 75, 90) if entry.filters else (90, 95, 99)
        torch.save(state, folder / "state_dict.pt")
        mean, std = entry.normalization()
        record = {
            "architecture": "resnet18",
            "dataset": entry.data,
            "structure": "filters" if entry.filters else "weights",
            "sparsity_rate": f"{sparsity:g}",
            "criterion": pruning["criterion"],
            "loads_into_base_model": True,
            "normalization": {"mean": mean, "std": std},
            "clean_accuracy": _percent(entry.row("clean")),
            "robust_accuracy_aa": _percent(entry.row("AutoAttack")),
            "robust_accuracy_ho_fmn": None,
        }
        write_whole(folder / "entry.json", json.dumps(record, indent=2) + "\n")
        lacks = entry.lacks()
        if sparsity not in ranked:
            lacks.append(f"it ranks {', '.join(map(str, ranked))} % pruned, not {sparsity:g} %")
        return [
            *lacks,
            "HO-FMN is run with its own `benchmark`; it takes three amounts of a method",
        ]


LEADERBOARDS: Mapping[str, Leaderboard] = {
    board.name: board for board in (RobustBench(), PruningBenchmark())
}


def _percent(row: Mapping[str, Any] | None) -> str | None:
    return None if row is None else f"{100 * row['accuracy']:.2f}"


def _their_module(entry: Entry) -> str:
    """A class for RobustBench's zoo: its architecture behind our normalisation."""
    mean, std = entry.normalization()
    classes = entry.network.get_submodule("linear").out_features
    if isinstance(entry.network, WideResNet):
        _, depth, widen = entry.architecture.split("-")
        module, base = "wide_resnet", "WideResNet"
        arguments = f"depth={depth}, widen_factor={widen}, num_classes={classes}"
    else:
        module, base, arguments = (
            "resnet",
            "ResNet",
            f"BasicBlock, [2, 2, 2, 2], num_classes={classes}",
        )
    names = f"BasicBlock, {base}" if base == "ResNet" else base
    return f'''"""{entry.architecture} behind its normalisation; weights.pt loads strictly."""

import torch
from robustbench.model_zoo.architectures.{module} import {names}


class Network({base}):
    def __init__(self):
        super().__init__({arguments})
        self.register_buffer("mu", torch.tensor({mean}).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("sigma", torch.tensor({std}).view(1, 3, 1, 1), persistent=False)

    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)
'''
