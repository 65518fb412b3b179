"""Schedules run over their phase, whatever its length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD

from prunerob.schedules import Constant, Cosine, OneCycle, Schedule, Stepwise


def rates(schedule: Schedule, steps: int) -> list[float]:
    """The learning rate of each optimizer step of a phase, from an optimizer's rate of 0.5."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    config = schedule(optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if config is not None:
            assert config["interval"] == "step"
            config["scheduler"].step()
    return seen


@settings(deadline=None, max_examples=30)
@given(st.integers(10, 400), st.sampled_from(["cos", "linear"]))
def test_one_cycle_rises_to_the_rate_and_falls_to_its_end(steps: int, shape: str) -> None:
    seen = rates(OneCycle(warmup=0.3, start=0.1, end=0.001, shape=shape), steps)  # type: ignore[arg-type]
    top = seen.index(max(seen))
    assert seen[0] == pytest.approx(0.05)
    assert seen[-1] == pytest.approx(0.0005)
    assert 0.4 < max(seen) <= 0.5 + 1e-9
    assert abs(top / steps - 0.3) < 1.5 / steps + 1e-9
    assert seen[: top + 1] == sorted(seen[: top + 1])
    assert seen[top:] == sorted(seen[top:], reverse=True)


def test_cosine_falls_over_the_whole_phase() -> None:
    seen = rates(Cosine(end=0.2), 100)
    assert seen[0] == 0.5
    assert seen[50] == pytest.approx(0.3)
    assert seen[-1] == pytest.approx(0.1, abs=1e-3)
    assert seen == sorted(seen, reverse=True)


def test_constant_is_the_optimizer_s_own_rate() -> None:
    assert rates(Constant(), 5) == [0.5] * 5


def test_a_stepwise_rate_drops_with_the_first_step_behind_each_point() -> None:
    # The recipe of wide residual networks, 200 epochs of 352 steps: drops at 60, 120 and 160.
    seen = rates(Stepwise(), 200 * 352)
    assert seen.index(0.1) == 60 * 352
    assert seen.index(0.5 * 0.04) == 120 * 352
    assert seen.index(0.5 * 0.008) == 160 * 352
    assert len(set(seen)) == 4
    assert rates(Stepwise(at=(0.5,), rates=(0.1,)), 3) == [0.5, 0.5, 0.05]
    assert rates(Stepwise(at=(), rates=()), 2) == [0.5, 0.5]
    for bad in ({"at": (0.5, 0.3)}, {"at": (0.0,)}, {"at": (0.5,)}, {"rates": (1.0, 0.1, 0.0)}):
        with pytest.raises(ValueError, match="of Stepwise"):
            Stepwise(**bad)  # type: ignore[arg-type]
