"""Files of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunerob.errors import UserError
from prunerob.robustness.predictions import PredictionFormat, write_predictions

BATCHES = [
    (torch.tensor([0, 1]), torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])),
    (torch.tensor([2]), torch.tensor([[0.125, 0.25, 0.625]])),
]


def test_the_most_probable_classes_come_first(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    form = PredictionFormat(top_k=2)
    write_predictions(file, BATCHES, ["a", "b", "=c"], ["cat", "dog"], form)
    assert file.read_text().splitlines() == [
        "image,class 1,probability 1,class 2,probability 2",
        "a,dog,0.5,2,0.3",
        "b,cat,0.4,dog,0.4",
        "'=c,2,0.625,dog,0.25",
    ]


def test_json_has_every_class_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    write_predictions(file, BATCHES, None, None, PredictionFormat(as_json=True))
    first, _, last = json.loads(file.read_text())
    assert first == {
        "image": 0,
        "class": "1",
        "classes": [
            {"class": "0", "probability": 0.2},
            {"class": "1", "probability": 0.5},
            {"class": "2", "probability": 0.3},
        ],
    }
    assert last["class"] == "2"


def test_more_classes_than_there_are_are_all(tmp_path: Path) -> None:
    form = PredictionFormat(as_json=True, top_k=9)
    write_predictions(tmp_path / "p", BATCHES, None, None, form)
    assert [c["class"] for c in json.loads((tmp_path / "p").read_text())[2]["classes"]] == [
        *("2", "1", "0")
    ]
    with pytest.raises(UserError, match=r"--top_k: 0 is below 1"):
        PredictionFormat(top_k=0)
