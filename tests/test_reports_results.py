"""Results in order, and their differences."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from prunerob.attacks.suite import Suite
from prunerob.cli import main
from prunerob.reports.networks import Point
from prunerob.reports.reading import read_results
from prunerob.reports.tables import to_csv
from tests.conftest import CONFIGS, TINY, accuracy, refused


def test_the_same_networks_twice_prove_no_more(swept: Path) -> None:
    once = read_results([str(swept / "seed0")])
    shutil.rmtree(swept / "seed1")
    shutil.copytree(swept / "seed0", swept / "seed1")
    for config in (swept / "seed1").rglob("config.yaml"):
        config.write_text(config.read_text().replace("seed_everything: 0", "seed_everything: 1"))
    twice = read_results([str(swept)])
    point = Point(recipe="PGD", method="weight", amount=0.5)
    for column in twice.columns:
        a, b = (r.difference(point, point.dense, column) for r in (once, twice))
        assert a is not None
        assert b is not None
        assert (a.values, b.values) == (1, 2)
        assert (a.points, a.p_images) == (b.points, b.p_images)


def test_black_boxes_that_differ_in_their_seed_are_one_column(swept: Path) -> None:
    for seed in (0, 1):
        run = swept / f"seed{seed}" / "dense"
        config = yaml.safe_load((run / "config.yaml").read_text())
        for box in (0, 1):
            config["model"]["attacks"][f"box {box}"] = {
                "class_path": "prunerob.attacks.BlackBox",
                "init_args": {"images": 20, "rounds": 2, "seed": box},
            }
        Path("boxes.yaml").write_text(yaml.safe_dump(config))
        main(["test", "--config", "boxes.yaml", "--ckpt_path", str(run)])
    results = read_results([str(swept / "seed0" / "dense"), str(swept / "seed1" / "dense")])
    assert results.columns == ["natural", "FGSM 8/255", "PGD", "black box", "worst case"]
    (point,) = results.by_point
    expected = [accuracy(swept / f"seed{s}" / "dense", f"box {b}") for s in (0, 1) for b in (0, 1)]
    assert results.accuracies(point, "black box") == expected
    box = next(csv.DictReader([*to_csv(results).splitlines()[:1], *_lines(results, "black box")]))
    assert (box["images"], box["values"]) == ("40", "4")
    rows = json.loads((swept / "seed0" / "dense" / "robustness.json").read_text())["rows"]
    found = next(row for row in rows if row["attack"] == "box 0")
    assert found["learned"]["queries"] == 40
    assert found["images"] == 40
    assert rows[-1]["images"] == 40, "the worst case: what every attack was tried on"


def _lines(results: object, column: str) -> list[str]:
    return [line for line in to_csv(results).splitlines() if f",{column}," in line]  # type: ignore[arg-type]


def test_the_paper_s_pgd_stands_for_pgd_in_figures(swept: Path) -> None:
    """Not a stronger one of the same eps, which only stands behind it in the suite."""
    results = read_results([str(swept)])
    suite = yaml.safe_load((CONFIGS / "cifar10_pgd.yaml").read_text())["model"]["attacks"]
    for seeds in results.by_point.values():
        for seed, result in seeds.items():
            seeds[seed] = replace(result, suite=Suite.read({"attacks": suite}))
    assert results.many_steps_column() == "PGD 8/255"
    assert results.one_step_column() == "FGSM 8/255"


def test_different_attacks_and_settings_do_not_meet_in_one_row(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = swept / "seed1" / "weight-0.5"
    main(["test", "--ckpt_path", str(run), "--model.attacks.PGD.init_args.steps", "4"])
    assert "are different attacks; test them alike" in refused(capsys, "report", str(swept))
    main(["test", "--ckpt_path", str(run)])
    capsys.readouterr()

    original = (run / "config.yaml").read_text()
    for key, value in (("optimizer", {"lr": 0.5}), ("adversarial_training", {"weight": 1.0})):
        config = yaml.safe_load(original)
        config["model"][key].get("init_args", config["model"][key]).update(value)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        told = refused(capsys, "report", str(swept))
        assert f"model.{key}" in told
        assert "cannot stand in one row" in told
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml: is no YAML" in refused(capsys, "report", str(swept))


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
    assert [point.name for point in results.by_point] == [
        *("dense", "weights, 80 %", "weights, 70 %")
    ]
