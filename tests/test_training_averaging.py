"""Averaged weights, against a plain loop, through pruning, checkpoints and on two ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from safetensors.torch import load_file
from torch import Tensor

from prunerob.training.averaging import Averaging
from tests.conftest import (
    TINY,
    SmallCNN,
    assert_equal,
    masks,
    newest_run,
    on_one_thread,
    refused,
    weights,
)

AVERAGED = ["--model.averaging", "0.9", "--data.validation_size", "40"]


def test_the_average_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    network = SmallCNN(1, 8)
    averaging = Averaging(0.8)
    expected: dict[str, Tensor] = {}
    for step in range(5):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.copy_(torch.randn(value.shape) if value.is_floating_point() else step)
        averaging.update(network)
        for name, value in network.state_dict().items():
            if step == 0 or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = 0.8 * expected[name] + 0.2 * value
    assert averaging.average is not None
    for name, value in averaging.average.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    before = copy.deepcopy(network.state_dict())
    with averaging.swapped(network):
        assert_equal(dict(network.state_dict()), averaging.average | network.state_dict())
        torch.testing.assert_close(network.conv1.weight.detach(), expected["conv1.weight"])
    assert_equal(dict(network.state_dict()), before)
    averaging.take(network)
    torch.testing.assert_close(network.conv1.weight.detach(), expected["conv1.weight"])
    assert averaging.average is None


def test_what_is_endless_stays_so() -> None:
    network = SmallCNN(1, 8)
    network.register_buffer("bound", torch.tensor([float("inf"), 1.0]))
    averaging = Averaging(0.5)
    for _ in range(3):
        averaging.update(network)
    assert averaging.average is not None
    assert averaging.average["bound"].tolist() == [float("inf"), 1.0]


def test_without_a_decay_nothing_is_kept() -> None:
    averaging = Averaging(None)
    averaging.update(SmallCNN(1, 8))
    assert averaging.average is None


class Loop(Callback):
    """Averages by itself, in plain torch, and looks at what is validated."""

    average: dict[str, Tensor] = {}  # noqa: RUF012  (one of a class, as the command makes it)
    validated: list[dict[str, Tensor]] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = pl_module.network.state_dict()
        begins = trainer.current_epoch in (0, 2) and trainer.fit_loop.epoch_loop.batch_idx == 0
        for name, value in state.items():
            old = value if begins else Loop.average[name]
            Loop.average[name] = 0.9 * old + 0.1 * value

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.averaging.swap(pl_module.network)
        state = pl_module.network.state_dict()
        Loop.validated.append({name: value.clone() for name, value in state.items()})
        pl_module.averaging.swap(pl_module.network)


def test_the_average_is_validated_saved_and_pruned() -> None:
    Loop.average, Loop.validated = {}, []
    on_one_thread("fit", "--config", TINY, *AVERAGED, "--trainer.callbacks", f"{__name__}.Loop")
    run = newest_run()
    final = load_file(run / "weights.safetensors")
    for name, value in Loop.average.items():
        torch.testing.assert_close(final[name], value, msg=name)
    saved = {name.removeprefix("network."): v for name, v in weights(run).items()}
    assert_equal(saved, final)
    assert_equal(Loop.validated[-1], final)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    current = state["averaging"]
    assert any(not torch.equal(current[f"network.{name}"], v) for name, v in final.items())
    for name, mask in masks(run).items():
        assert (final[name][~mask] == 0).all()
        assert (current[f"network.{name}"][~mask] == 0).all()
    dense = {n.removeprefix("network."): v for n, v in weights(run, "before_pruning").items()}
    assert_equal(Loop.validated[1], dense)


class Stop(Callback):
    """Stops training as a kill would, within an epoch."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 3 and batch_idx == 2:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("schedule", ["OneShot", "Gradual"])
def test_a_run_goes_on_to_the_same_average(schedule: str, tmp_path: Path) -> None:
    settings = ["--config", TINY, *AVERAGED]
    if schedule == "Gradual":
        chosen = ["--pruning.schedule", "prunerob.pruning.Gradual", "--pruning.schedule.epochs"]
        settings += [*chosen, "1", "--pruning.schedule.every", "2"]
    on_one_thread("fit", *settings)
    whole = newest_run()
    for name, mask in masks(whole).items():
        assert (load_file(whole / "weights.safetensors")[name][~mask] == 0).all()
    with pytest.raises(RuntimeError, match="stopped"):
        on_one_thread("fit", *settings, "--trainer.callbacks", f"{__name__}.Stop")
    stopped = newest_run()
    assert stopped != whole
    on_one_thread("fit", *settings, "--ckpt_path", str(stopped / "checkpoints" / "last.ckpt"))
    again = newest_run()
    assert_equal(load_file(again / "weights.safetensors"), load_file(whole / "weights.safetensors"))
    branch = ["--ckpt_path", str(whole / "checkpoints" / "before_pruning.ckpt")]
    on_one_thread("fit", *settings, *branch)
    assert_equal(
        load_file(newest_run() / "weights.safetensors"), load_file(whole / "weights.safetensors")
    )


def test_what_cannot_be_averaged_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "fit", "--config", TINY, "--model.averaging", "1")
    assert "model.averaging: 1.0 lies outside [0, 1)" in told
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.narrow", "true"]
    told = refused(capsys, "fit", "--config", TINY, *filters, *AVERAGED)
    assert "pruning.narrow: does without the channels that model.averaging averages" in told
