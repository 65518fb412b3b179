"""The runs of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from prunerob.cli import main
from tests.conftest import TINY, assert_equal, masks, on_one_thread, refused, weights


def test_every_branch_grows_from_one_dense_network(sweep: Path) -> None:
    assert sorted(path.name for path in sweep.glob("[!.]*")) == ["seed0", "seed1"]
    for seed in (0, 1):
        runs = sweep / f"seed{seed}"
        expected = ["control", "dense", "filter-0.5", "filter-0.5-scratch"]
        assert sorted(p.name for p in runs.iterdir()) == [
            *expected,
            "weight-0.5",
            "weight-0.5-scratch",
        ]
        dense = weights(runs / "dense")
        assert json.loads((runs / "dense" / "summary.json").read_text())["epochs"] == 2
        for name in ("control", "weight-0.5", "filter-0.5"):
            config = yaml.safe_load((runs / name / "config.yaml").read_text())
            assert config["seed_everything"] == seed
            assert config["ckpt_path"].endswith(f"seed{seed}/dense/checkpoints/last.ckpt")
            assert not torch.equal(
                weights(runs / name)["network.conv1.weight"], dense["network.conv1.weight"]
            )
            assert (runs / name / "robustness.json").is_file()
        assert all(mask.all() for mask in masks(runs / "control").values())
        pruned, scratch = masks(runs / "filter-0.5"), masks(runs / "filter-0.5-scratch")
        assert_equal(pruned, scratch)
        held = weights(runs / "filter-0.5-scratch")
        assert all((held[f"network.{name}"][~mask] == 0).all() for name, mask in pruned.items())
        report = json.loads((runs / "filter-0.5-scratch" / "pruning.json").read_text())
        assert report["epoch"] == 0
        assert report["masks_from"].endswith("filter-0.5")


def test_a_branch_equals_the_single_run(sweep: Path) -> None:
    on_one_thread("fit", "--config", TINY, "--pruning.amount", "0.5", "--seed_everything", "1")
    single = Path("lightning_logs/tiny/version_0")
    assert_equal(weights(single, "before_pruning"), weights(sweep / "seed1" / "dense"))
    assert_equal(weights(single), weights(sweep / "seed1" / "weight-0.5"))


def test_each_run_is_tested_with_its_own_settings(sweep: Path) -> None:
    for name, method in (("weight-0.5", "weight_magnitude"), ("filter-0.5-scratch", "filter_l1")):
        log = (sweep / "seed0" / name / "log.txt").read_text()
        tested = log.split("$ prunerob test")[1].splitlines()[0]
        assert f"--pruning.amount 0.5 --pruning.criterion prunerob.pruning.{method}" in tested


def test_a_sweep_begins_with_weights_that_are_there(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = str(run / "weights.safetensors")
    args = ["sweep", "--config", TINY, "--model.weights", given, "--pruning.epoch", "0"]
    args += ["--trainer.max_epochs", "1", "--criterion", "weight,lamp", "--amount", "0,0.5"]
    main([*args, "--folder", "swept", "--threads", "1"])
    runs = Path("swept") / "seed0"
    assert sorted(p.name for p in runs.iterdir()) == ["control", "lamp-0.5", "weight-0.5"]
    for name in ("control", "lamp-0.5"):
        config = yaml.safe_load((runs / name / "config.yaml").read_text())
        assert config["model"]["weights"] == given
        assert (runs / name / "robustness.json").is_file()
    held = weights(runs / "weight-0.5")
    report = json.loads((runs / "weight-0.5" / "pruning.json").read_text())
    assert report["shares"]["weights"] == pytest.approx(0.5, abs=1e-3)
    assert sum(int((w == 0).sum()) for w in held.values()) > 0
    main(["report", "swept"])
    told = refused(capsys, *args, "--folder", "swept", "--model.fine_tuning.optimizer.lr", "0.1")
    assert "model.fine_tuning.optimizer.init_args.lr 0.01, but this sweep has 0.1" in told


def test_settings_of_a_criterion_are_settings_of_a_sweep(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["sweep", "--config", TINY, "--model.weights", str(run / "weights.safetensors")]
    args += ["--pruning.epoch", "0", "--trainer.max_epochs", "1", "--amount", "0.5"]
    args += ["--criterion", "taylor,weight", "--threads", "1", "--folder", "swept"]
    args += ["--pruning.criterion", "prunerob.pruning.Taylor", "--pruning.criterion.batches"]
    main([*args, "2"])
    runs = Path("swept") / "seed0"
    report = json.loads((runs / "taylor-0.5" / "pruning.json").read_text())
    assert "Taylor(batches=2)" in report["criterion"]
    told = refused(capsys, *args, "3")
    assert "pruning.criterion.init_args.batches 2, but this sweep has 3" in told


def test_a_sweep_without_epochs_before_pruning_needs_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = refused(capsys, "sweep", "--config", TINY, "--amount", "0.5", "--pruning.epoch", "0")
    assert "(or 0 and model.weights, which are one)" in told
