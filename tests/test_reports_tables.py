"""Tables of reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from prunerob.cli import main
from prunerob.reports.reading import read_results
from prunerob.reports.tables import operating_points


def test_layers_that_nearly_vanished_are_told(swept: Path) -> None:
    main(["report", str(swept)])
    assert "vanished" not in (swept / "report" / "warnings.txt").read_text()
    file = swept / "seed1" / "filter-0.5" / "pruning.json"
    pruning = json.loads(file.read_text())
    layer = next(found for found in pruning["layers"] if found["name"] == "conv3")
    layer.update(channels_before=64, channels_after=3)
    norm = {"name": "norm", "parameters_before": 128, "parameters_after": 6}
    pruning["layers"].append({**norm, "channels_before": 64, "channels_after": 3})
    file.write_text(json.dumps(pruning))
    main(["report", str(swept)])
    told = (swept / "report" / "warnings.txt").read_text()
    row = "PGD, filters, 50 % of weights, seed 1: conv3 nearly vanished: 3 of 64 channels"
    assert row in told
    assert told.count("vanished") == 1
    left = (swept / "report" / "filters_left.md").read_text()
    assert "conv3 3 of 64 | 5 % |" in left


def test_a_control_of_another_length_is_not_compared(swept: Path) -> None:
    for seed in (0, 1):
        file = swept / f"seed{seed}" / "weight-0.5" / "config.yaml"
        file.write_text(file.read_text().replace("max_epochs: 4", "max_epochs: 3"))
    main(["report", str(swept)])
    minus = (swept / "report" / "minus_control.md").read_text()
    assert "filters, 50 % of weights |" in minus
    assert "weights, 50 % |" not in minus
    assert "| weights, 50 % |" in (swept / "report" / "minus_dense.md").read_text()
    told = (swept / "report" / "warnings.txt").read_text()
    assert "weights, 50 %: not compared with the control" in told
    assert told.count("not compared") == 1


def test_operating_points_are_picked_on_validation_images(swept: Path) -> None:
    def validated(name: str, clean: float, robust: float) -> None:
        for seed in (0, 1):
            file = swept / f"seed{seed}" / name / "summary.json"
            summary = json.loads(file.read_text())
            for which, value in (("clean", clean), ("robust", robust)):
                summary["validation"][which]["accuracy"] = value
            file.write_text(json.dumps(summary))

    def picked() -> dict[tuple[str, str], str]:
        table = operating_points(read_results([str(swept)]), tolerance=1.0)
        return {(row[1], row[2]): row[3] for row in table.rows}

    validated("dense", 0.99, 0.1)  # as good as a guess among ten classes
    validated("weight-0.5", 0.981, 0.1)
    assert picked()["weight", "high robustness"] == "dense has none"
    assert picked()["weight", "high compression"] == "50 %"
    validated("dense", 0.99, 0.90)
    validated("weight-0.5", 0.981, 0.85)
    validated("filter-0.5", 0.97, 0.95)
    assert picked() == {
        ("weight", "high compression"): "50 %",
        ("weight", "high robustness"): "none is",
        ("filter (weights)", "high compression"): "none is",
        ("filter (weights)", "high robustness"): "none is",
    }
    validated("weight-0.5", 0.981, 0.891)
    assert picked()["weight", "high robustness"] == "50 %"
    shutil.rmtree(swept / "seed1" / "dense")  # the mean is over seeds that both have
    assert picked()["weight", "high robustness"] == "50 %"
    shutil.rmtree(swept / "seed0" / "dense")
    assert set(picked().values()) == {"not measured"}
