"""A run's record of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from prunerob.runs.folder import Run, write_whole


class SaveConfig(SaveConfigCallback):
    """Lays the configuration of `fit` down in the run's folder and in TensorBoard."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Save when a run begins; a run that goes on has its record already."""
        if stage != "fit" or not (folder := trainer.log_dir):
            return
        if trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            write_whole(Run(Path(folder)).config, text)
            self.save_config(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Show the configuration in TensorBoard."""
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")
