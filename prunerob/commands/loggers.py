"""Which loggers a command writes to: one with the run's folder, and those that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace

PATH = "pytorch_lightning.loggers"
LOGGER = f"{PATH}.TensorBoardLogger"
WITH_FOLDER = ("TensorBoardLogger", "CSVLogger")
"""Loggers with a folder for each run; the others, as W&B's and MLflow's, keep runs elsewhere."""


def default_logger() -> dict[str, Any]:
    """TensorBoard's, in lightning_logs/version_N."""
    return {"class_path": LOGGER, "init_args": {"save_dir": ".", "name": "lightning_logs"}}


def loggers_of_new_run(configured: Any) -> Any:
    """The loggers of a new run: those of the configuration, the first of them with a folder.

    Args:
        configured: `trainer.logger`.
    """
    loggers = _listed(configured)
    if not loggers or _name(loggers[0]) in WITH_FOLDER or not _name(loggers[0]):
        return configured
    first = next((logger for logger in loggers if _name(logger) in WITH_FOLDER), None)
    others = [logger for logger in loggers if logger is not first]
    return [first or dict_to_namespace(default_logger()), *others]


def loggers_of_run(folder: Path, configured: Any) -> Any:
    """The loggers of a `fit` that goes on with a run, in its folder.

    Args:
        folder: of the run.
        configured: `trainer.logger` of its configuration.
    """
    has_csv = any(_name(logger) == "CSVLogger" for logger in _listed(configured))
    # One that went on in its own folder would remove what lies there.
    csv = {"class_path": f"{PATH}.CSVLogger", "init_args": {"save_dir": str(folder), "name": "csv"}}
    own = [_tensorboard(folder), *([dict_to_namespace(csv)] if has_csv else [])]
    return own + _elsewhere(configured)


def loggers_of_test(folder: Path | None, configured: Any) -> Any:
    """The loggers of a test, which lays its table down in files itself.

    Args:
        folder: of the run; None of weights that belong to none.
        configured: `trainer.logger` of the configuration.
    """
    own = [_tensorboard(folder)] if folder else []
    return own + _elsewhere(configured) or False


def _tensorboard(folder: Path) -> Namespace:
    """TensorBoard's logger, in an existing folder."""
    init_args = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
    made: Namespace = dict_to_namespace({"class_path": LOGGER, "init_args": init_args})
    return made


def _elsewhere(configured: Any) -> list[Namespace]:
    """The loggers that keep runs elsewhere."""
    named = [logger for logger in _listed(configured) if _name(logger)]
    return [logger for logger in named if _name(logger) not in WITH_FOLDER]


def _listed(configured: Any) -> list[Any]:
    if isinstance(configured, list):
        return configured
    return [configured] if isinstance(configured, Namespace) else []


def _name(logger: Any) -> str:
    """The name of a logger's class; empty of what is none."""
    path = logger.get("class_path") if isinstance(logger, Namespace) else None
    return str(path or "").rpartition(".")[2]
