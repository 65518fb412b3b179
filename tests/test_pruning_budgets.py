"""How an amount is shared out among layers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunerob.errors import UnreachableAmount, UserError
from prunerob.networks import MnistCNN
from prunerob.pruning import filter_l1, weight_magnitude
from prunerob.pruning.budgets import Budget, by_name, erk, share_out, uniform
from prunerob.pruning.cut import Cut, make_masks
from tests.conftest import TINY, random_network, refused, seeds


def scores_of(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.rand(shape) for name, shape in shapes.items()}


def test_erk_by_hand() -> None:
    """Densities in proportion to sum(dims) / prod(dims): 24/320, 26/144, 12/20."""
    scores = scores_of(conv=(4, 5, 4, 4), other=(8, 2, 3, 3), linear=(10, 2))
    # Kept: 48.4 of 484; factor f with f (17 + 15 + 12)... sizes x sum/prod is the sum of dims.
    amounts = erk(scores, 0.9)
    kept = {name: round((1 - amounts[name]) * scores[name].numel()) for name in scores}
    factor = 48 / (17 + 16 + 12)
    assert kept == {
        "conv.weight": round(17 * factor),
        "other.weight": round(16 * factor),
        "linear.weight": round(12 * factor),
    }
    assert sum(kept.values()) == 48


def test_erk_keeps_small_layers_whole_and_the_others_pay() -> None:
    scores = scores_of(big=(100, 100), small=(4, 5))
    # Kept: 1,002. In proportion: small 9 f of 20 and big 200 f; f = 4.79 would keep 43 of the 20.
    amounts = erk(scores, 0.9)
    assert amounts["small.weight"] == 0
    assert round((1 - amounts["big.weight"]) * 10_000) == 1_002 - 20


def test_uniform_by_hand() -> None:
    scores = scores_of(first=(10, 10), middle=(20, 50), last=(10, 10))
    # Kept: 240 of 1,200; 100 of the first, 20 of the last, and so 120 of the 1,000 between.
    assert uniform(scores, 0.8) == pytest.approx(
        {"first.weight": 0.0, "middle.weight": 0.88, "last.weight": 0.8}
    )
    # Kept: 600; as large a share of the last as of the middle.
    amounts = uniform(scores, 0.5)
    assert amounts["first.weight"] == 0
    assert amounts["middle.weight"] == pytest.approx(1 - 500 / 1100, abs=0.001)
    assert amounts["last.weight"] == pytest.approx(1 - 500 / 1100, abs=0.01)


def test_amounts_by_name_and_one_threshold_for_the_others() -> None:
    scores = {
        "a.weight": torch.tensor([[5.0, 6.0, 7.0, 8.0]]),
        "b.weight": torch.tensor([[1.0, 9.0, 2.0, 10.0]]),
        "c.weight": torch.tensor([[3.0, 4.0]]),
    }
    masks = make_masks(nn.Module(), scores, 0.6, budget={"a": 0.75})
    assert masks["a.weight"].tolist() == [[False, False, False, True]]
    assert masks["b.weight"].tolist() == [[False, True, False, True]]
    assert masks["c.weight"].tolist() == [[False, True]]
    with pytest.raises(UserError, match=r"from 0\.3000 to 0\.9000 can"):
        by_name(scores, 0.2, {"a": 0.75})
    with pytest.raises(UserError, match="no prunable layer 'd'; there are a, b, c"):
        by_name(scores, 0.5, {"d": 0.5})
    with pytest.raises(UserError, match=r"0\.75 of a leaves less than keep_per_layer 0\.5"):
        by_name(scores, 0.5, {"a": 0.75}, keep_per_layer=0.5)
    every = {"a": 0.5, "b": 0.5, "c": 0.5}
    assert by_name(scores, 0.5, every) == {f"{name}.weight": 0.5 for name in every}
    with pytest.raises(UserError, match=r"from 0\.5000 to 0\.5000 can"):
        by_name(scores, 0.6, every)


@settings(deadline=None, max_examples=60)
@given(seeds, st.floats(0, 0.7), st.sampled_from(["erk", "uniform"]), st.floats(0, 0.15))
def test_a_budget_comes_to_the_amount_exactly(
    seed: int, amount: float, budget: Budget, floor: float
) -> None:
    network = random_network(seed)
    scores = weight_magnitude(network, seed)
    try:
        masks = make_masks(network, scores, amount, budget=budget, keep_per_layer=floor)
    except UnreachableAmount:  # the first layer stays whole, as do the floors
        reject()
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert pruned == round(amount * sum(mask.numel() for mask in masks.values()))
    for name, mask in masks.items():
        assert mask.sum() >= math.ceil(floor * mask.numel())
        stays, goes = scores[name][mask], scores[name][~mask]
        assert not len(goes) or not len(stays) or goes.max() <= stays.min()


def test_a_larger_amount_takes_no_layer_s_weight_back(network: MnistCNN) -> None:
    """As gradual pruning needs it."""
    scores = weight_magnitude(network, 0)
    for budget in ("erk", "uniform"):
        before = make_masks(network, scores, 0.1, budget=budget)
        for amount in (0.3, 0.6, 0.9, 0.94):
            masks = make_masks(network, scores, amount, budget=budget)
            assert not any((masks[name] & ~before[name]).any() for name in masks)
            before = masks


def test_what_a_budget_cannot_do(network: MnistCNN, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="at most 0"):
        Cut(amount=0.9999, budget="uniform").check(network)
    for budget in ("erk", {"conv1": 0.5}):
        with pytest.raises(UserError, match="the criterion scores filters"):
            Cut(amount=0.5, budget=budget, criterion=filter_l1).check(network)
    with pytest.raises(UserError, match=r"pruning\.budget: 1\.0 of conv1 lies outside"):
        Cut(budget={"conv1": 1.0})
    assert share_out(weight_magnitude(network, 0), 0.0, {"conv1": 0.5}) is None, "the control"
    told = refused(capsys, "fit", "--config", TINY, "--pruning.budget", "{conv9: 0.5}")
    assert "no prunable layer 'conv9'; there are conv1, conv2, conv3, linear" in told
