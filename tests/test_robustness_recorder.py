"""The table of a test is made from what was seen."""

from __future__ import annotations

import json
from time import perf_counter

import pytest
import torch

from prunerob.robustness.recorder import Recorder


def record(correct: dict[str, list[int]]) -> Recorder:
    """A recorder that saw label 1 predicted as 1 or 0."""
    recorder = Recorder()
    for name, right in correct.items():
        for i, value in enumerate(right):
            recorder.add(
                name,
                index=torch.tensor([i]),
                label=torch.tensor([1]),
                prediction=torch.tensor([value]),
                margin=torch.tensor([value - 0.5]),
                start=perf_counter(),
            )
    return recorder


def test_worst_case_is_right_under_everything() -> None:
    found = record({"clean": [1, 1, 1, 0], "a": [1, 0, 1, 1], "b": [1, 1, 0, 1]}).robustness()
    assert {row.attack: row.correct for row in found.rows} == {
        "clean": 3,
        "a": 3,
        "b": 3,
        "worst case": 1,
    }
    assert json.loads(found.to_json({"seed": 3}))["seed"] == 3
    assert found.to_csv().splitlines()[1].startswith("clean,0.750000,0.300")
    assert "| worst case | 25.00 | 4.56 to 69.94 | 4 |" in found.to_markdown()
    assert found.images_to_csv().splitlines()[2] == "1,1,1,0.5,0,-0.5,1,0.5"


def test_searches_count_in_the_worst_case_alone() -> None:
    recorder = record({"clean": [1, 1, 1, 0], "a": [1, 1, 0, 1]})
    for index, fooled in ((torch.tensor([0]), [True]), (torch.tensor([1]), [False])):
        recorder.add_search("b", index=index, fooled=torch.tensor(fooled), start=perf_counter())
    found = recorder.robustness()
    assert {row.attack: row.correct for row in found.rows} == {
        "clean": 3,
        "a": 3,
        "worst case": 1,
    }
    (search,) = found.searches
    assert (search.attack, search.images, search.fooled.tolist()) == ("b", 2, [0])
    assert json.loads(found.to_json({}))["worst case attacks"][0]["fooled"] == 1
    lines = found.images_to_csv().splitlines()
    assert lines[0].endswith(",fooled in the worst case by")
    assert lines[1].endswith(",b")
    assert lines[2].endswith(",")


def test_an_attack_on_some_images_has_its_own_number() -> None:
    recorder = record({"clean": [1, 1, 1, 0, 1], "a": [1, 0, 1, 1, 1]})
    for index, value in ((4, 0), (1, 1), (0, 1)):  # in any order
        recorder.add(
            "b",
            index=torch.tensor([index]),
            label=torch.tensor([1]),
            prediction=torch.tensor([value]),
            margin=torch.tensor([value - 0.5]),
            start=perf_counter(),
        )
    found = recorder.robustness()
    counts = {row.attack: (row.correct, row.images) for row in found.rows}
    assert counts == {"clean": (4, 5), "a": (4, 5), "b": (2, 3), "worst case": (1, 3)}
    assert found.predictions["b"].tolist() == [1, 1, -1, -1, 0]
    assert found.images_to_csv().splitlines()[3] == "2,1,1,0.5,1,0.5,,"


def test_an_image_is_counted_once() -> None:
    recorder = record({"clean": [1, 1]})
    recorder.add(
        "clean",
        index=torch.tensor([0]),
        label=torch.tensor([1]),
        prediction=torch.tensor([1]),
        margin=torch.tensor([0.5]),
        start=perf_counter(),
    )
    with pytest.raises(RuntimeError, match="tested twice"):
        recorder.robustness()
