"""Weights: found by what a command line says, read without running code, loaded into a network."""

from __future__ import annotations

import atexit
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.runs.folder import CHECKPOINTS, Run, newest_finished_run


@dataclass(frozen=True)
class Weights:
    """Trained weights: a file, and where things about it belong.

    Args:
        file: a checkpoint of `fit` (.ckpt) or bare weights (.safetensors).
        run: the run that owns the file, if any.
        config: the configuration of the network, if one lies with the file.
        origin: how the file was found, for the user; the URL of one that was fetched.
        results: where results go if not to the run, or beside the file.
    """

    file: Path
    run: Run | None
    config: Path | None
    origin: str
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


def _of_run(run: Run, name: str, origin: str) -> Weights:
    file = run.checkpoint(name)
    if not file.is_file():
        kept = ", ".join(c for c in CHECKPOINTS if run.checkpoint(c).is_file())
        why = f"its checkpoints are {kept}" if kept else "no epoch of it has finished"
        why = why if run.config.is_file() else "it is no run of prunerob fit"
        raise UserError(f"ckpt_path: {run.folder} has no {file.name}: {why}")
    return Weights(file, run, run.config if run.config.is_file() else None, origin)


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"ckpt_path: {file} is not a readable checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"ckpt_path: {file} is not a checkpoint of prunerob fit")
    return checkpoint


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Read a network's weights, by parameter name.

    Args:
        file: a checkpoint of `fit`, or a .safetensors file.

    Raises:
        UserError: it cannot be read, or holds no weights.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise UserError(f"ckpt_path: {file} is damaged ({error})") from None
    state = read_checkpoint(file).get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"ckpt_path: {file} is not a checkpoint of prunerob fit (no weights in it)")
    return {name.removeprefix("network."): value for name, value in state.items()}


def load_weights(network: nn.Module, file: Path) -> None:
    """Load weights into a network of the same architecture.

    Raises:
        UserError: the file cannot be read, is for another network, or holds values that are not
            finite where the network's own are.
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
    for name, value in new.items():
        if bool(old[name].isfinite().all()) and not bool(value.isfinite().all()):
            raise UserError(
                f"ckpt_path: {file} is no trained network: {name} holds values that are not finite "
                "(NaN or infinite)"
            )
    network.load_state_dict(new)
