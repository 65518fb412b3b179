"""Criteria."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunerob.cli import main
from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.networks.channels import channels_of
from prunerob.pruning import filter_l1, lamp, random_filters, random_weights, weight_magnitude
from prunerob.pruning.cut import make_masks
from prunerob.pruning.scores import name_of, without
from prunerob.reports.reading import read_results
from tests.conftest import RUN, TINY, newest_run, refused


def test_filter_scores_do_not_depend_on_a_filter_s_size(network: MnistCNN) -> None:
    for parameter in network.parameters():
        parameter.data.fill_(-0.25)
    for score in filter_l1(network, 0).values():
        torch.testing.assert_close(score, torch.full_like(score, 0.25))
    assert set(filter_l1(network, 0)) == {"conv1.weight", "conv2.weight", "conv3.weight"}


def test_lamp_by_hand() -> None:
    """Squares 1, 4, 9, 16 of one layer, 1 and 1 of the other."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(1, 2))
    network[0].weight.data = torch.tensor([[-3.0, 1.0], [2.0, -4.0]])
    network[1].weight.data = torch.tensor([[0.5], [-0.5]])
    scores = lamp(network, 0)
    expected = torch.tensor([[9 / 25, 1 / 30], [4 / 29, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(scores["0.weight"], expected)
    assert scores["1.weight"].tolist() == [[0.5], [1.0]], "equal weights by position"


def test_lamp_empties_no_layer(network: MnistCNN) -> None:
    network.conv1.weight.data *= 1e-6
    network.conv3.weight.data.zero_()
    masks = make_masks(network, lamp(network, 0), 1 - 4 / 178_816)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1, 1]


def test_layers_can_be_left_out(network: MnistCNN) -> None:
    scores = without(weight_magnitude(network, 0), ["linear", "conv1"])
    assert set(scores) == {"conv2.weight", "conv3.weight"}
    with pytest.raises(UserError, match=r"no prunable layer 'conv9'; there are conv1, conv2"):
        without(weight_magnitude(network, 0), ["conv9"])
    with pytest.raises(UserError, match="leaves out every layer"):
        without(filter_l1(network, 0), ["conv1", "conv2", "conv3"])


def test_a_network_without_a_channel_map_is_told_so() -> None:
    with pytest.raises(UserError, match="the filters of Sequential cannot be pruned"):
        filter_l1(nn.Sequential(nn.Conv2d(1, 2, 3)), 0)


def test_random_criteria_follow_the_seed(network: MnistCNN) -> None:
    for criterion in (random_weights, random_filters):
        a, b, c = (criterion(network, seed)["conv2.weight"] for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


class Power:
    """A criterion with a setting, as an object."""

    def __init__(self, power: int = 2) -> None:
        self.power = power

    def __call__(self, network: nn.Module, seed: int) -> dict[str, Tensor]:
        scores = weight_magnitude(network, seed)
        return {name: score**self.power for name, score in scores.items()}


@dataclass(frozen=True, slots=True)
class Slotted:
    """The same without a dictionary."""

    power: int = 2


def test_a_criterion_is_known_by_its_settings() -> None:
    assert name_of(Slotted(3)) == f"{__name__}.Slotted(power=3)"  # type: ignore[arg-type]
    assert name_of(weight_magnitude) == "prunerob.pruning.criteria.weight_magnitude"
    assert name_of(Power(3)) == name_of(Power(3)) == f"{__name__}.Power(power=3)"
    assert name_of(Power(3)) != name_of(Power(2))
    assert name_of(partial(weight_magnitude, seed=1)).endswith("weight_magnitude(seed=1)")


def mixed(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores filters of one layer and weights of another."""
    scores = weight_magnitude(network, seed)
    return {**scores, "conv1.weight": scores["conv1.weight"].flatten(1).mean(1)}


def of_everything(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores weights and biases alike."""
    return {name: value.detach().abs() for name, value in network.named_parameters()}


def of_outputs(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores the outputs of a layer that is no convolution of the network's map."""
    return {"linear.weight": weight_magnitude(network, seed)["linear.weight"].mean(1)}


def energy(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """A score for each filter, by a name that does not say so."""
    scores = weight_magnitude(network, seed)
    return {f"{n}.weight": scores[f"{n}.weight"].flatten(1).mean(1) for n in channels_of(network)}


def test_a_criterion_that_scores_what_cannot_be_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    for criterion, told in (
        ("mixed", "scores some layers by filter and others by weight"),
        ("of_outputs", "scores the filters of linear.weight, which MnistCNN.channels() does not"),
    ):
        name = f"{__name__}.{criterion}"
        assert told in refused(capsys, "fit", "--config", TINY, "--pruning.criterion", name)
        sweep = ["sweep", "--config", TINY, "--criterion", name, "--amount", "0.5"]
        assert told in refused(capsys, *sweep)
        assert not Path("sweeps").exists()
    # What is left out is not looked at.
    args = ["--pruning.criterion", f"{__name__}.mixed", "--pruning.exclude", "[conv1]"]
    main(["fit", "--config", TINY, *args])
    # A bias has a score for each of its numbers, too.
    main(["fit", "--config", TINY, "--pruning.criterion", f"{__name__}.of_everything"])
    masks = torch.load(newest_run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert "conv1.bias" in masks["callbacks"]["Pruning"]["masks"]


def test_what_a_criterion_prunes_is_told_by_its_scores() -> None:
    args = ["--pruning.criterion", f"{__name__}.energy", "--pruning.amount", "0.5"]
    main(["fit", "--config", TINY, *args, "--pruning.reading", "parameters"])
    main(["test"])
    (row,) = (r for r in read_results([str(RUN)]).all if not r.point.is_dense)
    assert (row.unit, row.point.method) == ("filters", "energy (parameters)")
