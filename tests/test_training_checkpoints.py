"""What a run saves, and that it goes on to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback
from safetensors.torch import load_file
from torch import Tensor, nn

from prunerob.cli import main
from prunerob.networks import MnistCNN
from prunerob.training.classifier import Classifier
from tests.conftest import RUN, TINY, Interrupt, assert_equal, masks, newest_run, refused, weights


def test_a_run_keeps_its_record_its_checkpoints_and_what_pruning_did(finished: Path) -> None:
    for name in ("last", "best", "before_pruning"):
        assert (finished / "checkpoints" / f"{name}.ckpt").is_file()
    dense, pruned = weights(finished, "before_pruning"), weights(finished)
    assert dense.keys() == pruned.keys(), "pruning renames nothing"
    held = masks(finished)
    total = sum(mask.numel() for mask in held.values())
    assert sum(int((~mask).sum()) for mask in held.values()) == round(0.7 * total)
    for name, mask in held.items():
        assert (pruned[f"network.{name}"][~mask] == 0).all()
        assert (dense[f"network.{name}"][~mask] != 0).any()
        assert not torch.equal(pruned[f"network.{name}"][mask], dense[f"network.{name}"][mask])
    report = json.loads((finished / "pruning.json").read_text())
    assert report["shares"]["weights"] == pytest.approx(0.7, abs=1 / total)
    assert set(report["validation"]) == {"before", "after", "fine-tuned"}
    assert report["validation"]["after"]["robust"]["images"] == 50
    bare = load_file(finished / "weights.safetensors")
    assert_equal({f"network.{name}": value for name, value in bare.items()}, pruned)


def test_training_and_fine_tuning_have_their_own_optimizers(finished: Path) -> None:
    def state(name: str) -> tuple[set[str], dict[str, Any], float]:
        path = finished / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        (optimizer,), (scheduler,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
        return set(optimizer["state"][0]), scheduler, optimizer["param_groups"][0]["lr"]

    names, scheduler, _ = state("before_pruning")
    assert "square_avg" in names  # RMSprop
    assert scheduler["total_steps"] == 2 * 5  # one cycle over the two epochs of training
    names, scheduler, rate = state("last")
    assert names == {"momentum_buffer"}  # SGD
    assert (scheduler["step_size"], rate) == (1, 0.0025)  # halved after each of two epochs


def test_a_run_s_own_configuration_repeats_it(run: Path) -> None:
    main(["fit", "--config", str(run / "config.yaml")])
    again = run.parent / "version_1"
    assert_equal(weights(again), weights(run))
    assert yaml.safe_load((again / "config.yaml").read_text()) == yaml.safe_load(
        (run / "config.yaml").read_text()
    )


def test_another_seed_gives_another_network_on_the_same_images(run: Path) -> None:
    main(["fit", "--config", str(run / "config.yaml"), "--seed_everything", "4"])
    assert not torch.equal(
        weights(run.parent / "version_1")["network.conv2.weight"],
        weights(run)["network.conv2.weight"],
    )


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    epoch: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before, at and after the prune epoch, 2."""
    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, epoch))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", TINY])
    assert end.value.code == 130
    run = tmp_path / "lightning_logs" / "tiny" / "version_0"
    assert not (run / "summary.json").exists()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == epoch - 1

    monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
    main(["fit", "--ckpt_path", str(run)])
    assert_equal(weights(run), weights(finished))
    assert_equal(masks(run), masks(finished))
    assert (run / "summary.json").is_file()
    assert not (run.parent / "version_1").exists(), "it goes on in its own folder"


def test_a_killed_run_goes_on_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "lightning_logs" / "tiny" / "version_0"
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    code += f"from prunerob.cli import main; main(['fit', '--config', {TINY!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (run / "checkpoints" / "last.ckpt").is_file():
            assert process.poll() is None, "the run ended before it could be killed"
            sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert not (run / "summary.json").exists()
    main(["fit", "--ckpt_path", str(run)])
    assert_equal(weights(run), weights(finished))


