"""Schedules of pruning."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from prunerob.cli import main
from prunerob.errors import UserError
from prunerob.pruning import Gradual, Iterative, OneShot, Pruning
from prunerob.pruning.cut import Cut
from tests.conftest import (
    FILTERS,
    NARROW,
    TINY,
    Interrupt,
    assert_equal,
    masks,
    newest_run,
    refused,
    weights,
)


def test_gradual_follows_its_formula_at_every_step() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n Dt))^3, with t0 = 0."""
    shares = Gradual(epochs=4).shares(0.9, 10)
    expected = {0: 0.0, 10: 0.9 * (1 - 0.75**3), 20: 0.9 * 7 / 8, 30: 0.9 * (1 - 1 / 64), 40: 0.9}
    assert dict(shares) == pytest.approx(expected, abs=1e-12)
    assert shares[40] == 0.9, "exactly"
    shares = Gradual(epochs=2, initial=0.5, every=7).shares(0.9, 10)
    assert list(shares) == [0, 7, 14, 20], "the last at the start of an epoch"
    for t, share in shares.items():
        assert share == pytest.approx(0.9 + (0.5 - 0.9) * ((20 - t) / 20) ** 3)


@given(
    st.integers(1, 30), st.integers(1, 50), st.floats(0, 0.99), st.floats(0, 0.99), st.integers(1)
)
def test_gradual_grows_from_its_initial_share_to_the_amount(
    epochs: int, steps: int, initial: float, amount: float, every: int
) -> None:
    for schedule in (Gradual(epochs=epochs, initial=initial, every=every), Gradual(epochs=epochs)):
        shares = schedule.shares(amount, steps)
        values = list(shares.values())
        assert values == sorted(values) or max(values) - min(values) < 1e-12
        assert min(shares) == 0
        assert shares[max(shares)] == amount
        assert max(shares) == schedule.lasts(amount) * steps


@pytest.mark.parametrize("amount", [0.5, 0.9, 0.98])
def test_a_number_of_rounds_takes_the_same_share_of_what_is_left(amount: float) -> None:
    schedule = Iterative(epochs=5, rounds=3)
    assert schedule.count_rounds(amount) == 3
    assert schedule.lasts(amount) == 10
    left = [1.0] + [1 - share for share in schedule.shares(amount, 7).values()]
    assert left[-1] == pytest.approx(1 - amount)
    kept = [after / before for before, after in itertools.pairwise(left)]
    assert kept == pytest.approx([kept[0]] * 3)
    assert list(schedule.shares(amount, 7)) == [0, 35, 70]


def test_iterative_takes_a_fifth_of_what_is_left_each_round() -> None:
    schedule = Iterative(epochs=3)
    assert dict(schedule.shares(0.5, 10)) == pytest.approx(
        {0: 0.2, 30: 0.36, 60: 0.488, 90: 0.5}, abs=1e-12
    )
    assert schedule.shares(0.5, 10)[90] == 0.5, "exactly"
    assert schedule.lasts(0.5) == 9
    assert dict(schedule.shares(0.36, 10)) == pytest.approx({0: 0.2, 30: 0.36}), "two, not three"
    assert schedule.count_rounds(0.1) == schedule.count_rounds(0.2) == 1
    with pytest.raises(UserError, match=r"epoch 2, which is not before pruning\.epoch 2"):
        Pruning(epoch=2, schedule=Iterative(epochs=1, rewind="weights", to=2))
    with pytest.raises(ValueError, match="rounds of Iterative: 0"):
        Iterative(epochs=1, rounds=0)
    with pytest.raises(ValueError, match="share of Iterative: 1"):
        Iterative(epochs=1, share=1.0)


def test_a_cut_on_its_way_has_a_part_of_each_layer_s_amount() -> None:
    cut = Cut(amount=0.8, budget={"a": 0.4})
    assert cut.at(0.8) is cut
    assert cut.at(0.2).budget == pytest.approx({"a": 0.1})
    assert cut.at(0.0).amount == 0


def test_what_a_schedule_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"initial 0\.5, above pruning\.amount 0\.3"):
        Pruning(epoch=1, amount=0.3, schedule=Gradual(epochs=2, initial=0.5))
    Pruning(epoch=1, amount=0.0, schedule=Gradual(epochs=2, initial=0.5))
    assert OneShot().shares(0.7, 10) == {0: 0.7}
    with pytest.raises(ValueError, match="every of Gradual: 0 is below 1"):
        Gradual(epochs=1, every=0)
    gradual = ["--pruning.schedule", "prunerob.pruning.Gradual", "--pruning.schedule.epochs"]
    told = refused(capsys, "fit", "--config", TINY, *gradual, "2")
    assert "takes 2 epochs from epoch 2 on, and at least one must follow" in told
    told = refused(capsys, "fit", "--config", TINY, *gradual, "1", *FILTERS, *NARROW)
    assert "pruning.narrow: takes channels out once" in told


GRADUAL = [
    *("fit", "--config", TINY, "--trainer.max_epochs", "5"),
    *("--pruning.schedule", "prunerob.pruning.Gradual", "--pruning.schedule.epochs", "2"),
]


