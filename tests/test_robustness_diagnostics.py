"""A reviewer's eye: warnings where attacks are too weak, and none where they are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from prunerob.attacks import FGSM, PGD, Attack, BlackBox, NoAttack
from prunerob.attacks.reading import read_attack
from prunerob.networks import MnistCNN
from prunerob.pixels import Pixels
from prunerob.robustness.diagnostics import review, scrutinize
from prunerob.robustness.scrutiny import Convergence, Scrutiny
from prunerob.robustness.table import Robustness, Row


def made(**right: int) -> Robustness:
    """A test of 1,000 images of class 1, of which the first so many are right."""
    predictions = {
        name: (torch.arange(1000) < count).long() for name, count in {"clean": 990, **right}.items()
    }
    return Robustness(
        rows=(),
        searches=(),
        index=torch.arange(1000),
        label=torch.ones(1000, dtype=torch.int64),
        predictions=predictions,
        margins={name: p - 0.5 for name, p in predictions.items()},
    )


SUITE: dict[str, Attack] = {
    "fgsm": FGSM(eps=Pixels(0.3)),
    "pgd": PGD(eps=Pixels("3/10")),
    "box": BlackBox(eps=Pixels(0.3)),
}


def review_of(
    robustness: Robustness, suite: Mapping[str, Attack], training: Attack = NoAttack()
) -> list[str]:
    return review(robustness, suite, training=training)


def test_a_sound_test_has_no_warnings() -> None:
    assert review_of(made(fgsm=500, pgd=300, box=600), SUITE) == []


def test_pgd_weaker_than_fgsm_at_the_same_eps() -> None:
    (warning,) = review_of(made(fgsm=500, pgd=520, box=600), SUITE)
    assert warning.startswith("pgd is weaker than fgsm at the same eps (52.0 % against 50.0 %")
    assert review_of(made(fgsm=500, pgd=503, box=600), SUITE) == [], "three images are chance"
    smaller = {**SUITE, "fgsm": FGSM(eps=Pixels(0.1))}
    assert review_of(made(fgsm=500, pgd=520, box=600), smaller) == []


def test_a_black_box_that_beats_a_white_one() -> None:
    warnings = review_of(made(fgsm=500, pgd=300, box=400), SUITE)
    assert [w.split(" without")[0] for w in warnings] == ["box beats fgsm"]
    held = made(fgsm=500, pgd=300, box=600)
    held.predictions["box"][:500] = -1  # the attacker's own images are not compared
    assert [w.split(" without")[0] for w in review_of(held, SUITE)] == []


@dataclass(frozen=True, kw_only=True)
class Follower(Attack):
    """An attack of one's own that follows gradients, with a radius."""

    eps: float = 0.3
    rounds: int = 3

    @property
    def gradient_steps(self) -> int:
        return self.rounds

    def harder(self, factor: int) -> Mapping[str, Attack]:
        return {"rounds": replace(self, rounds=factor * self.rounds)}

    def perturb(self, network: Any, x: Tensor, y: Tensor, eps: Any, key: Any) -> Tensor:
        return PGD(eps=Pixels(self.eps), step_size=Pixels(0.01), steps=self.rounds).perturb(
            network, x, y, eps, key
        )


def test_any_attack_that_sees_gradients_should_beat_a_black_box() -> None:
    own = read_attack({"class_path": f"{__name__}.Follower", "init_args": {"eps": 0.3}})
    assert own == Follower()
    suite = {"box": SUITE["box"], "own": own}
    assert len(review_of(made(own=600, box=500), suite)) == 1
    assert review_of(made(own=600, box=500), {**suite, "own": SUITE["box"]}) == []


