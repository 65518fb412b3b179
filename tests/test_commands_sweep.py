"""The command sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from prunerob.cli import main
from prunerob.sweeps.branches import Branch
from prunerob.sweeps.plan import Sweep
from tests.conftest import TINY, refused, times


def test_a_file_says_the_same(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "config": TINY,
        "folder": str(sweep),
        "amount": {"weight": [0, 0.5], "filter": [0.5]},
        "seed": [0, 1],
        "scratch": True,
        "settings": {"trainer.accelerator": "cpu"},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(options))
    before = times(sweep)
    main(["sweep", "sweep.yaml"])
    assert times(sweep) == before
    assert "12 of 12 runs finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--amount", "0.5,0.5"], "amount: 0.5 is there twice"),
        (["--amount", "0.5,1"], "amount: 1.0 lies outside [0, 1)"),
        (["--amount", "-0.1"], "amount: -0.1 lies outside"),
        (["--amount", "half"], "argument --amount: invalid list of numbers value: 'half'"),
        (["--amount", ""], "amount: the list is empty"),
        ([], "--amount is missing"),
        (["--amount", "0.5", "--seed", "1,1"], "seed: 1 is there twice"),
        (["--amount", "0.5", "--criterion", "size"], "criterion: size is unknown"),
        (["--amount", "0.5", "--criterion", "filter:most"], "the readings are filters"),
        (["--amount", "0,0.95", "--criterion", "filter"], "0.95 of the weights cannot be pruned"),
        (
            [
                *("--amount", "0.5", "--data", "prunerob.data.ImageFolder"),
                *("--data.folder", "gone", "--data.augmentation", "prunerob.data.CropAndFlip"),
            ],
            "data.folder: there is no folder gone/train",
        ),
        (["--amount", "0.5", "--trainer.devices", "2"], "trainer.devices: each run of a sweep"),
        (["--amount", "0.5", "--criterion", "filter:weights:go"], "streams have one of keep"),
        (["--amount", "0.5", "--criterion", "weight:"], "weight:: the readings are filters"),
        (["--amount", "0.5", "--schedule", ""], "schedule: the list is empty"),
        (["--amount", "0.5", "--schedule", "gradual:9"], "pruning.schedule: takes 9 epochs from"),
        (["--amount", "0.5", "--folder", ""], "folder: an empty name is no folder"),
        (["--amount", "0.5", "--jobs", "0"], "--jobs and --threads are 1 or more"),
        (["--amount", "0.5", "--config", "none.yaml"], "--config: there is no file none.yaml"),
        (["--amount", "0.5", "--pruning.epoch", "null"], "pruning.epoch of"),
        (["--amount", "0.5", "--pruning.epoch", "4"], "pruning.epoch of"),
        (["--amount", "0.5", "--model.depth", "3"], "model.depth"),
        (
            ["--amount", "0.5", "--model.adversarial_training.attack.step_size", "0"],
            "step_size of PGD: steps of 0",
        ),
        (["--amount", "0.5", "--model.attacks.PGD.step_size", "0"], "step_size of PGD: steps of 0"),
        (
            ["--amount", "0.5", "--model.validation_attack.step_size", "0"],
            "step_size of PGD: steps of 0",
        ),
        (
            ["--amount", "0.5", "--model.optimizer.lr", "-1"],
            "model.optimizer or model.schedule: Invalid learning rate: -1",
        ),
        (
            ["--amount", "0.5", "--model.fine_tuning.optimizer.lr", "-1"],
            "model.fine_tuning: Invalid learning rate: -1",
        ),
    ],
)
def test_mistakes_cost_nothing(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "sweep", "--config", TINY, *args)
    assert not Path("sweeps").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("amount: [0.5]\namounts: [1]", "amounts is unknown"),
        ("amount: 0.5", "amount is a list"),
        ("seed: [a]", "seed is a list of int"),
        ("- 1", "is no sweep"),
        ("a: [", "is no YAML: line"),
        ("settings: [1]", "settings are keys"),
    ],
)
def test_mistakes_in_a_file(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file none.yaml" in refused(capsys, "sweep", "none.yaml")
    Path("sweep.yaml").write_text(options)
    assert told in refused(capsys, "sweep", "sweep.yaml", "--config", TINY)


def test_amounts_that_cannot_be_reached_are_named_and_may_be_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Branch] = []

    def begin(sweeps: Sequence[Sweep], options: object) -> dict[object, str]:
        begun.extend(branch for sweep in sweeps for branch in sweep.branches)
        return {}

    monkeypatch.setattr("prunerob.sweeps.make.run_sweeps", begin)
    args = ["sweep", "--config", TINY, "--criterion", "filter"]
    told = refused(capsys, *args, "--amount", "0.5,0.95")
    assert told.startswith("prunerob: error: filter-0.95: pruning.amount: 0.95 of the weights")
    assert told.endswith("; or go on without it by --skip-unreachable")
    main([*args, "--amount", "0.5,0.95", "--skip-unreachable"])
    assert [branch.name for branch in begun] == ["filter-0.5"]
    assert capsys.readouterr().out.startswith("filter-0.95: left out, pruning.amount: 0.95")
    told = refused(capsys, *args, "--amount", "0.95", "--skip-unreachable")
    assert told == "prunerob: error: amount: none can be reached"
