"""Branches of a sweep."""

from __future__ import annotations

import pytest

from prunerob.errors import UserError
from prunerob.sweeps.branches import make_branches, with_schedules


def test_branches_have_one_control_and_names_of_their_own() -> None:
    branches = make_branches(["weight", "filter", "filter:parameters"], [0.0, 0.94, 0.5])
    names = [branch.name for branch in branches]
    pruned = [
        f"{kind}-{n}" for kind in ("weight", "filter", "filter-parameters") for n in (0.94, 0.5)
    ]
    assert names == ["control", *pruned]
    (branch,) = make_branches(["filter:weights:silence"], [0.6])
    assert branch.name == "filter-weights-silence-0.6"
    assert branch.settings()[-4:] == [
        "--pruning.reading",
        "weights",
        "--pruning.residual",
        "silence",
    ]
    with pytest.raises(UserError, match="twice"):
        make_branches(["weight", "weight"], [0.5])


def test_schedules_are_an_axis() -> None:
    branches = make_branches(["weight", "filter:parameters"], [0.0, 0.9])
    branches = with_schedules(branches, ["one_shot", "gradual:3"])
    assert [branch.name for branch in branches] == [
        "control",
        "weight-one_shot-0.9",
        "filter-parameters-one_shot-0.9",
        "weight-gradual-3-0.9",
        "filter-parameters-gradual-3-0.9",
    ]
    assert branches[3].settings()[-4:] == [
        *("--pruning.schedule", "prunerob.pruning.Gradual"),
        *("--pruning.schedule.epochs", "3"),
    ]
    assert branches[1].schedule_record()["class_path"] == "prunerob.pruning.OneShot"
    for schedules in (["gradual"], ["gradual:0"], ["iterative"]):
        with pytest.raises(UserError, match="is unknown; there are one_shot"):
            with_schedules(branches, schedules)
