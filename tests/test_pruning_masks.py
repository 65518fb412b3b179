"""Masks of weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.pruning import filter_l1, random_weights, weight_magnitude
from prunerob.pruning.counts import count_shares
from prunerob.pruning.cut import make_masks
from prunerob.pruning.masks import apply_masks, emptied_layers
from tests.conftest import amounts, random_network, seeds


@settings(deadline=None, max_examples=80)
@given(seeds, amounts, st.sampled_from([weight_magnitude, random_weights]), st.booleans())
def test_the_share_of_weights_is_exact(
    seed: int, amount: float, criterion: Callable[..., dict[str, torch.Tensor]], ties: bool
) -> None:
    network = random_network(seed)
    if ties:
        network.conv2.weight.data.fill_(0.01)
    scores = criterion(network, seed)
    masks = make_masks(network, scores, amount)
    n = sum(score.numel() for score in scores.values())
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert pruned == round(amount * n)
    assert count_shares(network, masks, scores).weights == pruned / n
    assert set(masks) == set(scores)
    assert not any("bias" in name or "norm" in name for name in masks)
    # Whatever stays scores at least as high as whatever goes, over all layers together.
    stays = torch.cat([scores[name][mask] for name, mask in masks.items()])
    goes = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert not len(goes) or not len(stays) or goes.max() <= stays.min()


def test_ties_go_by_position(network: MnistCNN) -> None:
    for parameter in network.parameters():
        parameter.data.fill_(0.5)
    masks = make_masks(network, weight_magnitude(network, 0), 0.25)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert not flat[: round(0.25 * len(flat))].any()
    assert flat[round(0.25 * len(flat)) :].all()


def test_class_blinded_pruning_takes_one_threshold(network: MnistCNN) -> None:
    network.conv1.weight.data *= 100
    masks = make_masks(network, weight_magnitude(network, 0), 0.9)
    assert masks["conv1.weight"].float().mean() > 0.9
    assert masks["conv3.weight"].float().mean() < 0.2


@pytest.mark.parametrize("criterion", [weight_magnitude, filter_l1])
def test_keep_per_layer_is_a_floor(network: MnistCNN, criterion: Callable[..., object]) -> None:
    network.conv1.weight.data /= 1000
    scores = criterion(network, 0)
    masks = make_masks(network, scores, 0.7, keep_per_layer=0.25)  # type: ignore[arg-type]
    for layer in ("conv1", "conv2", "conv3"):
        mask = masks[f"{layer}.weight"].flatten(1)
        kept = mask.any(1) if criterion is filter_l1 else mask
        assert kept.sum() >= math.ceil(0.25 * kept.numel())
    with pytest.raises(UserError, match=r"at most 0\.7"):
        make_masks(network, scores, 0.9, keep_per_layer=0.25)  # type: ignore[arg-type]


def test_an_emptied_layer_is_found(network: MnistCNN) -> None:
    network.conv1.weight.data.zero_()
    masks = make_masks(network, weight_magnitude(network, 0), 0.9)
    assert emptied_layers(masks) == ["conv1"]


def test_masking_sets_zero_even_what_is_not_finite(network: MnistCNN) -> None:
    network.conv1.weight.data[0] = math.inf
    network.conv1.weight.data[1] = math.nan
    masks = {"conv1.weight": torch.ones_like(network.conv1.weight, dtype=torch.bool)}
    masks["conv1.weight"][:2] = False
    apply_masks(network, masks)
    assert (network.conv1.weight[:2] == 0).all()
