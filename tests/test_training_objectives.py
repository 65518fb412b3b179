"""Objectives, against their formulas written out in plain torch."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunerob.attacks import FGSM, NFGSM, PGD, NoAttack
from prunerob.cli import main
from prunerob.data.batches import Batch
from prunerob.networks import MnistCNN
from prunerob.noise import image_keys
from prunerob.pixels import Pixels
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.objectives import (
    ADVERSARIAL,
    ARD,
    CLEAN,
    MART,
    RSLAD,
    TRADES,
    CrossEntropy,
    Objective,
    divergence,
)
from prunerob.training.teacher import Teacher
from tests.conftest import (
    TINY,
    Interrupt,
    SmallCNN,
    assert_equal,
    classifier,
    newest_run,
    refused,
    weights,
)

OBJECTIVES = "prunerob.training.objectives"
CLIMB = PGD(eps=Pixels(0.2), step_size=Pixels(0.1), steps=3, precision="float32")


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    clean, adversarial, taught = (scale * torch.randn(6, 4) for _ in range(3))
    return clean, adversarial, taught, torch.randint(0, 4, (6,))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Sum of p (log p - log q), (B,)."""
    return (p * (p.log() - q.log())).sum(1)


@settings(deadline=None, max_examples=30)
@given(answers())
def test_losses_are_their_formulas(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    clean, adversarial, taught, y = (t.double() if t.is_floating_point() else t for t in case)
    p, q, t = clean.softmax(1), adversarial.softmax(1), taught.softmax(1)
    ce = -p.log()[range(6), y].mean()
    ce_adv = -q.log()[range(6), y].mean()

    others = torch.stack([torch.cat([q[i, : y[i]], q[i, y[i] + 1 :]]).max() for i in range(6)])
    mart = (-q.log()[range(6), y] - (1.0001 - others).log()).mean()
    mart = mart + 5 * (kl(p, q) * (1 - p[range(6), y])).mean()

    hot, cold = (taught / 2).softmax(1), (adversarial / 2).softmax(1)
    expected: list[tuple[Objective, Tensor]] = [
        (CrossEntropy(), 0.3 * ce_adv + 0.7 * ce),
        (TRADES(beta=2.0), ce + 2 * kl(p, q).mean()),
        (MART(), mart),
        (ARD(alpha=0.8, temperature=2.0), 0.8 * 4 * kl(hot, cold).mean() + 0.2 * ce),
        (RSLAD(), 5 / 6 * kl(t, q).mean() + 1 / 6 * kl(t, p).mean()),
    ]
    logits = {ADVERSARIAL: adversarial, CLEAN: clean}
    for objective, value in expected:
        loss = objective(logits, y, weight=0.3, taught=taught)
        torch.testing.assert_close(loss.double(), value, rtol=1e-4, atol=1e-5)


def test_divergence_is_finite_where_probabilities_vanish() -> None:
    certain = torch.tensor([[200.0, 0.0, 0.0]])
    assert divergence(certain, certain).item() == 0
    assert divergence(certain, -certain).item() == pytest.approx(200 + math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    "objective", [TRADES(beta=1.0), TRADES(beta=1.0, attacked="labels"), MART()]
)
def test_a_step_asks_the_network_about_both_halves(
    objective: Objective, trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:32], digits[1][:32]
    attack = replace(CLIMB, start_std=Pixels(0.001))
    module = classifier(trained, AdversarialTraining(attack=attack, objective=objective))
    loss = module.training_step(Batch(x, y, torch.arange(32)), 0)

    key = image_keys(torch.arange(32), seed=5, purpose="training", epoch=3)
    clean = trained(x)
    of_probabilities = objective == TRADES(beta=1.0)
    targets = clean.softmax(1).detach() if of_probabilities else y
    x_adv = attack(trained, x, targets, key=key)
    expected = objective({CLEAN: clean, ADVERSARIAL: trained(x_adv)}, y, weight=0.5, taught=None)
    torch.testing.assert_close(loss, expected)
    assert set(module.running) == {
        *("accuracy/train_adversarial", "accuracy/train_clean", "loss/train")
    }


def test_an_attack_on_labels_may_be_any() -> None:
    objective = TRADES(attacked="labels")
    for attack in (FGSM(), PGD(random_start=False), replace(CLIMB, restarts=2)):
        assert AdversarialTraining(attack=attack, objective=objective).objective is objective


def test_what_attacks_the_divergence_may_make_an_image_surer() -> None:
    """Where the probability of its own class is past its clean value, the attack on it climbs on.

    So the labels are the stronger thing to attack, from a start that is as far from the image.
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        network[1].bias.zero_()
    x, y = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64, dtype=torch.int64)
    attack = PGD(eps=Pixels(0.2), step_size=Pixels(0.05), steps=8)
    surer = []
    for attacked in ("probabilities", "labels"):
        training = AdversarialTraining(attack=attack, objective=TRADES(attacked=attacked))
        x_adv = training.perturb(network, x, y, key=torch.arange(64))
        surer.append(int((x_adv > x).sum()))
    assert surer[1] == 0
    assert 16 < surer[0] < 48


def test_trades_attack_raises_the_divergence(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    """By more than the attack on the label does, from the paper's start near the image."""
    x, y = digits[0][:64], digits[1][:64]
    attack = PGD(steps=10, step_size=Pixels(0.02), eps=Pixels(0.1), start_std=Pixels(0.001))
    training = AdversarialTraining(attack=attack, objective=TRADES())
    key = torch.arange(64)
    x_adv = training.perturb(trained, x, y, key=key)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    with torch.no_grad():
        reached = divergence(trained(x), trained(x_adv))
        noise = (x + 0.1 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        assert reached.mean() > 5 * divergence(trained(x), trained(noise)).mean()


def test_a_normal_start_is_near_the_image(network: MnistCNN) -> None:
    x = torch.full((50, 1, 28, 28), 0.5)
    attack = PGD(eps=Pixels(0.3), step_size=Pixels(1e-9), steps=1, start_std=Pixels(0.01))
    change = attack(network, x, torch.zeros(50, dtype=torch.int64)) - x
    assert change.mean().item() == pytest.approx(0, abs=3e-4)
    assert change.std().item() == pytest.approx(0.01, rel=0.02)
    assert change.pow(4).mean().item() == pytest.approx(3 * 0.01**4, rel=0.1), "normal, not flat"


def test_nfgsm_steps_from_its_noise() -> None:
    torch.manual_seed(0)
    network = SmallCNN(3, 8).eval()
    x, y, key = torch.rand(6, 3, 8, 8), torch.randint(0, 4, (6,)), torch.arange(6)
    x_adv = NFGSM(eps=Pixels(0.1))(network, x, y, key=key)
    # The noise is found back: from it, the example is one signed step, cut to the images' cube.
    noise = NFGSM(eps=Pixels(0.1))(_Flat(network), x, y, key=key) - x
    inside = (x + noise > 0) & (x + noise < 1)
    start = (x + noise).requires_grad_()
    loss = F.cross_entropy(network(start), y, reduction="sum")
    step = 0.1 * torch.autograd.grad(loss, start)[0].sign()
    change = x_adv - (x + noise)
    both = inside & (x_adv > 0) & (x_adv < 1)
    assert both.float().mean() > 0.5
    torch.testing.assert_close(change[both], step[both], atol=1e-6, rtol=0)
    assert 0.19 < noise.abs().max() <= 0.2 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


class _Flat(torch.nn.Module):
    """Answers that do not depend on the image, but have a gradient: of 0."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.classes = 4

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1)[:, : self.classes]


def test_a_teacher_stays_as_it_was(trained: MnistCNN, digits: tuple[Tensor, Tensor]) -> None:
    x, trained = digits[0][:8], copy.deepcopy(trained)
    expected = trained(x).detach().clone()
    teacher = Teacher(trained)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    torch.testing.assert_close(teacher(x), expected)
    torch.testing.assert_close(Teacher(trained, teacher.state)(x), expected)


def test_distillation_teaches_while_masks_are_held_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [
        *("--model.fine_tuning.objective", "prunerob.training.objectives.RSLAD"),
        *("--model.fine_tuning.ramp_epochs", "1"),
    ]
    main(["fit", "--config", TINY, *own])
    run = newest_run()
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    dense = weights(run, "before_pruning")
    assert_equal({f"network.{n}": v for n, v in last["teacher"].items()}, dense)
    assert not any("teacher" in name for name in last["state_dict"])

    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, 3))
    with pytest.raises(SystemExit):
        main(["fit", "--config", TINY, *own])
    monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
    again = newest_run()
    assert again != run
    main(["fit", "--ckpt_path", str(again)])
    assert_equal(weights(again), weights(run))

    main(["fit", "--config", TINY])
    assert not torch.equal(
        weights(newest_run())["network.conv2.weight"], weights(run)["network.conv2.weight"]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--model.adversarial_training.objective", f"{OBJECTIVES}.RSLAD"],
            "fine_tuning.objective",
        ),
        (
            [
                *("--model.adversarial_training.objective", f"{OBJECTIVES}.TRADES"),
                *("--model.adversarial_training.weight", "0.7"),
            ],
            "leave it out",
        ),
        (
            [
                *("--model.adversarial_training.objective", f"{OBJECTIVES}.TRADES"),
                *("--model.adversarial_training.attack", "prunerob.attacks.FGSM"),
            ],
            "PGD with a random start",
        ),
        (["--model.validation_attack", "prunerob.attacks.NFGSM"], "lie outside eps"),
        (["--model.fine_tuning.ramp_epochs", "-1"], "below 0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, "fit", "--config", TINY, *arguments)


def test_settings_that_make_no_sense_are_refused() -> None:
    wrong: list[Any] = [
        lambda: TRADES(beta=-1.0),
        lambda: MART(beta=float("nan")),
        lambda: ARD(alpha=2.0),
        lambda: ARD(temperature=0.0),
        lambda: RSLAD(share=-0.1),
        lambda: NFGSM(noise=0.0),
        lambda: PGD(start_std=Pixels(0.1), random_start=False),
        lambda: AdversarialTraining(attack=NoAttack(), objective=TRADES()),
        lambda: AdversarialTraining(attack=FGSM(), objective=TRADES()),
        lambda: AdversarialTraining(attack=replace(CLIMB, restarts=2), objective=TRADES()),
    ]
    for make in wrong:
        with pytest.raises(ValueError, match=r"of|objective|attack"):
            make()
