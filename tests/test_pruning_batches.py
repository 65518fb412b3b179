"""Training batches for criteria."""

from __future__ import annotations

import math

import torch

from prunerob.attacks import PGD
from prunerob.data import MNIST
from prunerob.noise import image_keys
from prunerob.pixels import Pixels
from prunerob.pruning.batches import ScoringBatches
from prunerob.training.adversarial import AdversarialTraining
from tests.conftest import SmallCNN, assert_equal, small

ATTACK = PGD(eps=Pixels(0.3), step_size=Pixels(0.1), steps=2)


def scoring(epoch: int = 2, seed: int = 5, **settings: int) -> ScoringBatches:
    data = MNIST(batch_size=30, train_size=100, seed=seed, **settings)
    data.setup("fit")
    training = AdversarialTraining(attack=ATTACK, ramp_epochs=50)
    device = torch.device("cpu")
    return ScoringBatches(data=data, training=training, seed=seed, epoch=epoch, device=device)


def test_they_are_the_run_s_own_at_full_eps() -> None:
    network, batches = small(), scoring()
    loader = batches.data.train_dataloader()
    loader.epoch = lambda: 2
    taken = list(batches.epoch_against(network))
    assert len(taken) == len(batches) == 4
    for (x, x_adv, y), own in zip(taken, loader, strict=True):
        assert torch.equal(x, own.x)
        assert torch.equal(y, own.y)
        key = image_keys(own.indices, seed=5, purpose="scoring", epoch=2)
        assert torch.equal(x_adv, ATTACK(network, x, y, key=key))
        assert math.isclose(float((x_adv - x).abs().max()), 0.3, rel_tol=1e-5)


def test_they_are_a_function_of_seed_and_epoch_and_as_many_as_asked_for() -> None:
    network = small()
    first = [batch[1] for batch in scoring().against(network, 6)]
    assert [len(x_adv) for x_adv in first] == [30, 30, 30, 10, 30, 30], "an epoch has four"
    again = [batch[1] for batch in scoring().against(network, 6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[4])
    for other in (scoring(epoch=3), scoring(seed=6)):
        assert not torch.equal(first[0], next(other.against(network, 1))[1])


def test_every_rank_gets_whole_batches() -> None:
    batches = scoring()
    whole = [x for x, *_ in batches.epoch_against(small())]

    class OfTwo(MNIST):
        rank, ranks = 1, 2  # type: ignore[assignment]

    data = OfTwo(batch_size=30, train_size=100, seed=5)
    data.setup("fit")
    other = ScoringBatches(
        data=data, training=batches.training, seed=5, epoch=2, device=batches.device
    )
    seen = [x for x, *_ in other.epoch_against(small())]
    assert all(torch.equal(a, b) for a, b in zip(whole, seen, strict=True))


def test_the_network_is_left_as_it_was_found() -> None:
    network = SmallCNN(1, 28).train()
    network.linear = torch.nn.Linear(network.linear.in_features, 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    list(scoring().against(network, 2))
    assert_equal(network.state_dict(), before)
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)
