"""Checks of a Trainer before it trains: that what is to be pruned will be, and stays so."""

from __future__ import annotations

from typing import Any, cast

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging

from prunerob.errors import UserError
from prunerob.pruning.schedules import PruningSchedule


def check_trainer(
    trainer: Trainer, epoch: int | None, schedule: PruningSchedule, amount: float
) -> None:
    """Refuse settings of the Trainer with which nothing is pruned, or does not stay so.

    Args:
        trainer: of the run.
        epoch: the prune epoch; None without pruning.
        schedule: from there on.
        amount: to prune in the end.

    Raises:
        UserError: there are such settings.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        if epoch is not None:
            raise UserError(
                "trainer.fast_dev_run: stops before anything is pruned; set pruning.epoch to "
                "null with it, or try with few images (data.train_size) and few epochs"
            )
        return
    if trainer.max_steps not in (None, -1) or trainer.max_epochs in (None, -1):
        raise UserError("trainer.max_epochs: phases are counted in epochs; set it, not max_steps")
    if epoch is None:
        return
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} would bring pruned weights "
                "back; set model.averaging to average with the masks held"
            )
    epochs = trainer.max_epochs
    if epochs is None or epochs < 0:
        return
    if epochs <= epoch:
        raise UserError(
            f"pruning.epoch: {epoch} is never reached in this run of {epochs} epochs (they count "
            "from 0); raise trainer.max_epochs, or set pruning.epoch to null to train without "
            "pruning"
        )
    check_time(epochs, epoch, schedule, amount)


def check_time(epochs: int, epoch: int, schedule: PruningSchedule, amount: float) -> None:
    """See that a schedule comes to its end within a run.

    Args:
        epochs: of the run.
        epoch: the prune epoch.
        schedule: from there on.
        amount: to prune in the end.

    Raises:
        UserError: it does not.
    """
    lasts = schedule.lasts(amount)
    if schedule.round_epochs and epochs != epoch + lasts + schedule.round_epochs:
        raise UserError(
            f"trainer.max_epochs: {epochs}, but pruning.schedule makes "
            f"{lasts // schedule.round_epochs + 1} rounds of {schedule.round_epochs} epochs from "
            f"epoch {epoch} on; set it to {epoch + lasts + schedule.round_epochs}"
        )
    if epochs <= epoch + lasts:
        raise UserError(
            f"pruning.schedule: takes {lasts} epochs from epoch {epoch} on, and at least one must "
            f"follow, but trainer.max_epochs is {epochs}; raise it, or prune faster"
        )
