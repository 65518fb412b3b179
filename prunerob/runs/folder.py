"""Runs: the folders that `fit` writes, and the weights in them.

A run's folder holds

- config.yaml, the run's record: it repeats the run;
- checkpoints/last.ckpt, after the last finished epoch; before_pruning.ckpt, after the last epoch
  of training; best.ckpt, the best on validation images;
- weights.safetensors, the final weights alone;
- pruning.json, what pruning did, and summary.json, written when the run has finished;
- robustness.json, .csv and .md, what a test of last.ckpt found, and robustness_images.csv; those of
  other checkpoints have their names, as robustness_before_pruning.json has; predictions.csv alike;
- TensorBoard's event files;
- log.txt, of a run of a sweep: what its commands printed;
- .lock and .holder, while a `fit` is at it.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunerob.errors import UserError

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

LOGS = Path("lightning_logs")
CHECKPOINTS = ("last", "best", "before_pruning")


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def config(self) -> Path:
        """The run's configuration."""
        return self.folder / "config.yaml"

    @property
    def summary(self) -> Path:
        """Written at the end of a run that has finished."""
        return self.folder / "summary.json"

    def checkpoint(self, name: str = "last") -> Path:
        """One of the run's checkpoints: "last", "best" or "before_pruning"."""
        return self.folder / "checkpoints" / f"{name}.ckpt"

    def check_is_there(self) -> None:
        """See that the folder of a run that is being written is still there.

        Raises:
            UserError: someone has removed it.
        """
        if not self.checkpoint().parent.is_dir():
            raise UserError(f"{self.folder} was removed or moved while its run was written")


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run that a Trainer writes; all ranks must ask for it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def newest_finished_run(logs: Path = LOGS) -> Run:
    """The run that finished last.

    Raises:
        UserError: there is none.
    """
    summaries = [s for s in logs.rglob("summary.json") if Run(s.parent).checkpoint().is_file()]
    if not summaries:
        raise UserError(
            f"no finished run in {logs}: train one with `prunerob fit --config FILE`, or name "
            "weights with --ckpt_path"
        )
    return Run(max(summaries, key=lambda summary: summary.stat().st_mtime).parent)


def is_whole_epoch(trainer: Trainer) -> bool:
    """Whether the epoch of training that ended came to its last batch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def has_finished(trainer: Trainer) -> bool:
    """Whether `fit` came to the end of its last epoch; never of a trial by fast_dev_run."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return False
    return trainer.current_epoch >= (trainer.max_epochs or 0) and is_whole_epoch(trainer)


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file that is there in full or not at all, whenever a kill or a power cut comes.

    It is written beside its place, so that a full disk leaves what was there.

    Args:
        file: to write.
        content: text, written as UTF-8, or bytes.

    Raises:
        OSError: it cannot be written; the error names the folder, or what is in the file's place.
    """
    unfinished = file.with_name(f"{file.name}.unfinished")
    try:
        with unfinished.open("wb") as opened:
            opened.write(content if isinstance(content, bytes) else _encoded(content))
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            place = file if error.errno == errno.EISDIR else file.parent
            raise OSError(error.errno, error.strerror, str(place)) from None
        raise


def _encoded(text: str) -> bytes:
    """As UTF-8; a byte of a file's name that is none is written by its number."""
    return text.encode(errors="backslashreplace")


def check_writable(folder: Path) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None
