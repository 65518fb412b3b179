"""Our results beside the paper."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from statistics import mean

import pytest

from prunerob.cli import main
from prunerob.commands import reproduce
from prunerob.reports import comparison
from prunerob.reports.networks import Point
from prunerob.reports.paper import TABLES, PaperTable, Recipe, Row
from prunerob.reports.reading import read_results
from tests.conftest import TINY


def test_the_paper_s_numbers_stand_beside_ours(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = read_results([str(sweep)])
    natural = 100 * mean(results.accuracies(Point(recipe="PGD"), "natural"))
    table = PaperTable(
        title="A table",
        columns=("natural", "PGD"),
        recipes=(Recipe(training="PGD", name="PGD", config="tiny.yaml", folder="tiny"),),
        readings=("weights",),
        rows=(
            Row("PGD", "weight", 0.9999, (50.0, 0.0)),
            Row("PGD", "", 0.0, (natural + 1.9, 50.0)),
            Row("PGD", "weight", 0.5, (natural + 100, 0.0)),
        ),
    )
    monkeypatch.setattr(reproduce, "TABLES", {"table": table})
    shutil.copytree(sweep, "runs/tiny")
    configs = str(Path(TINY).parent)
    with pytest.raises(SystemExit) as error:  # so many weights cannot be pruned
        main(["reproduce", "table", "--folder", "runs", "--configs", configs, "--seed", "0,1"])
    assert error.value.code == 1
    assert "6 of 8 runs finished, 2 failed" in capsys.readouterr().out
    with Path("runs/table/comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == [
        *("dense", "dense", "weights, 50 %", "weights, 50 %")
    ]
    assert float(rows[0]["difference"]) == pytest.approx(-1.9, abs=0.01)
    lines = Path("runs/table/comparison.md").read_text().splitlines()
    assert lines[2].startswith("| PGD | weights, 99.99 %, not run | – / 50.0 | – / 0.0 |")
    assert f" / {natural + 1.9:.1f} |" in lines[3], "within two points: no mark"
    assert lines[3].count("*") == 1
    assert f"/ {natural + 100:.1f} * |" in lines[4]
    written = Path("runs/table/accuracy.md").read_text()
    assert "weight" in written
    assert "filter" not in written, "it is there, but of no row"

    assert "Not as the recipe has it" not in Path("runs/table/comparison.md").read_text()
    again = ["reproduce", "table", "--folder", "runs", "--configs", configs, "--report-only"]
    for file in Path("runs/tiny").rglob("config.yaml"):
        text = file.read_text().replace("\n    batch_size: 64", "\n    batch_size: 32")
        if file.parent.name == "weight-0.5":
            text = text.replace("max_epochs: 4", "max_epochs: 3")
            text = text.replace("keep_per_layer: 0.0", "keep_per_layer: 0.1")
        file.write_text(text)
    main(again)
    told = Path("runs/table/comparison.md").read_text()
    assert "Not as the recipe has it: " in told
    assert "PGD, data.init_args.batch_size 32, not 64 (8 networks)" in told
    assert "PGD, epochs 3, not 4 (2 networks)" in told
    assert "PGD, pruning.keep_per_layer 0.1, not 0.0 (2 networks)" in told
    assert "pruning.amount" not in told


def test_a_table_leaves_out_what_another_needs() -> None:
    points = comparison._points(TABLES["table2"])
    assert ("FGSM", "weight", 0.8) in points
    assert ("FGSM", "filter (weights)", 0.7) in points
    assert ("FGSM", "filter (parameters)", 0.7) in points
    assert not {("FGSM", method, 0.8) for method in ("filter", "filter (weights)")} & points
