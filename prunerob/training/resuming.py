"""A checkpoint to go on from, checked before Lightning takes it apart."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.trainer.connectors import checkpoint_connector
from torch import nn

from prunerob.errors import UserError
from prunerob.runs.weights import load_weights, read_checkpoint

PARTS = {
    "state_dict": Mapping,
    "loops": Mapping,
    "callbacks": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
}
"""What a checkpoint to go on from holds, and of which type."""


def check_training_state(network: nn.Module, file: Path, epochs: int | None, *, ends: bool) -> None:
    """See that a checkpoint fits a run, and load its weights.

    Args:
        network: of the run.
        file: the checkpoint.
        epochs: of the run.
        ends: the run may be brought to its end though no epoch is left.

    Raises:
        UserError: it is damaged, holds weights alone, or leaves nothing to train.
    """
    if file.suffix == ".safetensors":
        raise UserError(f"ckpt_path: {file} holds weights alone, no training to go on with")
    checkpoint = read_checkpoint(file)
    if "loops" not in checkpoint or "epoch" not in checkpoint:
        raise UserError(f"ckpt_path: {file} holds no training state to go on from")
    for key, kind in PARTS.items():
        value = checkpoint.get(key)
        sound = isinstance(value, kind) and not isinstance(value, bool)
        if not sound or (isinstance(value, int) and value < 0):
            raise UserError(f"ckpt_path: {file} is damaged: its {key} is {value!r:.40}")
    epoch = checkpoint["epoch"]
    assert isinstance(epoch, int)
    if epochs is not None and 0 <= epochs <= epoch + 1 and not ends:
        raise UserError(
            f"ckpt_path: {file} has finished {epoch + 1} epochs, and trainer.max_epochs is "
            f"{epochs}: nothing is left to train"
        )
    load_weights(network, file)


@contextmanager
def restoring(file: str | None) -> Iterator[None]:
    """Name the checkpoint where Lightning cannot restore what it holds.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # what is wrong in a checkpoint can fail in any way
        frames = traceback.walk_tb(error.__traceback__)
        at = [f.f_code.co_name for f, _ in frames if f.f_code.co_filename == RESTORES]
        if file is None or not any(name.startswith(("restore", "_restore")) for name in at):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"ckpt_path: {file} is damaged: it cannot be restored ({reason})") from None


RESTORES = checkpoint_connector.__file__
