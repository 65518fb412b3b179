"""Weights: found by what a command line says, read without running code, loaded into a network."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.runs.archives import check_archive
from prunerob.runs.fetching import download
from prunerob.runs.folder import CHECKPOINTS, Run, newest_finished_run
from prunerob.runs.plain import read_yaml


@dataclass(frozen=True)
class Weights:
    """Trained weights: a file, and where things about it belong.

    Args:
        file: a checkpoint of `fit` (.ckpt), or bare weights (.safetensors, .pt, .pth).
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
    if place == "":
        raise UserError("ckpt_path: is empty; name a run's folder or a checkpoint")
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
        if exported := sorted(f.name for f in run.folder.glob("model.*") if f.suffix != ".json"):
            told = f"{run.folder} is an export: name one of its files, {', '.join(exported)}"
            raise UserError(f"ckpt_path: {told}")
        kept = ", ".join(c for c in CHECKPOINTS if run.checkpoint(c).is_file())
        why = f"its checkpoints are {kept}" if kept else "no epoch of it has finished"
        why = why if run.config.is_file() else "it is no run of prunerob fit"
        raise UserError(f"ckpt_path: {run.folder} has no {file.name}: {why}")
    return Weights(file, run, run.config if run.config.is_file() else None, origin)


def read_checkpoint(file: Path, *, key: str = "ckpt_path") -> dict[str, object]:
    """Read a checkpoint; nothing in it can run code (`weights_only=True`).

    Args:
        file: to read.
        key: the setting that named it, for errors.

    Raises:
        UserError: it is truncated or damaged, or no checkpoint, or holds more than weights and
            plain values.
    """
    check_archive(file)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{key}: {file} was refused: it is damaged, or holds code, not weights alone; save a "
            "network's state_dict() or safetensors"
        ) from None
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{key}: {file} is not a readable checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise UserError(f"{key}: {file} holds a {kind}, not a network's weights by name")
    return checkpoint


STATE_DICTS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Under which names others keep a network's weights in a file."""


def read_weights(file: Path, *, key: str = "ckpt_path") -> Mapping[str, Tensor]:
    """Read weights, by name as they stand in the file.

    Args:
        file: .safetensors; or a checkpoint of `fit`, or what `torch.save` wrote of a state dict,
            by itself or under one of `STATE_DICTS`.
        key: the setting that named it, for errors.

    Raises:
        UserError: it cannot be read, or holds no weights.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise UserError(f"{key}: {file} is no regular file")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise UserError(f"{key}: {file} is damaged ({error})") from None
    return weights_in(read_checkpoint(file, key=key), file, key=key)


def weights_in(
    saved: Mapping[str, object], file: Path, *, key: str = "ckpt_path"
) -> Mapping[str, Tensor]:
    """The weights in what was saved, by name as they stand there.

    Args:
        saved: as read.
        file: that it was read from, for errors.
        key: the setting that named it, for errors.

    Raises:
        UserError: there are none.
    """
    for state in (saved, *(saved.get(name) for name in STATE_DICTS)):
        items = state.items() if isinstance(state, Mapping) else ()
        if items and all(isinstance(n, str) and isinstance(value, Tensor) for n, value in items):
            return cast(Mapping[str, Tensor], state)
    raise UserError(
        f"{key}: {file} holds no weights, neither plainly nor under {', '.join(STATE_DICTS[:3])}; "
        f"there are {', '.join(map(str, list(saved)[:5])) or 'no entries'}"
    )


def network_before_pruning(network: nn.Module, weights: Weights) -> nn.Module | None:
    """The network that a run's final weights were pruned from, if it is there.

    Args:
        network: of the same architecture.
        weights: of the run: its own checkpoint from before pruning counts, or else what the run
            went on from.

    Raises:
        UserError: it is there, and damaged.
    """
    run = weights.run
    if run is None or weights.result("robustness").name != "robustness":
        return None
    record = read_yaml(run.config) if run.config.is_file() else None
    pruning = record.get("pruning") if isinstance(record, dict) else None
    if not isinstance(pruning, dict) or not pruning.get("amount") or pruning.get("masks_from"):
        return None
    own, other = run.checkpoint("before_pruning"), cast(dict[str, object], record).get("ckpt_path")
    found = own if own.is_file() or not isinstance(other, str) else Path(other)
    if not found.is_file():
        return None
    before = copy.deepcopy(network)
    load_weights(before, found)
    return before


def _without_prefix(found: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Weights by a network's own names, without what others put in front of them.

    Such as `module.` of DataParallel, or `network.` and `model.` of a LightningModule; what else
    such a module holds, which is in front of nothing, is left out.
    """
    prefixes: Counter[str] = Counter()
    for name in found:
        parts = name.split(".")
        for end in range(len(parts)):
            if ".".join(parts[end:]) in wanted:
                prefixes["".join(f"{part}." for part in parts[:end])] += 1
    prefix = max(prefixes, key=lambda p: (prefixes[p], -len(p)), default="")
    named = {n.removeprefix(prefix): value for n, value in found.items() if n.startswith(prefix)}
    return named if prefix else dict(found)


def load_weights(network: nn.Module, file: Path, *, key: str = "ckpt_path") -> None:
    """Load weights into a network of the same architecture.

    Args:
        network: takes them.
        file: as of `read_weights`.
        key: the setting that named it, for errors.

    Raises:
        UserError: the file cannot be read, or its weights are not for the network.
    """
    take_weights(network, read_weights(file, key=key), file, key=key)


def take_weights(
    network: nn.Module, new: Mapping[str, Tensor], file: Path, *, key: str = "ckpt_path"
) -> None:
    """Load weights that were read.

    Args:
        network: of the same architecture.
        new: by parameter name, or with a prefix before it.
        file: that they were read from, for errors.
        key: the setting that named it, for errors.

    Raises:
        UserError: they are for another network, are no plain tensors of its types, or are not
            finite where the network's own are.
    """
    old = network.state_dict()
    new = _without_prefix(new, old.keys())
    for name in sorted(new.keys() | old.keys()):
        if name not in new or name not in old:
            problem = f"{name} is only in the {'network' if name in old else 'file'}"
        elif new[name].shape != old[name].shape:
            problem = f"{name} is {tuple(new[name].shape)}, not {tuple(old[name].shape)}"
        else:
            continue
        raise UserError(f"{key}: {file} is for another network: {problem}")
    for name, value in new.items():
        if unlike := _unlike(value, old[name]):
            raise UserError(f"{key}: {file} is damaged: {name} is {unlike}")
        if bool(old[name].isfinite().all()) and not bool(value.isfinite().all()):
            raise UserError(
                f"{key}: {file} is no trained network: {name} holds values that are not finite "
                "(NaN or infinite)"
            )
    network.load_state_dict(new)


def _unlike(new: Tensor, old: Tensor) -> str:
    """What a tensor is that cannot take another's place; nothing if it can."""
    if new.layout != torch.strided or new.is_quantized or new.is_meta or new.is_nested:
        return "no plain tensor"
    kinds = [(t.is_floating_point(), t.is_complex(), t.dtype == torch.bool) for t in (new, old)]
    return "" if kinds[0] == kinds[1] else f"of {new.dtype}, not {old.dtype}"