def test_a_branch_from_before_pruning_equals_the_single_run(run: Path) -> None:
    branch = str(run / "checkpoints" / "before_pruning.ckpt")
    main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", branch])
    new = run.parent / "version_1"
    assert_equal(weights(new), weights(run))
    assert yaml.safe_load((new / "config.yaml").read_text())["ckpt_path"] == branch
    main(["fit", "--config", TINY, "--ckpt_path", branch, "--pruning.amount", "0.3"])
    held = masks(run.parent / "version_2")
    assert sum(int((~m).sum()) for m in held.values()) == round(
        0.3 * sum(m.numel() for m in held.values())
    )


def test_a_run_killed_in_its_last_moments_is_brought_to_its_end(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "pruning.json").unlink()
    before = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").unlink()
    main(["fit", "--ckpt_path", str(run)])
    assert (run / "weights.safetensors").read_bytes() == before
    report = json.loads((run / "pruning.json").read_text())
    assert report["validation"]["fine-tuned"]["clean"]["images"] == 100
    assert (run / "summary.json").is_file()


def test_a_run_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(
        capsys,
        "fit",
        "--config",
        TINY,
        "--trainer.logger.version",
        "version_0",
        "--seed_everything",
        "9",
    )
    assert "already holds a run" in told
    assert "a run needs one" in refused(
        capsys, "fit", "--config", TINY, "--trainer.logger", "false"
    )


def test_schedules_and_prune_epochs_that_do_not_fit_a_checkpoint_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = str(run / "checkpoints" / "before_pruning.ckpt")
    again = ("fit", "--config", TINY, "--ckpt_path", branch)
    constant = ("--model.schedule", "prunerob.schedules.Constant")
    told = refused(capsys, *again, *constant, "--pruning.epoch", "1")
    assert "1 is behind the checkpoint, which has 2 epochs" in told
    told = refused(capsys, *again, "--pruning.epoch", "3")
    assert "runs over 10 steps, but this configuration's over 15" in told


def test_best_is_an_epoch_that_was_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned, the network is worse than its last accuracy before, which still stands there."""

    def log(module: Classifier) -> None:
        module.log("accuracy/validation_clean", 0.9 if module.current_epoch < 2 else 0.1)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", log)
    main(["fit", "--config", TINY, "--trainer.check_val_every_n_epoch", "2"])
    best = torch.load(RUN / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 3, "of epochs 1 and 3, the one that is pruned"


class Stop(Callback):
    """Ends training in the middle of an epoch, as trainer.max_time does."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.current_epoch == 3 and args[2] == 2:
            trainer.should_stop = True


class Terminate(Callback):
    """Asks the process to end, as a batch system does."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.current_epoch == 1 and args[2] == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_told_to_end_does_not_pass_for_a_finished_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunerob.commands.lightning.Progress", Terminate)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", TINY])
    assert end.value.code == 143
    assert (RUN / "checkpoints" / "last.ckpt").is_file()


def test_a_run_that_was_stopped_after_it_was_pruned_is_not_finished(
    caplog: pytest.LogCaptureFixture,
) -> None:
    main(["fit", "--config", TINY, "--trainer.callbacks", f"{__name__}.Stop"])
    assert "Stopped before its 4 epochs were over; go on with: prunerob fit" in caplog.text
    run = newest_run()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "pruning.json").exists()


class Dropping(MnistCNN):
    """Draws from torch's own generator while it trains."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


def test_an_epoch_that_was_cut_short_is_not_saved_and_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With dropout, which draws as it would have without the interruption."""
    fit = ["fit", "--config", TINY, "--model.network", f"{__name__}.Dropping"]
    main(fit)
    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    monkeypatch.setattr("prunerob.commands.lightning.Progress", Stop)
    main(fit)
    stopped = newest_run()
    state = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 2
    assert not (stopped / "summary.json").exists()
    monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
    main(["fit", "--ckpt_path", str(stopped)])
    for name, value in weights(RUN).items():
        assert torch.equal(weights(stopped)[name], value), name


class Tied(MnistCNN):
    """Two names for the same weights."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))
        self.again = self.conv3


def test_tied_weights_are_saved_under_both_names() -> None:
    main(["fit", "--config", TINY, "--model.network", f"{__name__}.Tied"])
    saved = load_file(RUN / "weights.safetensors")
    assert torch.equal(saved["again.weight"], saved["conv3.weight"])
    main(["test"])
    assert json.loads((RUN / "robustness.json").read_text())["rows"][0]["images"] == 60
