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
- log.txt, of a run of a sweep: what its commands printed.
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from pytorch_lightning import Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.runs.packed import unpack

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


@dataclass(frozen=True)
class Weights:
    """Trained weights: a file, and where things about it belong.

    Args:
        file: a checkpoint of `fit` (.ckpt) or bare weights (.safetensors).
        run: the run that owns the file, if any.
        config: the configuration of the network, if one lies with the file.
        found: how the file was found, for the user; the URL of one that was fetched.
        results: where results go if not to the run, or beside the file.
    """

    file: Path
    run: Run | None
    config: Path | None
    found: str
    results: Path | None = None

    @property
    def folder(self) -> Path:
        """Where results about these weights go."""
        return self.run.folder if self.run else self.results or self.file.parent

    def result(self, name: str) -> Path:
        """Where one result goes, without its ending: `robustness`, or `robustness_best`."""
        if self.run is None:
            return self.folder / f"{self.file.stem}_{name}"
        plain = self.file in (self.run.checkpoint(), self.run.folder / "weights.safetensors")
        return self.folder / (name if plain else f"{name}_{self.file.stem}")


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run that a Trainer writes."""
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


def find_weights(place: str | None, config: str | None = None) -> Weights:
    """Find the weights that a command line means.

    Args:
        place: a checkpoint or weights file, a run's folder, a URL, or the name of a checkpoint
            ("last", "best", "before_pruning") of the newest finished run; None is its "last".
        config: the configuration that was named with it; one in a run's folder stands for the run.

    Raises:
        UserError: nothing is there.
    """
    if config and (place is None or place in CHECKPOINTS):
        run = Run(Path(config).parent)
        if Path(config) != run.config or not (run.folder / "checkpoints").is_dir():
            problem = f"{place}: of which run?" if place else "missing, and untrained weights are"
            problem += "" if place else " never tested;"
            raise UserError(
                f"--ckpt_path {problem} {config} belongs to no run; name a checkpoint, a run's "
                "folder or a .safetensors file"
            )
        return _of_run(run, place or "last", "the run of that configuration")
    if place is None or place in CHECKPOINTS:
        return _of_run(newest_finished_run(), place or "last", "the newest finished run")
    if place.startswith(("http://", "https://")):
        return Weights(download(place), None, None, place, Path.cwd())

    path = Path(place)
    if path.is_dir():
        return _of_run(Run(path), "last", "")
    if not path.is_file():
        raise UserError(f"ckpt_path: there is no file or folder {place}")
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if Run(folder).config.is_file() and (folder / "checkpoints").is_dir():
        return Weights(path, Run(folder), Run(folder).config, "")
    configs = (path.with_suffix(".yaml"), path.parent / "config.yaml")
    return Weights(path, None, next((c for c in configs if c.is_file()), None), "")


def _of_run(run: Run, name: str, found: str) -> Weights:
    file = run.checkpoint(name)
    if not file.is_file():
        kept = ", ".join(c for c in CHECKPOINTS if run.checkpoint(c).is_file())
        why = f"its checkpoints are {kept}" if kept else "no epoch of it has finished"
        why = why if run.config.is_file() else "it is no run of prunerob fit"
        raise UserError(f"ckpt_path: {run.folder} has no {file.name}: {why}")
    return Weights(file, run, run.config if run.config.is_file() else None, found)


def download(url: str) -> Path:
    """Fetch a file into a temporary folder, keeping its name.

    torch.hub's own cache goes by file names, so that every last.ckpt would be the first one.
    """
    folder = tempfile.mkdtemp(prefix="prunerob-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / (PurePosixPath(urlsplit(url).path).name or "weights")
    try:
        torch.hub.download_url_to_file(url, str(target), progress=False)
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise UserError(f"ckpt_path: {url} cannot be fetched ({error})") from None
    return target


def read_checkpoint(file: Path) -> dict[str, object]:
    """Read a checkpoint; nothing in it can run code (`weights_only=True`).

    Raises:
        UserError: it is truncated, or no checkpoint, or holds more than weights and plain values.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"ckpt_path: {file} was refused: it is damaged, or holds code, not weights alone"
        ) from None
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"ckpt_path: {file} is not a readable checkpoint ({told})") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"ckpt_path: {file} is not a checkpoint of prunerob fit")
    return checkpoint


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Read a network's weights, by parameter name.

    Args:
        file: a checkpoint of `fit`, or a .safetensors file, packed or not (`prunerob.runs.packed`).

    Raises:
        UserError: it cannot be read, or holds no weights.
    """
    if file.suffix == ".safetensors":
        try:
            return unpack(load_file(file))
        except SafetensorError as error:
            raise UserError(f"ckpt_path: {file} is damaged ({error})") from None
    state = read_checkpoint(file).get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"ckpt_path: {file} is not a checkpoint of prunerob fit (no weights in it)")
    return {name.removeprefix("network."): value for name, value in state.items()}


def load_weights(network: nn.Module, file: Path) -> None:
    """Load weights into a network of the same architecture.

    Raises:
        UserError: the file cannot be read, or is for another network.
    """
    new, old = read_weights(file), network.state_dict()
    for name in sorted(new.keys() | old.keys()):
        if name not in new or name not in old:
            problem = f"{name} is only in the {'network' if name in old else 'file'}"
        elif new[name].shape != old[name].shape:
            problem = f"{name} is {tuple(new[name].shape)}, not {tuple(old[name].shape)}"
        else:
            continue
        raise UserError(f"ckpt_path: {file} is for another network: {problem}")
    network.load_state_dict(new)


NOT_TRAINING = (
    "ckpt_path",
    "data.init_args.eval_batch_size",
    "data.init_args.test_size",
    "model.attacks",
    "model.scrutinized_images",
    "model.worst_case_attacks",
    "seed_everything",
    "trainer.accelerator",
    "trainer.callbacks",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.enable",
    "trainer.logger",
)
"""Beginnings of keys that say where a run goes and how it is tested, not what is trained."""


def differences(old: object, new: object, name: str = "") -> list[tuple[str, object, object]]:
    """Where two configurations differ in keys that both have.

    Args:
        old: a configuration in plain values.
        new: another.
        name: of the key that they lie under.

    Returns:
        keys, with the value of either; sorted by key.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for key in sorted(old.keys() & new.keys())
            for found in differences(old[key], new[key], f"{name}.{key}" if name else str(key))
        ]
    return [] if old == new else [(name, old, new)]


def is_whole_epoch(trainer: Trainer) -> bool:
    """Whether the epoch of training that ended came to its last batch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def has_finished(trainer: Trainer) -> bool:
    """Whether `fit` came to the end of its last epoch; never of a trial by fast_dev_run."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return False
    return trainer.current_epoch >= (trainer.max_epochs or 0) and is_whole_epoch(trainer)


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there in full or not at all, whenever a kill or a power cut comes."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    unfinished.replace(file)
