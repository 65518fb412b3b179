"""What a test has measured so far, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from prunerob import __version__
from prunerob.runs.folder import write_whole
from prunerob.runs.lock import locked
from prunerob.runs.ranks import rank, ranks
from prunerob.runs.weights import Weights

ABOUT = "about.json"
CHECKSUM = "sha256"


class Journal:
    """Entries of tensors by name, in a folder of one test's own; a file for each entry.

    Args:
        folder: to write to; what is written there is removed when the test is over. None keeps
            nothing.
        about: what the test is of, in plain values; entries of another are dropped, as are those
            that do not say so because they are damaged.
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
        ).encode()
        file = self.folder / ABOUT
        if not _holds(file, text):
            if self.folder.exists():
                rank_zero_info(
                    f"What an earlier test left in {folder} is of other weights or settings, or "
                    "damaged: beginning again"
                )
            _remove(self.folder)
            self.folder.mkdir(parents=True)
            write_whole(file, text)
        self.entries = len(list(self.folder.glob("*.safetensors")))

    def get(self, name: str) -> dict[str, Tensor] | None:
        """An entry; None if there is none, or it is damaged, which a line says."""
        if self.folder is None or not (file := self._file(name)).exists():
            return None
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as opened:
            entry = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            if (opened.metadata() or {}).get(CHECKSUM) == _checksum(name, entry):
                return entry
        rank_zero_info(f"{file} is damaged: attacking its images again")
        return None

    def put(self, name: str, entry: Mapping[str, Tensor]) -> None:
        """Write an entry, whole or not at all."""
        if self.folder is None:
            return
        file = self._file(name)
        if file.is_dir():
            _remove(file)
        kept = {key: t.detach().cpu().contiguous().clone() for key, t in entry.items()}
        write_whole(file, save(kept, {CHECKSUM: _checksum(name, kept)}))

    def remove(self) -> None:
        """Remove all, those of other ranks included: the test is over."""
        for folder in self.whole.glob("rank * of *") if self.whole else ():
            _remove(folder)
        if self.whole is not None:
            with suppress(OSError):  # it is held, or not empty
                self.whole.rmdir()

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"


def _holds(file: Path, content: bytes) -> bool:
    """Whether a file has this content; one of another size, however large, is not read."""
    try:
        return file.stat().st_size == len(content) and file.read_bytes() == content
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _checksum(name: str, entry: Mapping[str, Tensor]) -> str:
    """Of an entry's name and tensors: safetensors has none of its own."""
    digest = hashlib.sha256(name.encode())
    for key, value in sorted(entry.items()):
        digest.update(f"\n{key} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def open_journal(
    weights: Weights, network: nn.Module, about: Mapping[str, Any]
) -> Iterator[Journal]:
    """The journal of a test, beside the weights that it is of; one test at a time holds it.

    Args:
        weights: what is tested.
        network: with these weights.
        about: settings of the test, in plain values.

    Raises:
        UserError: another test of these weights is at it.
    """
    result = weights.result("robustness")
    folder = result.with_name(f"{result.name}.unfinished")
    with locked(folder) if _is_first() else nullcontext():
        journal = Journal(folder, {"weights": fingerprint(network), **about})
        if journal.entries:
            rank_zero_info("An earlier test of this was not finished: going on with what it found")
        yield journal


def _is_first() -> bool:
    """Whether this is rank 0, which is known before the ranks have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


def fingerprint(network: nn.Module) -> str:
    """Of a network's weights and buffers, to the bit."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
