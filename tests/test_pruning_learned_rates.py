"""Learned rates of layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunerob.cli import main
from prunerob.networks import MnistCNN
from prunerob.pruning import FilterHarp, Harp, lamp
from prunerob.pruning.cut import Cut, make_masks
from prunerob.pruning.learned_rates import Rates, best, relative_rank
from tests.conftest import TINY, SmallCNN, assert_equal, masks, newest_run, small
from tests.test_pruning_batches import scoring


def sigmoid(r: float) -> float:
    return 1 / (1 + math.exp(-r))


def test_the_share_and_the_loss_by_hand() -> None:
    """Two layers of 300 and 100 weights, of which a tenth is to stay: k_min is 0.01."""
    sizes = {"a": 300, "b": 100}
    rates = Rates(sizes, kept=0.1, first={"a": 0.2, "b": 0.4}, step=0.01)
    assert {n: k.item() for n, k in rates.shares().items()} == pytest.approx({"a": 0.2, "b": 0.4})
    assert rates.counts({"a": 300, "b": 8}) == {"a": 60, "b": 3}
    # Kept: 0.75 x 0.2 + 0.25 x 0.4 = 0.25.
    assert float(rates.excess()) == pytest.approx(0.25 / 0.1 - 1)

    r = {name: float(value.detach()) for name, value in rates.values.items()}
    rates.teach({"a": torch.tensor(-3.0), "b": torch.tensor(2.0)}, epoch=4)
    assert rates.weight == pytest.approx(0.05)
    for name, by_share, part in (("a", -3.0, 0.75), ("b", 2.0, 0.25)):
        slope = 0.99 * sigmoid(r[name]) * (1 - sigmoid(r[name]))
        expected = slope * (by_share + 0.05 * part / 0.1)
        assert float(rates.values[name].grad) == pytest.approx(expected, rel=1e-5)

    # Met: the weight stays, and there is no excess in the loss.
    with torch.no_grad():
        for value in rates.values.values():
            value.fill_(-8)
    rates.teach({"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, epoch=7)
    assert float(rates.excess()) == 0
    assert rates.weight == pytest.approx(0.05)
    expected = 0.99 * sigmoid(-8) * (1 - sigmoid(-8))
    assert float(rates.values["a"].grad) == pytest.approx(expected, rel=1e-4)
    assert float(rates.values["b"].grad) == 0
    with torch.no_grad():
        rates.values["a"].fill_(2.0)
    rates.teach({"a": torch.tensor(0.0), "b": torch.tensor(0.0)}, epoch=9)
    assert rates.weight == pytest.approx(0.05), "from then on as it is"
    assert float(rates.values["a"].grad) > 0


def test_a_layer_keeps_a_tenth_of_the_target_and_one_entry_at_least() -> None:
    rates = Rates({"a": 1000}, kept=0.1, first={"a": 0.2}, step=0.01)
    with torch.no_grad():
        rates.values["a"].fill_(-100)
    assert float(rates.shares()["a"]) == pytest.approx(0.01)
    assert rates.counts({"a": 1000}) == {"a": 10}
    assert rates.counts({"a": 8}) == {"a": 1}


def test_scores_hold_what_each_layer_keeps() -> None:
    score = torch.tensor([[0.1, -0.9], [0.5, -0.3]])
    assert best(score, 2).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert relative_rank(score.abs(), 2).tolist() == [[0.5, 2.0], [1.0, 2 / 3]]
    scores = {
        "a.weight": relative_rank(torch.rand(10, 10), 7),
        "b.weight": relative_rank(torch.rand(5, 20), 13),
    }
    held = make_masks(nn.Module(), scores, 0.9)
    assert {name: int(mask.sum()) for name, mask in held.items()} == {
        "a.weight": 7,
        "b.weight": 13,
    }


def test_rates_begin_as_asked_for(network: MnistCNN) -> None:
    weights = {n: p.detach() for n, p in network.named_parameters() if "weight" in n}
    total = sum(w.numel() for w in weights.values())
    for shares in ("uniform", "erk", "lamp"):
        first = Harp(shares=shares)._first_shares(network, weights, 0.2)
        kept = sum(first[name] * weight.numel() for name, weight in weights.items())
        assert kept == pytest.approx(0.2 * total, rel=1e-3)
        assert (len(set(first.values())) == 1) == (shares == "uniform")
    of_lamp = make_masks(network, lamp(network, 0), 0.8)["conv1.weight"].float().mean()
    assert first["conv1.weight"] == pytest.approx(float(of_lamp))
    with pytest.raises(ValueError, match=r"start of FilterHarp: 1\.0 is not above 1"):
        FilterHarp(start=1.0)


@pytest.mark.parametrize("kind", [Harp, FilterHarp])
def test_layers_come_to_keep_different_shares(kind: type[Harp]) -> None:
    torch.manual_seed(0)
    network = SmallCNN(1, 28).train()
    network.linear = nn.Linear(network.linear.in_features, 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    cut = Cut(amount=0.6, criterion=kind(epochs=3, lr=1.0, start=1.5), reading="filters")
    scores = cut.scores(network, scoring())
    assert_equal(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert_equal(dict(cut.scores(network, scoring())), dict(scores))
    kept = {name: float((score >= 1).float().mean()) for name, score in scores.items()}
    assert len(set(kept.values())) == len(kept)
    assert all(share >= 0.04 for share in kept.values())


def test_a_run_prunes_by_learned_rates() -> None:
    fit = ["fit", "--config", TINY, "--pruning.epoch", "1", "--trainer.max_epochs", "2"]
    harp = ["--pruning.criterion", "prunerob.pruning.Harp", "--pruning.criterion.epochs", "1"]
    main([*fit, *harp])
    held = masks(newest_run())
    total = sum(m.numel() for m in held.values())
    assert sum(int((~m).sum()) for m in held.values()) == round(0.7 * total)
    assert set(held) == {f"{n}.weight" for n in ("conv1", "conv2", "conv3", "linear")}
    assert small().conv1.weight.shape == held["conv1.weight"].shape
