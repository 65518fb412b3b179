"""Reports, from a fixture of small real runs: the numbers are the runs' own."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from prunerob.cli import main
from prunerob.commands import reproduce
from prunerob.errors import UserError
from prunerob.reports.networks import Point
from prunerob.reports.paper import TABLES, PaperTable, Recipe, Row
from prunerob.reports.reading import _point, read_results
from prunerob.reports.tables import operating_points, to_csv
from prunerob.statistics import sign_test, t_test
from prunerob.sweeps.branches import make_branches
from tests.test_cli import TINY, refused

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copy(sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sweep, tmp_path / "copy"))


def accuracy(run: Path, attack: str) -> float:
    rows = json.loads((run / "robustness.json").read_text())["rows"]
    return float(next(row["accuracy"] for row in rows if row["attack"] == attack))


def right(run: Path, attack: str) -> list[bool]:
    with (run / "robustness_images.csv").open(newline="") as file:
        return [row[f"{attack} prediction"] == row["label"] for row in csv.DictReader(file)]


def test_every_file_is_there_and_says_what_the_runs_found(copy: Path) -> None:
    main(["report", str(copy)])
    folder = copy / "report"
    names = {path.name for path in folder.iterdir()}
    tables = ("accuracy", "minus_dense", "minus_control", "minus_pruned", "operating_points")
    assert names >= {f"{name}.{ending}" for name in tables for ending in ("md", "tex")}
    assert names >= {f"{n}.{e}" for n in ("difference", "trade_off") for e in ("png", "svg")}

    with (folder / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 4  # networks times clean, FGSM, PGD and worst case
    runs = [copy / f"seed{seed}" for seed in (0, 1)]
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


def test_the_same_networks_twice_prove_no_more(copy: Path) -> None:
    once = read_results([str(copy / "seed0")])
    shutil.rmtree(copy / "seed1")
    shutil.copytree(copy / "seed0", copy / "seed1")
    for config in (copy / "seed1").rglob("config.yaml"):
        config.write_text(config.read_text().replace("seed_everything: 0", "seed_everything: 1"))
    twice = read_results([str(copy)])
    point = Point(recipe="PGD", method="weight", amount=0.5)
    for column in twice.columns:
        a, b = (r.difference(point, point.dense, column) for r in (once, twice))
        assert a is not None
        assert b is not None
        assert (a.values, b.values) == (1, 2)
        assert (a.points, a.p_images) == (b.points, b.p_images)


def test_layers_that_nearly_vanished_are_told(copy: Path) -> None:
    main(["report", str(copy)])
    assert "vanished" not in (copy / "report" / "warnings.txt").read_text()
    file = copy / "seed1" / "filter-0.5" / "pruning.json"
    pruning = json.loads(file.read_text())
    layer = next(found for found in pruning["layers"] if found["name"] == "conv3")
    layer.update(channels_before=64, channels_after=3)
    norm = {"name": "norm", "parameters_before": 128, "parameters_after": 6}
    pruning["layers"].append({**norm, "channels_before": 64, "channels_after": 3})
    file.write_text(json.dumps(pruning))
    main(["report", str(copy)])
    told = (copy / "report" / "warnings.txt").read_text()
    row = "PGD, pruned filter (weights) 50 %, seed 1: conv3 nearly vanished: 3 of 64 channels"
    assert row in told
    assert told.count("vanished") == 1
    left = (copy / "report" / "filters_left.md").read_text()
    assert "conv3 3 of 64 | 5 % |" in left


def test_a_control_of_another_length_is_not_compared(copy: Path) -> None:
    for seed in (0, 1):
        file = copy / f"seed{seed}" / "weight-0.5" / "config.yaml"
        file.write_text(file.read_text().replace("max_epochs: 4", "max_epochs: 3"))
    main(["report", str(copy)])
    minus = (copy / "report" / "minus_control.md").read_text()
    assert "filter (weights) 50 % |" in minus
    assert "weight 50 % |" not in minus
    assert "| weight 50 % |" in (copy / "report" / "minus_dense.md").read_text()
    told = (copy / "report" / "warnings.txt").read_text()
    assert "pruned weight 50 %: not compared with the control" in told
    assert told.count("not compared") == 1


def test_settings_of_a_newer_version_do_not_make_other_attacks(copy: Path) -> None:
    file = copy / "seed0" / "dense" / "robustness.json"
    found = json.loads(file.read_text())
    for attack in found["suite"]["attacks"].values():
        attack["init_args"].pop("label", None)  # as if it had not been there yet
    file.write_text(json.dumps(found))
    assert len(read_results([str(copy)]).all) == 12
    found["suite"]["attacks"]["FGSM 8/255"]["init_args"].pop("eps")  # 0.3, where it is not said
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"FGSM 8/255 of .* are different attacks"):
        read_results([str(copy)])


def test_recipes_are_told_apart_by_as_much_of_their_path_as_it_takes(copy: Path) -> None:
    for place in ("a/x/pgd", "b/x/pgd"):
        shutil.copytree(copy / "seed0" / "dense", Path(place) / "seed0" / "dense")
    assert read_results(["a", "b"]).recipes == ["PGD (a/x/pgd)", "PGD (b/x/pgd)"]


def test_the_page_needs_no_other_file(sweep: Path) -> None:
    main(["report", str(sweep), "--output", "out", "--title", "Are <we> robust?"])
    page = Path("out/report.html").read_text()
    assert "<h1>Are &lt;we&gt; robust?</h1>" in page
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "weight 50 %, from scratch" in page
    latex = Path("out/accuracy.tex").read_text()
    assert r"weight 50 \% & " in latex
    assert r"\pm" in latex


def test_single_runs_with_their_dense_network(tmp_path: Path) -> None:
    main(["fit", "--config", TINY])
    main(["test", "--ckpt_path", "before_pruning"])
    main(["test"])
    results = read_results(["lightning_logs"])
    run = Path("lightning_logs/tiny/version_0")
    assert [point.pruned for point in results.by_point] == ["0", "weight 70 %"]
    dense, pruned = results.all
    rows = json.loads((run / "robustness_before_pruning.json").read_text())["rows"]
    assert [row.accuracy for row in dense.robustness.rows] == [row["accuracy"] for row in rows]
    # On as many images, so that they can be compared.
    assert dense.validation["robust"][1] == pruned.validation["robust"][1] == 100
    assert dense.validation["clean"][1] == pruned.validation["clean"][1] == 100


def test_operating_points_are_picked_on_validation_images(copy: Path) -> None:
    def validated(name: str, clean: float, robust: float) -> None:
        for seed in (0, 1):
            file = copy / f"seed{seed}" / name / "summary.json"
            summary = json.loads(file.read_text())
            for which, value in (("clean", clean), ("robust", robust)):
                summary["validation"][which]["accuracy"] = value
            file.write_text(json.dumps(summary))

    def picked() -> dict[tuple[str, str], str]:
        table = operating_points(read_results([str(copy)]), tolerance=1.0)
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
    shutil.rmtree(copy / "seed1" / "dense")  # the mean is over seeds that both have
    assert picked()["weight", "high robustness"] == "50 %"
    shutil.rmtree(copy / "seed0" / "dense")
    assert set(picked().values()) == {"not measured"}


def test_black_boxes_that_differ_in_their_seed_are_one_column(copy: Path) -> None:
    for seed in (0, 1):
        run = copy / f"seed{seed}" / "dense"
        config = yaml.safe_load((run / "config.yaml").read_text())
        for box in (0, 1):
            config["model"]["attacks"][f"box {box}"] = {
                "class_path": "prunerob.attacks.BlackBox",
                "init_args": {"images": 20, "rounds": 2, "seed": box},
            }
        Path("boxes.yaml").write_text(yaml.safe_dump(config))
        main(["test", "--config", "boxes.yaml", "--ckpt_path", str(run)])
    results = read_results([str(copy / "seed0" / "dense"), str(copy / "seed1" / "dense")])
    assert results.columns == ["natural", "FGSM 8/255", "PGD", "black box", "worst case"]
    (point,) = results.by_point
    expected = [accuracy(copy / f"seed{s}" / "dense", f"box {b}") for s in (0, 1) for b in (0, 1)]
    assert results.accuracies(point, "black box") == expected
    box = next(csv.DictReader([*to_csv(results).splitlines()[:1], *_lines(results, "black box")]))
    assert (box["images"], box["values"]) == ("40", "4")
    rows = json.loads((copy / "seed0" / "dense" / "robustness.json").read_text())["rows"]
    found = next(row for row in rows if row["attack"] == "box 0")
    assert found["learned"]["queries"] == 40
    assert found["images"] == 40
    assert rows[-1]["images"] == 60


def _lines(results: object, column: str) -> list[str]:
    return [line for line in to_csv(results).splitlines() if f",{column}," in line]  # type: ignore[arg-type]


def test_what_cannot_be_reported_is_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy / "seed0" / "weight-0.5"

    Path("empty").mkdir()
    assert "empty holds no run of prunerob fit" in refused(capsys, "report", "empty")
    assert "none is not a folder" in refused(capsys, "report", "none")
    assert "--tolerance" in refused(capsys, "report", str(copy), "--tolerance", "-1")

    (copy / "wandb").mkdir()
    (copy / "wandb" / "config.yaml").write_text("wandb_version: 1")  # of another tool: no run
    read_results([str(copy)])

    images = run / "robustness_images.csv"
    text = images.read_text()
    images.unlink()
    told = refused(capsys, "report", str(copy))
    assert f"lacks robustness_images.csv: `prunerob test --ckpt_path {run}` again" in told
    images.write_text(text)

    shutil.copytree(run, copy / "seed0" / "again")
    told = refused(capsys, "report", str(copy))
    assert "are the same: PGD, weight 50 %, seed 0" in told
    shutil.rmtree(copy / "seed0" / "again")

    config = yaml.safe_load((run / "config.yaml").read_text())
    other = {"class_path": "prunerob.data.ImageFolder", "init_args": {"folder": "cats"}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": other}))
    told = refused(capsys, "report", str(copy))
    assert "is about MNIST" in told
    assert "about ImageFolder cats: report one data set at a time" in told
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    main(["test", "--ckpt_path", str(run), "--data.init_args.test_size", "50"])
    assert "were tested on different images" in refused(capsys, "report", str(copy))

    (run / "robustness.json").unlink()
    told = refused(capsys, "report", str(copy))
    assert f"is not tested: `prunerob test --ckpt_path {run}`" in told
    (run / "summary.json").unlink()
    assert f"prunerob fit --ckpt_path {run}`" in refused(capsys, "report", str(copy))
    assert not (copy / "report").exists()
    main(["report", str(copy), "--partial"])
    assert (copy / "report" / "report.html").is_file()


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
    assert [row["pruned"] for row in rows] == ["0", "0", "weight 50 %", "weight 50 %"]
    assert float(rows[0]["difference"]) == pytest.approx(-1.9, abs=0.01)
    lines = Path("runs/table/comparison.md").read_text().splitlines()
    assert lines[2].startswith("| PGD | weight 99.99 %, not run | – / 50.0 | – / 0.0 |")
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


def test_the_paper_s_pgd_stands_for_pgd_in_figures(copy: Path) -> None:
    """Not a stronger one of the same eps, which only stands behind it in the suite."""
    results = read_results([str(copy)])
    suite = yaml.safe_load((CONFIGS / "cifar10_pgd.yaml").read_text())["model"]["attacks"]
    for seeds in results.by_point.values():
        for seed, result in seeds.items():
            seeds[seed] = replace(result, suite=suite)
    assert results.many_steps_column() == "PGD 8/255"
    assert results.one_step_column() == "FGSM 8/255"


@pytest.mark.slow
def test_reports_do_not_hang_on_the_locale(copy: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "prunerob", "report", str(copy)]
    subprocess.run(command, env={**os.environ, **plain}, check=True, capture_output=True)
    assert "−" in (copy / "report" / "report.html").read_text("utf-8")


def test_the_paper_s_tables_can_be_swept() -> None:
    for table in TABLES.values():
        for recipe in table.recipes:
            assert (CONFIGS / recipe.config).is_file()
            amounts = table.amounts_of(recipe.training)
            assert amounts["weight"][0] == 0.0, "the control"
        for row in table.rows:
            assert len(row.accuracies) == len(table.columns)
            assert any(recipe.training == row.training for recipe in table.recipes)
    assert TABLES["table2"].amounts_of("PGD") == {
        "weight": [0.0, 0.94, 0.85],
        "filter": [0.65, 0.4],
        "filter:parameters": [0.65, 0.4],
    }


def test_a_table_leaves_out_what_another_needs() -> None:
    points = reproduce._points(TABLES["table2"])
    assert ("FGSM", "weight", 0.8) in points
    assert ("FGSM", "filter (weights)", 0.7) in points
    assert ("FGSM", "filter (parameters)", 0.7) in points
    assert not {("FGSM", method, 0.8) for method in ("filter", "filter (weights)")} & points


def test_tables_and_reports_call_a_way_of_pruning_the_same() -> None:
    assert reproduce._told("filter") == "filter (weights)"
    assert reproduce._told("filter:parameters") == "filter (parameters)"
    assert reproduce._told("filter:weights:silence") == "filter (weights, silence)"
    names = []
    for text in TABLES["table3"].amounts_of("PGD"):
        (branch,) = make_branches([text], [0.5])
        words = branch.settings()
        keys = [word.removeprefix("--pruning.") for word in words[::2]]
        defaults = {"reading": "weights", "residual": "keep", "epoch": 1, "masks_from": None}
        said = {**defaults, **dict(zip(keys, words[1::2], strict=True)), "amount": 0.5}
        names.append(_point("PGD", said).method)
    assert names == ["weight", "filter (parameters)", "filter (weights, silence)"]


def test_reproduce_needs_a_known_table_and_the_configurations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "table9 is not known; there are table1" in refused(capsys, "reproduce", "table9")
    for text in ("nan", "-300", "a"):
        assert "--tolerance" in refused(capsys, "reproduce", "table1", "--tolerance", text)
    assert "--configs: there is no configs/mnist" in refused(capsys, "reproduce", "table1")
    told = refused(capsys, "reproduce", "table1", "--recipe", "quick")
    assert "--recipe: 'quick' is none of: standard; standard, TensorFlow's RMSprop;" in told
    told = refused(capsys, "reproduce", "table3", "--recipe", "PGD*", "--recipe", "FGSM")
    assert "no configs/cifar10_pgd_fast.yaml" in told, "the first of those asked for"
    told = refused(capsys, "reproduce", "table1", "--report-only", "--configs", str(CONFIGS))
    assert "--folder: reproduce holds no runs of table1" in told


def test_different_attacks_and_settings_do_not_meet_in_one_row(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy / "seed1" / "weight-0.5"
    main(["test", "--ckpt_path", str(run), "--model.attacks.PGD.init_args.steps", "4"])
    assert "are different attacks; test them alike" in refused(capsys, "report", str(copy))
    main(["test", "--ckpt_path", str(run)])
    capsys.readouterr()

    original = (run / "config.yaml").read_text()
    for key, value in (("optimizer", {"lr": 0.5}), ("adversarial_training", {"weight": 1.0})):
        config = yaml.safe_load(original)
        config["model"][key].get("init_args", config["model"][key]).update(value)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        told = refused(capsys, "report", str(copy))
        assert f"model.{key}" in told
        assert "cannot stand in one row" in told
    (run / "config.yaml").write_text("a: [")
    assert "its files are damaged" in refused(capsys, "report", str(copy))


def test_two_runs_from_one_dense_network_share_its_row(tmp_path: Path) -> None:
    main(["fit", "--config", TINY])
    main(["test", "--ckpt_path", "before_pruning"])
    main(["test"])
    first = Path("lightning_logs/tiny/version_0")
    second = Path(shutil.copytree(first, first.parent / "version_1"))
    for name in ("pruning.json", "config.yaml"):  # as if it had been pruned by more
        text = (second / name).read_text()
        (second / name).write_text(
            text.replace('amount": 0.7', 'amount": 0.8').replace("amount: 0.7", "amount: 0.8")
        )
    results = read_results(["lightning_logs"])
    assert [point.pruned for point in results.by_point] == ["0", "weight 80 %", "weight 70 %"]
