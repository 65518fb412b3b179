"""The loss of adversarial training."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.attacks import FGSM, PGD, Attack, NoAttack
from prunerob.data.batches import Batch
from prunerob.errors import UserError
from prunerob.networks import MnistCNN, WideResNet
from prunerob.noise import image_keys
from prunerob.pixels import Pixels
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.objectives import TRADES
from prunerob.training.phases import FINE_TUNING, TRAINING, FineTuning, make_trainings
from tests.conftest import classifier


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_is_the_weighted_mean_of_clean_and_adversarial(
    weight: float, trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:64], digits[1][:64]
    attack = PGD(steps=3, step_size=Pixels(0.1))
    module = classifier(trained, AdversarialTraining(attack=attack, weight=weight))
    loss = module.training_step(Batch(x, y, torch.arange(64)), 0)

    key = image_keys(torch.arange(64), seed=5, purpose="training", epoch=3)
    x_adv = attack(trained, x, y, key=key)
    clean, adversarial = F.cross_entropy(trained(x), y), F.cross_entropy(trained(x_adv), y)
    torch.testing.assert_close(loss, (1 - weight) * clean + weight * adversarial)
    if weight == 0.5:
        both = F.cross_entropy(trained(torch.cat([x, x_adv])), torch.cat([y, y]))
        torch.testing.assert_close(loss, both)


def test_without_an_attack_the_loss_is_the_clean_one(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    module = classifier(trained, AdversarialTraining(attack=NoAttack(), weight=0.5))
    loss = module.training_step(Batch(x, y, torch.arange(len(y))), 0)
    torch.testing.assert_close(loss, F.cross_entropy(trained(x), y))
    assert set(module.running) == {"accuracy/train_clean", "loss/train"}


@pytest.mark.parametrize("batch_norm", ["joint", "separate"])
def test_clean_and_adversarial_examples_meet_batch_norm_as_said(
    batch_norm: Literal["joint", "separate"],
) -> None:
    torch.manual_seed(0)
    network = WideResNet(10, 1).train()
    fresh = copy.deepcopy(network)
    attack = PGD(eps=Pixels("8/255"), step_size=Pixels("8/255"), steps=2, precision="float32")
    module = classifier(network, AdversarialTraining(attack=attack, batch_norm=batch_norm))
    x, y = torch.rand(12, 3, 32, 32), torch.arange(12) % 10
    loss = module.training_step(Batch(x, y, torch.arange(12)), 0)

    key = image_keys(torch.arange(12), seed=5, purpose="training", epoch=3)
    x_adv = attack(fresh, x, y, key=key)
    halves = [torch.cat([x_adv, x])] if batch_norm == "joint" else [x_adv, x]
    expected = sum(F.cross_entropy(fresh(h), y.repeat(len(h) // 12)) for h in halves) / len(halves)
    torch.testing.assert_close(loss, expected)

    # The running statistics, by hand, of the first normalisation: momentum 0.1, once for each half.
    mean, var = torch.zeros(16), torch.ones(16)
    for half in halves:
        seen = network.stem(network.normalize(half))
        mean = 0.9 * mean + 0.1 * seen.mean((0, 2, 3))
        var = 0.9 * var + 0.1 * seen.var((0, 2, 3))
    first = network.stage1[0].bn1
    assert isinstance(first, nn.BatchNorm2d)
    torch.testing.assert_close(first.running_mean, mean)
    torch.testing.assert_close(first.running_var, var)
    assert first.num_batches_tracked == len(halves)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, msg=name)


class Spy(FGSM):
    """Notes the eps that it is given."""

    seen: list[Tensor | None] = []  # noqa: RUF012

    def perturb(self, network: Any, x: Tensor, y: Tensor, eps: Any, key: Tensor) -> Tensor:
        Spy.seen.append(eps)
        return super().perturb(network, x, y, eps, key)


@pytest.mark.parametrize(
    ("epochs", "ramp", "expected"), [(0.0, 2.0, 0.0), (1.0, 2.0, 0.15), (2.0, 2.0, None)]
)
def test_eps_ramps_up_from_0(
    epochs: float, ramp: float, expected: float | None, network: MnistCNN
) -> None:
    training = AdversarialTraining(attack=Spy(), ramp_epochs=ramp)
    x, y, key = torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64), torch.arange(4)
    x_adv = training.perturb(network, x, y, key=key, ramp=training.ramp(epochs))
    given = Spy.seen[-1]
    if expected is None:
        assert given is None
    else:
        assert cast(Tensor, given).tolist() == pytest.approx([expected] * 4)
    assert (x_adv - x).abs().max() <= (0.3 if expected is None else expected) + 1e-6


def test_half_normal_eps_differs_by_image_and_stays_below_the_attack_s(network: MnistCNN) -> None:
    training = AdversarialTraining(attack=Spy(), eps_distribution="half_normal")
    n = 500
    x, y = torch.rand(n, 1, 28, 28), torch.zeros(n, dtype=torch.int64)
    key = image_keys(torch.arange(n), seed=0, purpose="training")
    training.perturb(network, x, y, key=key)
    eps = cast(Tensor, Spy.seen[-1])
    assert len(eps.unique()) == n
    assert 0 <= eps.min() < eps.max() <= 0.3
    assert eps.mean() == pytest.approx(0.36 * 0.3, rel=0.1)


class Without(Attack):
    """An attack that has no eps."""

    def perturb(self, network: Any, x: Tensor, y: Tensor, eps: Any, key: Tensor) -> Tensor:
        return x


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings in ({"weight": 1.1}, {"weight": -0.1}, {"ramp_epochs": -1}):
        with pytest.raises(ValueError, match="adversarial_training"):
            AdversarialTraining(attack=FGSM(), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no eps to draw"):
        AdversarialTraining(attack=Without(), eps_distribution="half_normal")


def test_fine_tuning_may_have_an_attack_of_its_own() -> None:
    near = PGD(eps=Pixels(0.3), start_std=0.001)
    uniform = PGD(eps=Pixels(0.3), start_std=0.0)
    training = AdversarialTraining(attack=near, objective=TRADES(beta=2.0), ramp_epochs=3)
    for tuning, attack in ((FineTuning(attack=uniform), uniform), (FineTuning(), near)):
        made = make_trainings(training, tuning)
        assert made[TRAINING] is training
        assert made[FINE_TUNING] == replace(training, attack=attack, ramp_epochs=0)
    trades = FineTuning(attack=uniform, objective=TRADES(beta=4.0))
    plain = AdversarialTraining(attack=NoAttack())
    assert make_trainings(plain, trades)[FINE_TUNING].attack is uniform
    flat = FineTuning(attack=FGSM(eps=Pixels(0.3)), objective=TRADES(beta=4.0))
    with pytest.raises(UserError, match=r"^model\.fine_tuning\.attack: "):
        make_trainings(training, flat)


def test_fine_tuning_s_attack_perturbs_after_the_prune_epoch(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:32], digits[1][:32]
    strong = PGD(steps=3, step_size=Pixels(0.1))
    module = classifier(trained, AdversarialTraining(attack=NoAttack()))
    module.trainings = make_trainings(module.adversarial_training, FineTuning(attack=strong))
    losses = []
    for phase in (TRAINING, FINE_TUNING):
        module.phase_name = phase
        losses.append(float(module.training_step(Batch(x, y, torch.arange(32)), 0).detach()))
    assert losses[1] > 1.5 * losses[0]