def test_an_attack_of_one_s_own_is_reviewed_like_prunerob_s(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    found = scrutinize(trained, {"own": Follower()}, x, y, key=torch.arange(60))
    (own,) = found.convergence
    assert own.more.keys() == {"rounds"}
    assert own.more["rounds"] < own.correct - 5, "3 steps of 0.01 do not cross a ball of 0.3"
    (warning,) = review_of(replace(made(), scrutiny=found), {"own": Follower()})
    assert warning.startswith("own has not converged: of 60 images")
    assert "5 times the rounds leave" in warning
    suite = {"fgsm": SUITE["fgsm"], "own": Follower()}
    (warning,) = review_of(made(fgsm=500, own=520), suite)
    assert warning.startswith("own is weaker than fgsm at the same eps")
    (warning,) = review_of(made(fgsm=850, own=5), suite, FGSM(eps=Pixels(0.3)))
    assert warning.startswith("catastrophic overfitting: 85.0 % under fgsm")


def test_catastrophic_overfitting() -> None:
    suite = {name: SUITE[name] for name in ("fgsm", "pgd")}
    (warning,) = review_of(made(fgsm=850, pgd=5), suite, FGSM(eps=Pixels(0.3)))
    assert warning.startswith("catastrophic overfitting: 85.0 % under fgsm")
    assert review_of(made(fgsm=850, pgd=5), suite) == []
    assert review_of(made(fgsm=850, pgd=800), suite, FGSM(eps=Pixels(0.3))) == []
    (warning,) = review_of(made(fgsm=850, pgd=860), suite, FGSM(eps=Pixels(0.1)))
    assert "catastrophic" not in warning
    assert review_of(made(fgsm=850, pgd=5), suite, FGSM(eps=Pixels(0.1))) == [], (
        "trained against less"
    )


def test_attacks_that_more_work_would_strengthen_and_zero_gradients() -> None:
    def scrutiny(more_steps: int, more_restarts: int, zero: int) -> Scrutiny:
        pgd = Convergence(
            attack="pgd",
            correct=300,
            more={"steps": more_steps, "restarts": more_restarts},
            factor=5,
        )
        return Scrutiny(images=500, zero_gradients=zero, convergence=[pgd])

    def told(*counts: int) -> list[str]:
        return review_of(replace(made(), scrutiny=scrutiny(*counts)), {})

    assert told(295, 296, 4) == []
    (warning,) = told(250, 300, 0)
    assert warning == (
        "pgd has not converged: of 500 images 60.0 % are right, 5 times the steps leave 50.0 %"
    )
    assert "restarts leave 40.0 %" in told(300, 200, 0)[0]
    assert told(300, 300, 50)[0].startswith("the gradient is exactly 0 on 10.0 % of 500 images")


class Saturated(nn.Module):
    """A network so sure that the loss is exactly 0 in float32, and so is its gradient."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return self.scale * logits


def test_scrutiny_sees_flat_losses_and_short_attacks(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:100], digits[1][:100]
    key = torch.arange(100)
    # 5 steps of 0.01 do not cross a ball of 0.3.
    suite = {"pgd": PGD(steps=5, random_start=False), "fgsm": FGSM(eps=Pixels(0.3))}
    parts = torch.split(key, 30)
    sound = Scrutiny.sum_of([scrutinize(trained, suite, x[p], y[p], key=key[p]) for p in parts])
    assert (sound.images, sound.zero_gradients) == (100, 0)
    (pgd,) = sound.convergence
    assert pgd.attack == "pgd"
    assert pgd.more["steps"] < pgd.correct - 10
    assert pgd.more["restarts"] <= pgd.correct + 5
    flat = scrutinize(Saturated(trained, 1e4), {}, x, y, key=key)
    with torch.no_grad():
        right = int((trained(x).argmax(1) == y).sum())
    assert flat.zero_gradients > 0.9 * right


class Planted(nn.Module):
    """A network with something in it that attacks stumble over."""

    def __init__(self, network: nn.Module, fault: str) -> None:
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "quantised":
            x = (3 * x).round() / 3
        if self.fault == "detached":
            x = x.detach()
        logits: Tensor = self.network(x)
        if self.fault == "argmax":
            return F.one_hot(logits.argmax(1), 10).float()
        if self.fault == "scaled":
            return 100 * logits
        if self.fault == "noisy":
            return logits + 0.5 * torch.randn_like(logits)
        if self.fault == "softmax":
            return logits.softmax(1)
        if self.fault == "autograd":
            with torch.enable_grad():
                seen = x.detach().requires_grad_()
                return logits + torch.autograd.grad(seen.sum(), seen)[0].mean()
        return logits


LOOPED: dict[str, Attack] = {"pgd": PGD(eps=Pixels(0.3), step_size=Pixels(0.05), steps=10)}


@pytest.mark.parametrize(
    ("fault", "alarm"),
    [
        ("argmax", "lets no gradient through"),
        ("scaled", "does not raise the loss"),
        ("quantised", "lets no gradient through"),
        ("noisy", "answers change from call to call"),
        ("detached", "lets no gradient through"),
        ("softmax", "look like probabilities"),
        ("autograd", "calls autograd"),
    ],
)
def test_planted_failures_raise_their_alarms(
    fault: str, alarm: str, trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    network = Planted(trained, fault).eval()
    found = scrutinize(network, LOOPED, x, y, key=torch.arange(60))
    warnings = review_of(replace(made(), scrutiny=found), LOOPED)
    assert any(alarm in warning for warning in warnings), warnings


def test_examples_of_the_network_before_pruning_that_beat_the_white_box_raise_an_alarm(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    alarm = "its examples against the network before pruning"
    for network, is_masked in ((Planted(trained, "scaled"), True), (trained, False)):
        found = scrutinize(network.eval(), LOOPED, x, y, key=torch.arange(60), before=trained)
        (tried,) = found.convergence
        assert tried.transferred is not None
        assert (tried.correct - tried.transferred > 3) == is_masked
        warnings = review_of(replace(made(), scrutiny=found), LOOPED)
        assert any(alarm in warning for warning in warnings) == is_masked, warnings
        assert Scrutiny.from_plain(json.loads(json.dumps(found.to_plain()))) == found


def test_three_steps_as_the_only_attack_raise_an_alarm(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    only: dict[str, Attack] = {"pgd": PGD(steps=3, step_size=Pixels(0.01), random_start=False)}
    found = scrutinize(trained, only, x, y, key=torch.arange(60))
    warnings = review_of(replace(made(), scrutiny=found), only)
    assert any("has not converged" in warning for warning in warnings), warnings


ZOO = Path(__file__).parent.parent / "zoo"
HONEST = (
    "standard_dense",
    "standard_control",
    "standard_weight-0.98",
    "standard_tuned_weight-0.98",
    "fgsm_dense",
)


@pytest.mark.parametrize("name", [*HONEST, "trained"])
def test_honest_networks_raise_none(
    name: str, trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    network: nn.Module = trained
    if name != "trained":
        network = MnistCNN()
        network.load_state_dict(load_file(ZOO / f"mnist_{name}.safetensors"))
    x, y = digits[0][:100], digits[1][:100]
    found = scrutinize(network.eval(), LOOPED, x, y, key=torch.arange(100))
    assert review_of(replace(made(), scrutiny=found), LOOPED) == []
    assert Scrutiny.from_plain(json.loads(json.dumps(found.to_plain()))) == found


def test_a_last_part_without_gradients_that_takes_many_raises_an_alarm() -> None:
    def row(*left: int) -> Row:
        parts = dict(zip(("none", "APGD-CE", "APGD-T", "FAB-T", "Square"), left, strict=True))
        return Row(attack="AutoAttack", correct=left[-1], images=1000, seconds=1.0, left=parts)

    def told(*left: int) -> list[str]:
        return review_of(replace(made(), rows=[row(*left)]), {})

    assert told(990, 900, 890, 880, 877) == []
    (warning,) = told(990, 900, 890, 880, 700)
    assert "Square, takes 180 of 880 images" in warning
