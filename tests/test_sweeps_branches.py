"""Branches of a sweep."""

from __future__ import annotations

import dataclasses

import pytest

from prunerob.errors import UserError
from prunerob.runs.configuration import find_object
from prunerob.sweeps.branches import OBJECTIVES, make_branches, with_objectives, with_schedules


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
    assert branches[1].settings()[-2:] == ["--pruning.schedule", "prunerob.pruning.OneShot"]
    (rounds,) = with_schedules(branches[1:2], ["iterative:5:2"])
    assert rounds.name == "weight-iterative-5-2-0.9"
    assert rounds.settings()[-6:] == [
        *("--pruning.schedule", "prunerob.pruning.Iterative"),
        *("--pruning.schedule.epochs", "5", "--pruning.schedule.rounds", "2"),
    ]
    for schedules in (["gradual"], ["gradual:0"], ["iterative"], ["iterative:2:0.5"]):
        with pytest.raises(UserError, match="is unknown; there are one_shot"):
            with_schedules(branches, schedules)


def test_objectives_are_an_axis_with_a_control_each() -> None:
    branches = make_branches(["lamp"], [0.0, 0.9])
    branches = with_objectives(branches, ["trades:3", "rslad"])
    names = ["control-trades-3", "lamp-trades-3-0.9", "control-rslad", "lamp-rslad-0.9"]
    assert [branch.name for branch in branches] == names
    key = "--model.fine_tuning.objective"
    path = "prunerob.training.objectives.TRADES"
    assert branches[0].settings()[-4:] == [key, path, f"{key}.beta", "3"]
    assert branches[3].settings()[-2:] == [key, "prunerob.training.objectives.RSLAD"]
    own = with_objectives(make_branches(["lamp"], [0.0, 0.9]), ["mine.Margin"])
    assert [branch.name for branch in own] == ["control-Margin", "lamp-Margin-0.9"]
    assert own[1].settings()[-2:] == [key, "mine.Margin"]
    wrong = ("mean", "mine.Margin:2", "trades:", "trades:-1", "trades:x", "cross_entropy:1")
    for objective in wrong:
        with pytest.raises(UserError, match=r"^objective: .*(unknown|no setting)"):
            with_objectives(branches, [objective])


def test_objectives_are_classes_with_their_first_settings() -> None:
    for kind, (path, name) in OBJECTIVES.items():
        first = next(iter(dataclasses.fields(find_object(path))), None)
        assert (first.name if first else "") == name, kind
