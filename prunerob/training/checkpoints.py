"""Which checkpoints a run keeps, and the marks of a finished run."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import time
from typing import Any, cast

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from safetensors.torch import save

from prunerob import __version__
from prunerob.runs.folder import Run, has_finished, is_whole_epoch, run_folder, write_whole
from prunerob.training.classifier import Classifier
from prunerob.training.phases import TRAINING
from prunerob.training.resuming import check_optimizer
from prunerob.training.saving import WholeFiles
from prunerob.training.validation import MASKED


class Checkpoints(Checkpoint):
    """Keeps the last epoch, the one just before pruning, and the best; all at epochs' ends.

    Best is the epoch with the highest robust accuracy on validation images (where the probe finds
    far less, that), then the highest clean accuracy, then the latest; the contest starts anew when
    all is pruned, so that the best of a pruned run is a pruned network. Without validation images
    there is no best.
    """

    def __init__(self) -> None:
        self._best: list[float] | None = None
        self._best_phase = TRAINING
        self._is_validated = False
        self._started = time()
        self._seconds_before = 0.0
        self._has_begun = False

    @property
    def state_key(self) -> str:
        """The callback's name in checkpoints."""
        return "Checkpoints"

    def state_dict(self) -> dict[str, Any]:
        """The best result so far, and the time spent."""
        return {
            "best": self._best,
            "best_phase": self._best_phase,
            "seconds": self._seconds_before + time() - self._started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the contest."""
        self._best = state_dict["best"]
        self._best_phase = state_dict["best_phase"]
        self._seconds_before = state_dict["seconds"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write checkpoints in our own way, unless a plugin of the user's has another."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; what the optimizer remembers has been restored by now."""
        self._started = time()
        checkpoints = Run(run_folder(trainer)).checkpoint().parent
        if not trainer.fast_dev_run and trainer.is_global_zero:  # type: ignore[attr-defined]
            checkpoints.mkdir(parents=True, exist_ok=True)
            self._has_begun = True
        if trainer.ckpt_path:
            for optimizer in trainer.optimizers:
                check_optimizer(optimizer, trainer.ckpt_path)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch's validation."""
        self._is_validated = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has validation accuracies."""
        self._is_validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch's end under every name that it earns."""
        # Stopped within an epoch, as by trainer.max_time: the end of the one before is what counts.
        if trainer.fast_dev_run or not is_whole_epoch(trainer):  # type: ignore[attr-defined]
            return
        module = cast(Classifier, pl_module)
        run = Run(run_folder(trainer))
        names = []
        if self._is_best(trainer, module):
            names.append("best")
        if module.prune_epoch == trainer.current_epoch + 1:
            names.append("before_pruning")
        # "last" at last: a run that is killed here goes on from the epoch before, and saves anew.
        for name in [*names, "last"]:
            if trainer.is_global_zero:
                run.check_is_there()
            trainer.save_checkpoint(run.checkpoint(name), weights_only=False)

    def _is_best(self, trainer: Trainer, module: Classifier) -> bool:
        metrics = trainer.callback_metrics
        if not self._is_validated or "accuracy/validation_clean" not in metrics:
            return False  # metrics of an epoch before may still stand there
        pruned_for = trainer.current_epoch - (module.prune_epoch or 0)
        if module.phase_name != TRAINING and pruned_for < module.pruning_epochs:
            return False  # less is pruned than was asked for
        names = ("accuracy/validation_robust", "accuracy/validation_clean")
        result = [float(metrics[name]) for name in names if name in metrics]
        probe = metrics.get("accuracy/validation_probe")
        if probe is not None and result[0] - probe > MASKED:
            result[0] = float(probe)  # a network that hides its gradients wins nothing by it
        if self._best_phase != module.phase_name:
            self._best = None
        if self._best is not None and result < self._best:
            return False
        self._best, self._best_phase = result, module.phase_name
        return True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the result on all validation images, while the device is at hand."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            cast(Classifier, pl_module).final_validation()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the run as finished, if it is, and lay its final weights down."""
        if not has_finished(trainer):
            return
        run = Run(run_folder(trainer))
        if trainer.is_global_zero and self._has_begun:
            run.check_is_there()
        if not run.checkpoint().is_file():
            return
        module = cast(Classifier, pl_module)
        validated = module.final_validation()
        if not trainer.is_global_zero:
            return
        state = module.network.state_dict()
        # Copies: the file's format has no names that share their values.
        weights = {name: v.detach().cpu().contiguous().clone() for name, v in state.items()}
        write_whole(run.folder / "weights.safetensors", save(weights))
        summary = {
            "epochs": trainer.current_epoch,
            "seed": module.seed,
            "seconds": round(self._seconds_before + time() - self._started, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "validation": {
                name: {"accuracy": correct / images, "correct": correct, "images": images}
                for name, (correct, images) in validated.items()
            },
            **about_machine(module.device),
        }
        write_whole(run.summary, json.dumps(summary, indent=2) + "\n")


def about_machine(device: torch.device) -> dict[str, str]:
    """What a number was measured with: versions and hardware, for the record."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "hardware": hardware,
        "prunerob": __version__,
        "torch": torch.__version__,
        "pytorch_lightning": version("pytorch-lightning"),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The CPU's name and the number of threads in use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {torch.get_num_threads()} threads"