@pytest.mark.parametrize("every", ["epoch", "2"])
def test_a_gradual_run_interrupted_within_its_schedule_ends_at_the_same_bits(
    every: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = [*GRADUAL, "--pruning.schedule.every", every]
    main(fit)
    whole = newest_run()
    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, 3))
    with pytest.raises(SystemExit):
        main(fit)
    monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
    run = newest_run()
    held = masks(run)
    total = sum(mask.numel() for mask in held.values())
    steps, t = (5, 0) if every == "epoch" else (2, 4)  # of the last masks in the epoch before
    assert sum(int((~mask).sum()) for mask in held.values()) == round(
        0.7 * (1 - (1 - t / 10) ** 3) * total
    )
    main(["fit", "--ckpt_path", str(run)])
    assert_equal(weights(run), weights(whole))
    assert_equal(masks(run), masks(whole))
    held = masks(run)
    assert sum(int((~mask).sum()) for mask in held.values()) == round(0.7 * total)

    events = EventAccumulator(str(whole))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("pruned/amount")]
    begun = {5 * epoch for epoch in range(curve[-1][0] // 5 + 1)}
    pruned = {10 + t for t in {*range(0, 10, steps), 10}}
    assert [step for step, _ in curve] == sorted(begun | pruned)
    for step, share in curve:
        if step in pruned:
            assert share == pytest.approx(0.7 * (1 - (1 - (step - 10) / 10) ** 3), abs=1 / total)
        elif not 10 <= step <= 20:
            assert share == pytest.approx(0.7 * (step > 10), abs=1 / total)

    report = json.loads((whole / "pruning.json").read_text())
    assert set(report["validation"]) == {"before", "after", "fine-tuned"}
    best = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 4, "the one with all pruned"

    # From before pruning, in this way and in another.
    branch = str(whole / "checkpoints" / "before_pruning.ckpt")
    main([*fit, "--ckpt_path", branch])
    assert_equal(weights(newest_run()), weights(whole))
    last = str(whole / "checkpoints" / "last.ckpt")
    longer = ["--ckpt_path", last, "--trainer.max_epochs", "6", "--pruning.schedule.initial", "0.1"]
    assert "pruning.schedule: the checkpoint was pruned with" in refused(capsys, *fit, *longer)


def test_filters_go_gradually() -> None:
    main([*GRADUAL, *FILTERS, "--pruning.schedule.initial", "0.3", "--trainer.max_epochs", "5"])
    run = newest_run()
    held = masks(run)
    assert all((weights(run)[f"network.{n}"][~mask] == 0).all() for n, mask in held.items())
    report = json.loads((Path(run) / "pruning.json").read_text())
    assert report["shares"]["weights"] >= 0.6
    assert report["schedule"].endswith("Gradual(epochs=2, every='epoch', initial=0.3)")


class Noting(Callback):
    """Notes weights, and the optimizer's state and rate, before the first step of each epoch."""

    seen: ClassVar[dict[int, tuple[dict[str, Tensor], bool, float]]] = {}

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            state = {n: v.clone() for n, v in pl_module.network.state_dict().items()}
            (optimizer,) = trainer.optimizers
            rate = optimizer.param_groups[0]["lr"]
            self.seen[trainer.current_epoch] = (state, bool(optimizer.state), rate)


ITERATIVE = [
    *("fit", "--config", TINY, "--trainer.max_epochs", "6", "--pruning.amount", "0.36"),
    *("--pruning.schedule", "prunerob.pruning.Iterative", "--pruning.schedule.epochs", "2"),
]


@pytest.mark.parametrize("rewind", ["weights", "learning_rate", "null"])
def test_iterative_rounds_rewind_and_resume(
    rewind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds of two epochs, from epochs 2 and 4 on; interrupted in the second."""
    fit = [*ITERATIVE, "--pruning.schedule.rewind", rewind]
    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    Noting.seen.clear()
    monkeypatch.setattr("prunerob.commands.lightning.Progress", Noting)
    main(fit)
    whole = newest_run()
    seen = dict(Noting.seen)
    held = masks(whole)
    total = sum(mask.numel() for mask in held.values())
    assert sum(int((~mask).sum()) for mask in held.values()) == round(0.36 * total)
    state, has_momentum, rate = seen[4]
    if rewind == "null":
        assert (has_momentum, rate) == (True, 0.0025), "halved after each of two epochs"
    else:
        assert (has_momentum, rate) == (False, 0.01) == seen[2][1:]
        assert seen[5][2] == 0.005
    for name, value in state.items():
        early = seen[1][0][name]
        early = torch.where(held[name], early, torch.zeros(())) if name in held else early
        assert torch.equal(value, early) == (rewind == "weights"), name

    monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, 5))
    with pytest.raises(SystemExit):
        main(fit)
    monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
    run = newest_run()
    main(["fit", "--ckpt_path", str(run)])
    assert_equal(weights(run), weights(whole))
    assert_equal(masks(run), masks(whole))
    branch = ["--ckpt_path", str(whole / "checkpoints" / "before_pruning.ckpt")]
    main([*fit, *branch])
    assert_equal(weights(newest_run()), weights(whole))
    if rewind == "weights":  # from a checkpoint that holds them, in another way that does not
        monkeypatch.setattr("prunerob.commands.lightning.Progress", Noting)
        main(["fit", "--config", TINY, "--trainer.max_epochs", "3", *branch])
        before, held = weights(whole, "before_pruning"), masks(newest_run())
        for name, mask in held.items():
            assert torch.equal(Noting.seen[2][0][name][mask], before[f"network.{name}"][mask])
        told = refused(capsys, *fit, *branch, "--pruning.schedule.to", "0")
        assert "rewinds to the weights of epoch 0, which the checkpoint does not hold" in told
    other = ["--pruning.schedule.rewind", "weights"]
    if rewind == "null":
        told = refused(capsys, *fit, *branch, *other)
        assert "rewinds to the weights of epoch 1, which the checkpoint does not hold" in told
        told = refused(capsys, *fit, *other, "--trainer.max_epochs", "7")
        assert "makes 2 rounds of 2 epochs from epoch 2 on; set it to 6" in told
