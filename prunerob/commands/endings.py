"""What `fit` says at its end, however it comes."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities import rank_zero_info

from prunerob.data.batches import Batches
from prunerob.errors import UserError
from prunerob.runs.folder import Run, has_finished
from prunerob.runs.ranks import lost_ranks
from prunerob.statistics import wilson_interval
from prunerob.training.classifier import Classifier
from prunerob.training.phases import TRAINING
from prunerob.training.progress import duration


@contextmanager
def told(trainer: Trainer, model: Classifier) -> Iterator[None]:
    """Tell how training ended, and how to go on.

    Args:
        trainer: that trains within.
        model: that it trains.

    Raises:
        UserError: nothing was saved, or another process of the run was lost.
        OSError: something could not be written; the error names a folder.
    """
    # The logger's: the Trainer's would ask the other ranks, which may be gone.
    folder = getattr(trainer.logger, "log_dir", None)
    try:
        with lost_ranks(f"prunerob fit --ckpt_path {folder}"):
            yield
    except (KeyboardInterrupt, SystemExit):
        if folder and Run(Path(folder)).checkpoint().is_file():
            rank_zero_info(f"Interrupted; go on with: prunerob fit --ckpt_path {folder}")
        raise
    except ValueError as error:
        if "`val_check_interval`" in str(error):
            why = "has more steps than an epoch; lower it, or set trainer.check_val_every_n_epoch"
            raise UserError(f"trainer.val_check_interval: {why}") from None
        raise
    except OSError as error:
        if folder and error.errno == errno.ENOENT and not Path(folder).is_dir():
            Run(Path(folder)).check_is_there()
        if error.filename is None and error.errno is not None and folder:  # as TensorBoard's
            raise OSError(error.errno, error.strerror, str(folder)) from None
        raise
    folder = trainer.log_dir
    if not folder or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    if trainer.is_global_zero:
        _conclude(trainer, model, Run(Path(folder)))


def _conclude(trainer: Trainer, model: Classifier, run: Run) -> None:
    """The same where nothing went wrong on the way.

    Raises:
        UserError: nothing was saved.
    """
    timers = [c for c in cast(Any, trainer).callbacks if isinstance(c, Timer)]
    is_over = any((timer.time_remaining() or 0) <= 0 for timer in timers)
    if not run.checkpoint().is_file():
        if is_over:
            raise UserError(
                "trainer.max_time: ended training before an epoch was over, so nothing is saved; "
                "raise it"
            )
        raise UserError("Stopped in its first epoch: nothing is saved")
    rank_zero_info(f"Run: {run.folder}")
    if run.summary.is_file():
        if has_finished(trainer):
            rank_zero_info(result(run))
            if doubt := _at_chance(trainer, model):
                rank_zero_info(doubt)
        return
    unpruned = model.prune_epoch is not None and model.phase_name == TRAINING
    when = ", before anything was pruned" if unpruned else ""
    rank_zero_info(
        f"Stopped before its {trainer.max_epochs} epochs were over{when}; "
        f"go on with: prunerob fit --ckpt_path {run.folder}"
    )
    if is_over:
        rank_zero_info("trainer.max_time counts the time of all sessions: raise it")


MOMENTS = {"before": "before pruning", "after": "just pruned", "fine-tuned": "at the end"}
"""How people call the moments that a pruning measures at."""

ACCURACIES = {"clean": "clean", "robust": "under the validation attack"}
"""The accuracies of a result, and how people call them; others are in summary.json."""


def result(run: Run) -> str:
    """What a finished run came to: accuracies before and after pruning, size, time; what is next.

    Args:
        run: with its summary.
    """
    summary = json.loads(run.summary.read_text("utf-8"))
    file = run.folder / "pruning.json"
    pruning = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    validation = pruning.get("validation") or {"fine-tuned": summary["validation"]}
    lines = []
    for when, accuracies in validation.items():
        parts = [
            f"{accuracies[key]['accuracy']:6.1%} {name} ({accuracies[key]['images']:,} images)"
            for key, name in ACCURACIES.items()
            if key in accuracies
        ]
        if parts:
            lines.append(f"  {MOMENTS[when]:<16}{',  '.join(parts)}")
    if lines:
        lines.insert(0, "Validation images classified right:")
    probe, probed = (summary["validation"].get(key) for key in ("probe", "probed"))
    if probe and probed:
        lines.append(
            f"  of {probed['images']} images the validation attack leaves {probed['correct']}, "
            f"and short attacks of other kinds {probe['correct']}"
        )
    if pruning:
        before = sum(layer["parameters_before"] for layer in pruning["layers"])
        after = sum(layer["parameters_after"] for layer in pruning["layers"])
        lines.append(f"Parameters: {before:,} before pruning, {after:,} left")
    lines.append(f"Trained {summary['epochs']} epochs in {duration(summary['seconds'])}")
    lines.append(f"What AutoAttack leaves: prunerob test --ckpt_path {run.folder}")
    return "\n".join(lines)


def _at_chance(trainer: Trainer, model: Classifier) -> str | None:
    """A warning where a network has not learnt to do more than guess.

    Chance is the share of the most frequent class; the accuracy's Wilson interval, 95 %, must lie
    above it.

    Args:
        trainer: that has finished.
        model: that it trained; its validation has been counted.
    """
    batches = cast(Any, trainer).datamodule.val_dataloader()
    counts = model.final_validation().get("clean")
    if counts is None or not isinstance(batches, Batches):
        return None
    labels = batches.images.labels[batches.index]
    chance = int(labels.bincount().max()) / len(labels)
    right, images = counts
    if wilson_interval(right, images)[0] > chance:
        return None
    return (
        f"Training ended at chance: {right} of {images} validation images are classified right, "
        f"and guessing one class is right for {chance:.1%}. Try another model.optimizer.lr, a "
        "smaller eps or a longer ramp in model.adversarial_training, a smaller pruning.amount, or "
        "more epochs"
    )
