"""What `fit` says at its end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback

from prunerob.cli import main
from tests.conftest import RUN, TINY, refused


class Remove(Callback):
    """Removes the run's folder while it trains."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            shutil.rmtree(RUN)


def test_a_run_that_was_removed_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "fit", "--config", TINY, "--trainer.callbacks", f"{__name__}.Remove")
    assert f"{RUN} was removed or moved while its run was written" in told


def test_training_that_learns_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    fit = ["fit", "--config", TINY, "--trainer.max_epochs", "1", "--pruning.epoch", "null"]
    main([*fit, "--model.optimizer.init_args.lr", "1e-9"])
    assert "Training ended at chance: " in caplog.text
    assert " of 100 validation images are classified right" in caplog.text
    assert (RUN / "summary.json").is_file()


def test_training_that_learns_says_nothing_of_chance(caplog: pytest.LogCaptureFixture) -> None:
    fit = ["fit", "--config", TINY, "--trainer.max_epochs", "2", "--pruning.epoch", "null"]
    fit += ["--data.init_args.train_size", "1500", "--model.adversarial_training.weight", "0"]
    main([*fit, "--model.validation_attack_images", "0"])
    assert "chance" not in caplog.text
    assert "Run: " in caplog.text


@pytest.mark.parametrize("limit", ["00:00:00:00", "null"])
def test_a_limit_that_leaves_no_epoch_is_no_success(
    limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if limit == "null":
        Path("c.yaml").write_text("trainer: {max_time: {}}")
        told = refused(capsys, "fit", "--config", TINY, "--config", "c.yaml")
    else:
        told = refused(capsys, "fit", "--config", TINY, "--trainer.max_time", limit)
    assert told.startswith("prunerob: error: trainer.max_time: ended training before an epoch")
