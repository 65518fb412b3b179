"""Sweeps over schedules and criteria that see data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunerob.cli import main
from tests.conftest import TINY

SWEEP = [
    *("sweep", "--config", TINY, "--amount", "0,0.5", "--threads", "1"),
    *("--trainer.max_epochs", "3", "--pruning.epoch", "1"),
]


@pytest.mark.slow
def test_a_sweep_over_schedules_goes_on_with_what_it_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    criteria = [*SWEEP, "--criterion", "weight,taylor"]
    main([*criteria, "--schedule", "one_shot,gradual:1"])
    runs = {run.name for run in Path("sweeps/tiny/seed0").iterdir() if run.is_dir()}
    pruned = {f"{c}-{s}-0.5" for c in ("weight", "taylor") for s in ("one_shot", "gradual-1")}
    assert runs == {"dense", "control", *pruned}
    records = {
        name: json.loads((Path("sweeps/tiny/seed0") / name / "pruning.json").read_text())
        for name in pruned
    }
    assert "Gradual(epochs=1" in records["taylor-gradual-1-0.5"]["schedule"]
    assert "OneShot()" in records["weight-one_shot-0.5"]["schedule"]
    capsys.readouterr()
    main([*criteria, "--schedule", "gradual:1,one_shot"])
    assert "6 of 6 runs finished" in capsys.readouterr().out
    main(["report", "sweeps/tiny"])
    told = capsys.readouterr().out
    assert "taylor, gradual (epochs 1)" in told
