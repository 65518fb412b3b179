"""What a test has measured so far, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunerob import __version__
from prunerob.runs.folder import write_whole
from prunerob.runs.ranks import rank, ranks
from prunerob.runs.weights import Weights

ABOUT = "about.json"


class Journal:
    """Entries of tensors by name, in a folder of one test's own; a file for each entry.

    Args:
        folder: to write to; removed when the test is over. None keeps nothing.
        about: what the test is of, in plain values; entries of another are dropped.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self.whole = folder
        self.folder = folder / f"rank {rank()} of {ranks()}" if folder else None
        self.entries = 0
        """How many there are of an earlier try."""
        if self.folder is None:
            return
        text = json.dumps(
            {"prunerob": __version__, "torch": torch.__version__, **about}, sort_keys=True
        )
        file = self.folder / ABOUT
        if not file.is_file() or file.read_text("utf-8") != text:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_whole(file, text)
        self.entries = len(list(self.folder.glob("*.safetensors")))

    def get(self, name: str) -> dict[str, Tensor] | None:
        """An entry; None if there is none, or it is damaged."""
        if self.folder is None or not self._file(name).is_file():
            return None
        try:
            return load_file(self._file(name))
        except (SafetensorError, OSError):
            return None

    def put(self, name: str, entry: Mapping[str, Tensor]) -> None:
        """Write an entry, whole or not at all."""
        if self.folder is None:
            return
        file = self._file(name)
        unfinished = file.with_suffix(".unfinished")
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in entry.items()}, unfinished)
        unfinished.replace(file)

    def remove(self) -> None:
        """Remove all, those of other ranks included: the test is over."""
        if self.whole is not None:
            shutil.rmtree(self.whole, ignore_errors=True)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"


def open_journal(weights: Weights, network: nn.Module, about: Mapping[str, Any]) -> Journal:
    """The journal of a test, beside the weights that it is of.

    Args:
        weights: what is tested.
        network: with these weights.
        about: settings of the test, in plain values.
    """
    folder = weights.result("robustness").with_suffix(".unfinished")
    journal = Journal(folder, {"weights": fingerprint(network), **about})
    if journal.entries:
        rank_zero_info("An earlier test of this was not finished: going on with what it found")
    return journal


def fingerprint(network: nn.Module) -> str:
    """Of a network's weights and buffers, to the bit."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
