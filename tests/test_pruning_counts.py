"""Counts of what is pruned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunerob.networks import MnistCNN, ResNet18, WideResNet
from prunerob.networks.channels import writers
from prunerob.pruning import filter_l1
from prunerob.pruning.counts import count_layers, count_shares
from prunerob.pruning.cut import make_masks
from prunerob.pruning.masks import Reading, Residual
from tests.conftest import amounts, readings, seeds


@pytest.mark.parametrize("make", [lambda: WideResNet(16, 1), lambda: ResNet18(6)])
@settings(deadline=None, max_examples=25)
@given(seeds, amounts, readings, st.sampled_from(["keep", "silence", "remove"]))
def test_the_share_counts_all_filters_whichever_are_ranked(
    make: Callable[[], WideResNet | ResNet18],
    seed: int,
    amount: float,
    reading: Reading,
    residual: Residual,
) -> None:
    torch.manual_seed(seed)
    network = make()
    channels = network.channels()
    scores = filter_l1(network, 0)
    amount *= 0.3 if residual == "keep" else 0.8  # more is there not to go
    masks = make_masks(network, scores, amount, reading=reading, residual=residual)
    convolutions = {n: m.weight for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    gone = {
        name: ~masks[f"{name}.weight"].flatten(1).any(1)
        if f"{name}.weight" in masks
        else torch.zeros(len(weight), dtype=torch.bool)
        for name, weight in convolutions.items()
    }
    filters = sum(len(weight) for weight in convolutions.values())
    weights = sum(weight.numel() for weight in convolutions.values())
    shares = count_shares(network, masks, scores)
    assert shares.filters == sum(int(g.sum()) for g in gone.values()) / filters
    lost = sum(int(g.sum()) * convolutions[name][0].numel() for name, g in gone.items())
    assert shares.weights == lost / weights
    assert getattr(shares, reading) >= amount - 1e-12
    for name, leads in channels.items():
        if residual == "keep" and leads.stream is not None:
            assert not gone[name].any()
        elif residual == "remove" and leads.stream is not None:
            group = writers(channels)[leads.stream]
            assert all(torch.equal(gone[name], gone[other]) for other in group)
        # What was ranked by itself goes below one threshold over all layers.
        assert not gone[name].all()
    if residual == "silence":
        stays = torch.cat([scores[f"{n}.weight"][~g] for n, g in gone.items()])
        best = torch.stack([scores[f"{n}.weight"].max() for n in gone])
        goes = torch.cat([scores[f"{n}.weight"][g] for n, g in gone.items()])
        others = stays[~torch.isin(stays, best)]
        assert not len(goes) or not len(others) or goes.max() <= others.min()


def test_layers_are_counted(network: MnistCNN) -> None:
    masks = make_masks(network, filter_l1(network, 0), 0.6)
    layers = count_layers(network, masks)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "linear"]
    assert sum(layer.parameters_before for layer in layers) == 178_986
    gone = sum(layer.parameters_before - layer.parameters_after for layer in layers)
    shares = count_shares(network, masks, filter_l1(network, 0))
    assert shares.parameters == gone / 178_986
    assert shares.parameters > shares.weights >= 0.6
    channels = sum(layer.channels_before - layer.channels_after for layer in layers)
    assert shares.filters == channels / 160
