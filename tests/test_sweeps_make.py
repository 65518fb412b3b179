"""From options to a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SWEEP, TINY, refused


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (["--trainer.max_epochs", "3"], "trainer.max_epochs 4, but this sweep has 3"),
        (["--pruning.epoch", "1"], "trainer.max_epochs 2, but this sweep has 1"),
        (["--pruning.reading", "filters"], "pruning.reading weights, but this sweep has filters"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision"),
    ],
)
def test_a_trial_does_not_pass_for_the_real_thing(
    setting: list[str], told: str, started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, *SWEEP, "--seed", "0", *setting)


@pytest.mark.parametrize(
    "setting",
    [
        ["--seed_everything", "3"],
        ["--ckpt_path", "x"],
        ["--pruning.amount", "0.5"],
        ["--pruning.criterion", "prunerob.pruning.lamp"],
        ["--trainer.limit_test_batches", "2"],
        ["--trainer.limit_test_batches", "1"],
        ["--trainer.limit_test_batches", "0"],
        ["--trainer.limit_test_batches", "0.0"],
        ["--trainer.fast_dev_run", "true"],
    ],
)
def test_what_a_sweep_sets_itself_is_no_setting(
    setting: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, *SWEEP, *setting)
    assert setting[0].removeprefix("--") in told


@pytest.mark.parametrize(
    "criteria", ["filter,filter:weights", "weight,prunerob.pruning.criteria.weight_magnitude"]
)
def test_the_same_pruning_by_two_names_is_refused(
    criteria: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "sweep", "--config", TINY, "--criterion", criteria, "--amount", "0,0.4")
    assert "are the same pruning" in told
    assert not Path("sweeps").exists()


def test_images_that_a_data_set_refuses_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    augmentation = ["--data.augmentation", "prunerob.data.CropAndFlip"]
    augmentation += ["--data.augmentation.init_args.padding", "-1"]
    assert "padding of CropAndFlip: -1 is below 0" in refused(capsys, *SWEEP, *augmentation)
