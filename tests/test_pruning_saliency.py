"""Saliency."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from prunerob.cli import main
from prunerob.pruning import FilterTaylor, Taylor
from prunerob.pruning.cut import Cut
from prunerob.pruning.scores import name_of
from prunerob.sweeps.branches import make_branches
from tests.conftest import TINY, SmallCNN, assert_equal, masks, newest_run, on_one_thread, refused
from tests.test_pruning_batches import scoring


def by_loop(network: nn.Module, batches: Iterator[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Backward passes of a copy, one for each batch; the mean over them, weight by weight."""
    copied = copy.deepcopy(network).eval()
    seen: dict[str, list[Tensor]] = {}
    for _, x_adv, y in batches:
        copied.zero_grad()
        F.cross_entropy(copied(x_adv), y).backward()
        for name, parameter in copied.named_parameters():
            gradient = parameter.grad if parameter.grad is not None else torch.zeros(())
            seen.setdefault(name, []).append((parameter * gradient).detach().abs())
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}


def network_of_digits() -> SmallCNN:
    """BatchNorm and dropout, in training mode."""
    torch.manual_seed(0)
    network = SmallCNN(1, 28).train()
    network.linear = nn.Linear(network.linear.in_features, 10)
    return network


def test_taylor_is_what_a_plain_loop_gives() -> None:
    network = network_of_digits()
    network.conv2.weight.requires_grad_(False)  # frozen: it is scored all the same
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    scores = Taylor(batches=5)(network, 0, batches=scoring())
    of_filters = FilterTaylor(batches=5)(network, 0, batches=scoring())
    assert_equal(network.state_dict(), before)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    network.conv2.weight.requires_grad_(True)
    expected = by_loop(network, scoring().against(network, 5))
    assert set(scores) == {"conv1.weight", "conv2.weight", "linear.weight"}
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name])
        assert score.max() > 0
    assert set(of_filters) == {"conv1.weight", "conv2.weight"}
    for name, score in of_filters.items():
        torch.testing.assert_close(score, expected[name].sum((1, 2, 3)))


def test_what_sees_data_is_not_called_without() -> None:
    network = network_of_digits()
    cut = Cut(criterion=Taylor(batches=3), amount=0.5)
    assert {name: score.shape for name, score in cut.check(network).items()} == {
        name: network.get_parameter(name).shape
        for name in ("conv1.weight", "conv2.weight", "linear.weight")
    }
    assert all(s.dim() == 1 for s in Cut(criterion=FilterTaylor()).scores(network).values())
    assert name_of(cut.criterion) == "prunerob.pruning.saliency.Taylor(batches=3)"


def biased(network: nn.Module, seed: int, *, batches: object) -> dict[str, Tensor]:
    """A criterion that sees data and does not say what it scores."""
    raise AssertionError("it is not called")


def test_what_sees_data_must_say_what_it_scores(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "fit", "--config", TINY, "--pruning.criterion", f"{__name__}.biased")
    assert "sees data, so it must say" in told
    told = refused(
        capsys,
        *("fit", "--config", TINY, "--pruning.criterion", "prunerob.pruning.Taylor"),
        *("--pruning.criterion.batches", "0"),
    )
    assert "batches of Taylor: 0 is below 1" in told


def test_a_run_prunes_by_data(tmp_path: Path) -> None:
    """From a configuration, with the criterion's settings; by its own record, the same again."""
    config = yaml.safe_load(Path(TINY).read_text())
    kind = "prunerob.pruning.FilterTaylor"
    config["pruning"] |= {
        "criterion": {"class_path": kind, "init_args": {"batches": 2}},
        "amount": 0.5,
        "epoch": 1,
    }
    config["trainer"]["max_epochs"] = 2
    file = tmp_path / "taylor.yaml"
    file.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(file)])
    run = newest_run()
    record = json.loads((run / "pruning.json").read_text())
    assert record["criterion"] == "prunerob.pruning.saliency.FilterTaylor(batches=2)"
    assert record["unit"] == "filters"
    assert record["shares"]["weights"] >= 0.5
    main(["fit", "--config", str(run / "config.yaml")])
    assert_equal(masks(newest_run()), masks(run))


def test_a_sweep_knows_it_by_its_short_name() -> None:
    (branch,) = make_branches(["taylor"], [0.5])
    assert branch.name == "taylor-0.5"
    assert branch.settings()[-1] == "prunerob.pruning.Taylor"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "criterion",
    [
        ["prunerob.pruning.Taylor", "--pruning.criterion.batches", "2"],
        pytest.param(
            ["prunerob.pruning.FilterHydra", "--pruning.criterion.epochs", "1"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["Taylor", "FilterHydra"],
)
def test_one_and_two_ranks_prune_the_same(criterion: list[str]) -> None:
    """The untrained network, which is the same for both."""
    from tests.test_runs_ranks import run

    fit = ["fit", "--config", TINY, "--pruning.epoch", "0", "--trainer.max_epochs", "1"]
    fit += ["--pruning.criterion", *criterion, "--model.adversarial_training.ramp_epochs", "0"]
    fit += ["--pruning.amount", "0.6"]
    name = "--trainer.logger.init_args.version"
    on_one_thread(*fit, name, "one")
    run(*fit, name, "two", devices=2)
    one, two = (masks(Path("lightning_logs/tiny") / place) for place in ("one", "two"))
    assert_equal(one, two)
