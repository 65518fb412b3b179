"""Reports, from a fixture of small real runs: the numbers are those of the runs."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from prunerob.cli import main
from prunerob.reports.reading import read_results
from prunerob.statistics import sign_test, t_test
from tests.conftest import accuracy, refused


def right(run: Path, attack: str) -> list[bool]:
    with (run / "robustness_images.csv").open(newline="") as file:
        return [row[f"{attack} prediction"] == row["label"] for row in csv.DictReader(file)]


def test_every_file_is_there_and_says_what_the_runs_found(swept: Path) -> None:
    main(["report", str(swept)])
    folder = swept / "report"
    names = {path.name for path in folder.iterdir()}
    tables = ("accuracy", "minus_dense", "minus_control", "minus_pruned", "operating_points")
    assert names >= {f"{name}.{ending}" for name in tables for ending in ("md", "tex")}
    assert names >= {f"{n}.{e}" for n in ("difference", "trade_off") for e in ("png", "svg")}

    with (folder / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 4  # networks times clean, FGSM, PGD and worst case
    runs = [swept / f"seed{seed}" for seed in (0, 1)]
    for name, method, scratch in (
        ("dense", "dense", "0"),
        ("control", "control", "0"),
        ("weight-0.5", "weight", "0"),
        ("filter-0.5-scratch", "filter (weights)", "1"),
    ):
        for column, attack in (("natural", "clean"), ("PGD", "PGD"), ("worst case", "worst case")):
            (row,) = (
                r
                for r in rows
                if (r["method"], r["from_scratch"], r["column"]) == (method, scratch, column)
            )
            values = [accuracy(run / name, attack) for run in runs]
            assert float(row["mean"]) == pytest.approx(mean(values), abs=1e-6)
            assert float(row["std"]) == pytest.approx(stdev(values), abs=1e-6)
            assert (row["seeds"], row["images"], row["training"]) == ("0 1", "60", "PGD")
    (row,) = (r for r in rows if (r["method"], r["column"]) == ("control", "natural"))
    a, b = ([right(run / n, "clean") for run in runs] for n in ("control", "dense"))
    gains = [[x - y for x, y in zip(*two, strict=True)] for two in zip(a, b, strict=True)]
    by_image = [sum(gain) for gain in zip(*gains, strict=True)]  # an image counts once
    over_images = sign_test(sum(g > 0 for g in by_image), sum(g < 0 for g in by_image))
    over_seeds = t_test([mean(gain) for gain in gains])
    assert over_seeds is not None
    assert float(row["p_dense"]) == pytest.approx(max(over_images, over_seeds), rel=0.01)
    assert float(row["minus_dense"]) == pytest.approx(sum(by_image) / 120, abs=1e-6)
    assert row["minus_control"] == ""


def test_what_cannot_be_reported_is_told(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = swept / "seed0" / "weight-0.5"

    Path("empty").mkdir()
    assert "empty holds no run of prunerob fit" in refused(capsys, "report", "empty")
    assert "an empty name is no folder" in refused(capsys, "report", " ")
    Path("full/report.html").mkdir(parents=True)
    told = refused(capsys, "report", str(swept), "--output", "full")
    assert "full/report.html: Is a directory" in told
    assert "none is not a folder" in refused(capsys, "report", "none")
    assert "--tolerance" in refused(capsys, "report", str(swept), "--tolerance", "-1")

    (swept / "wandb").mkdir()
    (swept / "wandb" / "config.yaml").write_text("wandb_version: 1")  # of another tool: no run
    read_results([str(swept)])

    images = run / "robustness_images.csv"
    text = images.read_text()
    images.unlink()
    told = refused(capsys, "report", str(swept))
    assert f"lacks robustness_images.csv: `prunerob test --ckpt_path {run}` again" in told
    images.write_text(text)

    shutil.copytree(run, swept / "seed0" / "again")
    told = refused(capsys, "report", str(swept))
    assert "are the same: PGD, weights, 50 %, seed 0" in told
    shutil.rmtree(swept / "seed0" / "again")

    config = yaml.safe_load((run / "config.yaml").read_text())
    other = {"class_path": "prunerob.data.ImageFolder", "init_args": {"folder": "cats"}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": other}))
    told = refused(capsys, "report", str(swept))
    assert "is about MNIST" in told
    assert "about ImageFolder cats: report one data set at a time" in told
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    main(["test", "--ckpt_path", str(run), "--data.init_args.test_size", "50"])
    assert "were tested on different images" in refused(capsys, "report", str(swept))

    (run / "robustness.json").unlink()
    told = refused(capsys, "report", str(swept))
    assert f"is not tested: `prunerob test --ckpt_path {run}`" in told
    (run / "summary.json").unlink()
    assert f"prunerob fit --ckpt_path {run}`" in refused(capsys, "report", str(swept))
    assert not (swept / "report").exists()
    main(["report", str(swept), "--partial"])
    assert (swept / "report" / "report.html").is_file()


@pytest.mark.slow
def test_reports_do_not_hang_on_the_locale(swept: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "prunerob", "report", str(swept)]
    subprocess.run(command, env={**os.environ, **plain}, check=True, capture_output=True)
    assert "−" in (swept / "report" / "report.html").read_text("utf-8")
