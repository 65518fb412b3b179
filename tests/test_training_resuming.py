"""Checkpoints that someone made by hand, or something changed, are told from sound ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.training.resuming import check_training_state
from tests.conftest import refused, small

Change = Callable[[dict[str, Any]], object]


def weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def apply(checkpoint: dict[str, Any]) -> None:
        name = "network.conv2.weight"
        checkpoint["state_dict"][name] = change(checkpoint["state_dict"][name])

    return apply


def below_zero(checkpoint: dict[str, Any]) -> None:
    checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] = -1


CHANGES: dict[str, tuple[Change, str]] = {
    "no optimizer": (lambda c: c.update(optimizer_states=[]), "no state of the optimizer"),
    "an empty optimizer": (lambda c: c.update(optimizer_states=[{}]), "no state of the optimizer"),
    "two optimizers": (
        lambda c: c.update(optimizer_states=c["optimizer_states"] * 2),
        "no state of the optimizer",
    ),
    "a mapping of optimizers": (lambda c: c.update(optimizer_states={}), "its optimizer_states"),
    "no list of schedulers": (lambda c: c.update(lr_schedulers=[3]), "its lr_schedulers"),
    "a list of weights": (lambda c: c.update(state_dict=[1, 2]), "its state_dict"),
    "a list of loops": (lambda c: c.update(loops=[]), "its loops"),
    "a list of callbacks": (lambda c: c.update(callbacks=[]), "its callbacks"),
    "no masks": (lambda c: c["callbacks"].pop("Pruning"), "no state of Pruning"),
    "no contest": (lambda c: c["callbacks"].pop("Checkpoints"), "no state of Checkpoints"),
    "an epoch below 0": (lambda c: c.update(epoch=-1), "its epoch is -1"),
    "half an epoch": (lambda c: c.update(epoch=0.5), "its epoch is 0.5"),
    "a true epoch": (lambda c: c.update(epoch=True), "its epoch is True"),
    "a step below 0": (lambda c: c.update(global_step=-7), "its global_step is -7"),
    "progress below 0": (below_zero, "epoch_progress.current.completed below 0"),
    "loops of nothing": (lambda c: c["loops"].update(fit_loop={}), "its loops have done None"),
    "loops of another epoch": (lambda c: c.update(epoch=2), "its loops have done 4 epochs"),
    "no steps": (lambda c: c.update(phase_steps=0), "its phase_steps are 0"),
    "steps of a word": (lambda c: c.update(phase_steps="x"), "its phase_steps are 'x'"),
    "an empty contest": (
        lambda c: c["callbacks"].update(Checkpoints={}),
        "no state of Checkpoints",
    ),
    "sparse weights": (weight(lambda w: w.to_sparse()), "conv2.weight is no plain tensor"),
    "whole weights": (weight(lambda w: (w * 9).long()), "of torch.int64, not torch.float32"),
    "weights of bool": (weight(lambda w: w > 0), "of torch.bool, not torch.float32"),
    "complex weights": (weight(lambda w: w + 1j), "of torch.complex64"),
    "weights by number": (
        lambda c: c["state_dict"].update({3: torch.zeros(1)}),
        "holds no weights",
    ),
    "weights of a list": (lambda c: c["state_dict"].update(a=[1.0]), "holds no weights"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_made_by_hand_is_told_in_a_line(
    name: str, finished: Path, tmp_path: Path
) -> None:
    change, message = CHANGES[name]
    file = finished / "checkpoints" / "last.ckpt"
    check_training_state(MnistCNN((8, 8, 8)), file, 4, ends=True)
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "made.ckpt")
    with pytest.raises(UserError) as error:
        check_training_state(small(), tmp_path / "made.ckpt", 9, ends=False)
    told = str(error.value)
    assert "made.ckpt" in told
    assert message in told
    assert "\n" not in told


@pytest.mark.parametrize("value", [torch.zeros(3), torch.tensor(float("nan")), None])
def test_what_an_optimizer_remembers_must_fit_the_weights(
    value: torch.Tensor | None, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "before_pruning.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    state = checkpoint["optimizer_states"][0]["state"]
    state[1]["square_avg"] = state[1]["square_avg"].fill_(torch.nan) if value is None else value
    torch.save(checkpoint, file)
    # Not at the end of its phase, where a new optimizer begins.
    again = ("fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(file))
    told = refused(
        capsys, *again, "--pruning.epoch", "null", "--model.schedule", "prunerob.schedules.Constant"
    )
    assert "square_avg of the optimizer does not fit the weights, or is not finite" in told
