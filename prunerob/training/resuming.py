"""A checkpoint to go on from, checked before Lightning takes it apart."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pytorch_lightning.trainer.connectors import checkpoint_connector
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerob.errors import UserError
from prunerob.runs.weights import read_checkpoint, take_weights, weights_in
from prunerob.training.phases import FINE_TUNING

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
    _check_parts(checkpoint, file)
    take_weights(network, weights_in(checkpoint, file), file)


def _check_parts(checkpoint: Mapping[str, object], file: Path) -> None:
    """See that nothing is missing for which Lightning would take fresh values without a word.

    Raises:
        UserError: something is.
    """
    if (where := _below_zero(checkpoint["loops"])) is not None:
        raise UserError(f"ckpt_path: {file} is damaged: its loops have {where} below 0")
    optimizers, schedulers = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    callbacks = checkpoint["callbacks"]
    assert isinstance(optimizers, list)
    assert isinstance(schedulers, list)
    assert isinstance(callbacks, Mapping)
    if len(optimizers) != 1 or not all(
        isinstance(state, Mapping)
        and isinstance(state.get("state"), Mapping)
        and isinstance(state.get("param_groups"), list)
        for state in optimizers
    ):
        raise UserError(f"ckpt_path: {file} is damaged: it holds no state of the optimizer")
    if len(schedulers) > 1 or not all(isinstance(state, Mapping) for state in schedulers):
        raise UserError(f"ckpt_path: {file} is damaged: its lr_schedulers are {schedulers!r:.40}")
    steps = checkpoint.get("phase_steps", 1)
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"ckpt_path: {file} is damaged: its phase_steps are {steps!r:.40}")
    done = checkpoint["loops"]
    for key in ("fit_loop", "epoch_progress", "current", "processed"):
        done = done.get(key) if isinstance(done, Mapping) else None
    if done != int(str(checkpoint["epoch"])) + 1:
        raise UserError(
            f"ckpt_path: {file} is damaged: its loops have done {done!r:.40} epochs, but it is of "
            f"epoch {checkpoint['epoch']}"
        )
    needed = ["Checkpoints", *(["Pruning"] if checkpoint.get("phase") == FINE_TUNING else [])]
    for name in needed:
        if not (isinstance(callbacks.get(name), Mapping) and callbacks[name]):
            raise UserError(f"ckpt_path: {file} is damaged: it holds no state of {name}")


def _below_zero(value: object, name: str = "") -> str | None:
    """The name of a number below 0 in plain values; None if there is none."""
    if isinstance(value, Mapping):
        found = (_below_zero(part, f"{name}.{key}".lstrip(".")) for key, part in value.items())
        return next((where for where in found if where is not None), None)
    return name if isinstance(value, int | float) and value < 0 else None


def check_optimizer(optimizer: Optimizer, file: Path | str) -> None:
    """See that what an optimizer restored fits the weights, before it takes a step.

    Args:
        optimizer: restored.
        file: the checkpoint, for errors.

    Raises:
        UserError: it does not.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            fits = value.layout == torch.strided
            if name in LIKE_WEIGHTS:
                fits = fits and value.is_floating_point() and value.shape == parameter.shape
            if not (fits and bool(value.isfinite().all())):
                raise UserError(
                    f"ckpt_path: {file} is damaged: {name} of the optimizer does not fit the "
                    "weights, or is not finite"
                )


LIKE_WEIGHTS = (
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    *("square_avg", "grad_avg"),
)
"""What torch's optimizers remember in the shape of the weights."""


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
