"""Progress on the terminal: a bar, a line per epoch, and an estimate of the training time."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from time import perf_counter
from typing import Any, TextIO, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    MetricsTextColumn,
    RichProgressBarTheme,
)
from pytorch_lightning.utilities import rank_zero_info
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from prunerob.training.classifier import Classifier


class CurrentStream(logging.StreamHandler[TextIO]):
    """A log handler that writes to what `sys.stderr` is now: above the bar, while there is one.

    Lightning's own keeps the stream that it found when it was imported, and writes over the bar.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The present standard error stream."""
        return sys.stderr


def log_above_bars() -> None:
    """Let Lightning's messages go to the present `sys.stderr`, which a bar stands in for."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
                current = CurrentStream()
                current.setFormatter(handler.formatter)
                logger.addHandler(current)


class Progress(RichProgressBar):
    """Lightning's rich bar in one line: how far, how long, and what the latest step got right."""

    METRICS = 3
    """At most so many numbers stand beside the bar; all of them are in the epoch's line."""

    WARM_UP, MEASURED = 5, 25
    """Training steps that the estimate leaves out, and that it measures."""

    def __init__(self) -> None:
        # The default redraws 100 times a second, which costs a small network's training time.
        super().__init__(refresh_rate=4, theme=RichProgressBarTheme(metrics_format=".3f"))
        self._steps = 0
        self._clock = 0.0

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The numbers behind the bar."""
        running = list(cast(Classifier, pl_module).running.items())[: self.METRICS]
        return {_split(name)[1]: value.item() for name, value in running}

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Columns that leave room for the numbers at 80 characters."""
        theme = self.theme
        return [
            TextColumn("{task.description}", style=theme.description, markup=False),
            BarColumn(bar_width=12, complete_style=theme.progress_bar),
            BatchesProcessedColumn(style=theme.batch_progress),
            TimeRemainingColumn(compact=True),
            MetricsTextColumn(
                trainer, theme.metrics, theme.metrics_text_delimiter, theme.metrics_format
            ),
        ]

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts epochs from 0 here; as wide as the other bar's.
        epochs = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}/{epochs}".ljust(len(self.validation_description))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, and after a few steps say how long training will take."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._steps += 1
        if self._steps == self.WARM_UP:
            self._clock = perf_counter()
        elif self._steps == self.WARM_UP + self.MEASURED:
            per_step = (perf_counter() - self._clock) / self.MEASURED
            left = cast(float, trainer.estimated_stepping_batches) - trainer.global_step
            if 0 < left < float("inf"):
                rank_zero_info(
                    f"Training takes about {duration(per_step * left)} from here "
                    f"({1000 * per_step:.0f} ms a step, {left:,.0f} steps); validation comes on top"
                )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line for the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        phase = cast(Classifier, pl_module).phase_name
        told = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs} ({phase})"
        rank_zero_info(f"{told}: {accuracies(trainer.callback_metrics)}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the classifier to say which attack runs."""
        super().on_test_start(trainer, pl_module)
        cast(Classifier, pl_module).on_attack = self._show_attack

    def _show_attack(self, name: str) -> None:
        if self.progress is not None and self.test_progress_bar_id is not None:
            self.progress.update(self.test_progress_bar_id, description=f"Testing: {name}")


def accuracies(metrics: Mapping[str, Tensor]) -> str:
    """An epoch's metrics for people: "validation 98.1% clean, 90.3% robust; train loss 0.213".

    Args:
        metrics: numbers by their tags: "accuracy/validation_clean", "loss/train".
    """
    groups: dict[str, list[str]] = {}
    for tag, value in metrics.items():
        if tag != "step":
            images, name = _split(tag)
            is_accuracy = tag.startswith("accuracy/")
            text = f"{float(value):.1%} {name}" if is_accuracy else f"{name} {float(value):.3f}"
            groups.setdefault(images, []).append(text)
    return "; ".join(f"{images} {', '.join(parts)}".strip() for images, parts in groups.items())


def _split(tag: str) -> tuple[str, str]:
    """The images that a number is of, and its name: "train" and "clean", "train" and "loss"."""
    group, _, rest = tag.rpartition("/")
    images, _, name = rest.partition("_")
    return ("", tag) if group not in ("accuracy", "loss") else (images, name or group)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
