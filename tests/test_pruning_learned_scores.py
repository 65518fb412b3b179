"""Learned scores of weights and filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.cli import main
from prunerob.networks import MnistCNN, ResNet18
from prunerob.pruning import FilterHydra, Hydra, weight_magnitude
from prunerob.pruning.cut import Cut
from prunerob.pruning.filters import silence_filters
from prunerob.pruning.gates import Gated
from prunerob.pruning.learned_scores import initial_scores, straight_through
from prunerob.pruning.scores import filters_of, weights_of
from tests.conftest import TINY, SmallCNN, assert_equal, masks, newest_run, small
from tests.test_pruning_batches import scoring


def gates_of(network: nn.Module, unit: str, seed: int = 0) -> dict[str, Tensor]:
    """Random ones."""
    torch.manual_seed(seed)
    if unit == "weights":
        return {n: (torch.rand(w.shape) < 0.6).float() for n, w in weights_of(network)}
    return {n: (torch.rand(len(w)) < 0.6).float() for n, w in filters_of(network)}


def test_the_gradient_to_the_scores_by_hand() -> None:
    """Two linear layers with a ReLU, the backward pass written out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    on = gates_of(network, "weights")
    gated = Gated(network, "weights", list(on))
    x, y = torch.rand(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    gradients = gated.gradients(on, x, y)
    w1, b1, w2, b2 = (p.detach() for p in network.parameters())
    hidden = x @ (w1 * on["0.weight"]).T + b1
    read = hidden.clamp(min=0)
    error = ((read @ (w2 * on["2.weight"]).T + b2).softmax(1) - F.one_hot(y)) / 7
    behind = (error @ (w2 * on["2.weight"])) * (hidden > 0)
    # dL/dm = w dL/d(w m), also where m is 0; dL/ds = sign(s) dL/dm.
    expected = {"0.weight": w1 * (behind.T @ x), "2.weight": w2 * (error.T @ read)}
    scores = initial_scores(gated)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient)
        assert gradients[name][on[name] == 0].any()
        by_score = straight_through(scores[name], gradients[name])
        torch.testing.assert_close(by_score, scores[name].sign() * gradient)


def test_the_first_scores_by_hand(network: MnistCNN) -> None:
    names = [name for name, _ in weights_of(network)]
    scores = initial_scores(Gated(network, "weights", names))
    weight = network.conv2.weight.detach()
    expected = math.sqrt(6 / (32 * 6 * 6)) * weight / weight.abs().max()
    torch.testing.assert_close(scores["conv2.weight"], expected)
    of_filters = initial_scores(Gated(network, "filters", names))["conv2.weight"]
    means = weight.abs().mean((1, 2, 3))
    torch.testing.assert_close(of_filters, math.sqrt(6 / (32 * 6 * 6)) * means / means.max())


@pytest.mark.parametrize("make", [small, lambda: SmallCNN(1, 28), lambda: ResNet18(width=4)])
def test_a_closed_filter_is_a_silent_one_and_can_come_back(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    for module in network.modules():  # a beta that a silent filter must not emit
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    names = [name for name, _ in filters_of(network)]
    gated = Gated(network, "filters", names)
    on = gates_of(network, "filters")
    gated.switch(on)
    channels = 3 if isinstance(network, ResNet18) else 1
    x = torch.rand(3, channels, 28, 28)
    y = torch.tensor([0, 1, 2])
    answer = gated.network(x)
    held = silence_filters(network, {name: gate == 0 for name, gate in on.items()})
    gradients = gated.gradients(on, x, y)
    for name, mask in held.items():
        parameter = network.get_parameter(name)
        parameter.data = torch.where(mask, parameter, torch.zeros(()))
    torch.testing.assert_close(answer, network(x), atol=1e-5, rtol=1e-4)
    closed = torch.cat([gradients[name][gate == 0] for name, gate in on.items()])
    assert (closed != 0).float().mean() >= 0.4


@pytest.mark.parametrize("kind", [Hydra, FilterHydra])
def test_learning_leaves_no_trace_and_lowers_the_loss(kind: type[Hydra]) -> None:
    torch.manual_seed(0)
    network = SmallCNN(1, 28).train()
    network.linear = nn.Linear(network.linear.in_features, 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    cut = Cut(amount=0.5, criterion=kind(epochs=4, lr=1.0), reading="filters")
    scores = cut.scores(network, scoring())
    assert_equal(network.state_dict(), before)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(9)  # nobody's business
    again = cut.scores(network, scoring())
    assert_equal(dict(again), dict(scores))

    start = initial_scores(Gated(network, kind.unit, list(scores)))

    def loss(of: Mapping[str, Tensor]) -> float:
        gated = Gated(network, kind.unit, list(scores))
        on = gated.gates(cut.masks(network, {name: score.abs() for name, score in of.items()}))
        gated.switch(on)
        batches = list(scoring().epoch_against(gated.network.train()))
        return sum(float(F.cross_entropy(gated.network(x), y)) for _, x, y in batches)

    assert loss(scores) < loss(start)


def test_what_is_left_out_stays_on_while_others_learn() -> None:
    network = small()
    cut = Cut(amount=0.4, criterion=Hydra(epochs=1), exclude=["conv2"], budget="uniform")
    scores = cut.scores(network, scoring())
    assert set(scores) == {"conv1.weight", "conv3.weight", "linear.weight"}
    held = cut.masks(network, scores)
    assert held["conv1.weight"].all(), "of the budget"


def test_what_is_pruned_already_stays_so() -> None:
    """As gradual pruning needs it."""
    network = small()
    magnitude = weight_magnitude(network, 0)["conv2.weight"]
    gone = magnitude < magnitude.median()
    network.conv2.weight.data[gone] = 0
    scores = Cut(amount=0.8, criterion=Hydra(epochs=1)).scores(network, scoring())
    assert (scores["conv2.weight"][gone] == 0).all()
    assert (scores["conv2.weight"][~gone] > 0).all()


def test_a_run_prunes_by_learned_scores() -> None:
    """In one shot by weight and gradually by filter; twice the same."""
    fit = ["fit", "--config", TINY, "--pruning.epoch", "1", "--trainer.max_epochs", "2"]
    hydra = ["--pruning.criterion", "prunerob.pruning.Hydra", "--pruning.criterion.epochs", "1"]
    main([*fit, *hydra])
    first = newest_run()
    main([*fit, *hydra])
    assert_equal(masks(newest_run()), masks(first))
    held = masks(first)
    assert sum(int((~m).sum()) for m in held.values()) == round(
        0.7 * sum(m.numel() for m in held.values())
    )
    filters = ["--pruning.criterion", "prunerob.pruning.FilterHydra", "--pruning.amount", "0.5"]
    filters += ["--pruning.criterion.epochs", "1", "--trainer.max_epochs", "3"]
    gradual = ["--pruning.schedule", "prunerob.pruning.Gradual", "--pruning.schedule.epochs", "1"]
    main([*fit, *filters, *gradual])
    assert "conv1.bias" in masks(Path(newest_run()))
