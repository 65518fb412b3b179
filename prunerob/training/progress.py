"""Progress on the terminal: a bar, a line per epoch, and an estimate of the training time."""

from __future__ import annotations

from time import perf_counter
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.utilities import rank_zero_info

from prunerob.training.classifier import Classifier


class Progress(RichProgressBar):
    """Lightning's rich bar, with the accuracies of the latest step and the attack that runs."""

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
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        short = {name.removeprefix("validation/"): value for name, value in metrics.items()}
        running = cast(Classifier, pl_module).running
        return {**{name: value.item() for name, value in running.items()}, **short}

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
        metrics = trainer.callback_metrics
        accuracies = ", ".join(f"{name} {float(value):.4f}" for name, value in metrics.items())
        phase = cast(Classifier, pl_module).phase_name
        rank_zero_info(
            f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs} ({phase}): {accuracies}"
        )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the classifier to say which attack runs."""
        super().on_test_start(trainer, pl_module)
        cast(Classifier, pl_module).on_attack = self._show_attack

    def _show_attack(self, name: str) -> None:
        if self.progress is not None and self.test_progress_bar_id is not None:
            self.progress.update(self.test_progress_bar_id, description=f"Testing: {name}")


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
