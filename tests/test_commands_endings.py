"""What `fit` says at its end."""

from __future__ import annotations

import json
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


def test_fit_ends_with_its_result_and_what_comes_next(caplog: pytest.LogCaptureFixture) -> None:
    main(["fit", "--config", TINY])
    summary = json.loads((RUN / "summary.json").read_text())
    pruning = json.loads((RUN / "pruning.json").read_text())
    told = next(m for m in caplog.messages if m.startswith("Validation images classified right:"))
    lines = [" ".join(line.split()) for line in told.splitlines()]
    for moment, called in (("before", "before pruning"), ("fine-tuned", "at the end")):
        clean = pruning["validation"][moment]["clean"]
        start = f"{called} {clean['accuracy']:.1%} clean ({clean['images']:,} images),"
        assert any(line.startswith(start) for line in lines), told
    before = sum(layer["parameters_before"] for layer in pruning["layers"])
    after = sum(layer["parameters_after"] for layer in pruning["layers"])
    assert after < before
    assert f"Parameters: {before:,} before pruning, {after:,} left" in lines
    assert any(line.startswith(f"Trained {summary['epochs']} epochs in ") for line in lines)
    assert lines[-1] == f"What AutoAttack leaves: prunerob test --ckpt_path {RUN}"


def test_fit_without_pruning_tells_its_result(caplog: pytest.LogCaptureFixture) -> None:
    main(["fit", "--config", TINY, "--trainer.max_epochs", "1", "--pruning.epoch", "null"])
    told = next(m for m in caplog.messages if m.startswith("Validation images classified right:"))
    assert "at the end" in told
    assert "pruning" not in told
