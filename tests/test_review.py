"""A reviewer's eye: warnings where attacks are too weak, and none where they are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp
from torch import Tensor, nn

from prunerob.attacks import FGSM, PGD, Attack
from prunerob.networks import MnistCNN
from prunerob.pixels import Pixels
from prunerob.robustness.diagnostics import SIGNIFICANT, mcnemar, review, sign_test, t_test
from prunerob.robustness.scrutiny import scrutinize, sum_up
from prunerob.robustness.table import Convergence, Robustness, Scrutiny


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_paired_test_is_the_exact_binomial_one(a: int, b: int) -> None:
    expected = binomtest(a, a + b).pvalue if a + b else 1.0
    assert sign_test(a, b) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_only_images_on_which_they_differ_count(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert mcnemar(a, b) == mcnemar(b, a)
    both = torch.ones(100, dtype=torch.bool)
    assert mcnemar(torch.cat([a, both]), torch.cat([b, both])) == mcnemar(a, b)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_the_test_over_seeds_is_student_s(values: list[float]) -> None:
    if len(set(values)) > 1 and torch.tensor(values).std() > 1e-6:
        assert t_test(values) == pytest.approx(ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)


def test_a_test_over_seeds_at_its_ends() -> None:
    assert t_test([0.3]) is None, "one says nothing about others"
    assert t_test([0.0, 0.0]) == 1
    assert t_test([0.1, 0.1]) == 0
    coincide = t_test([0.001, 0.001], resolution=0.001)
    assert coincide is not None
    assert coincide > SIGNIFICANT, "two counts that coincide are no proof"
    apart = t_test([0.05, 0.05], resolution=0.0001)
    assert apart is not None
    assert apart < SIGNIFICANT


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


def attack(name: str, eps: str) -> dict[str, Any]:
    return {"class_path": f"prunerob.attacks.{name}", "init_args": {"eps": eps}}


SUITE = {
    "fgsm": attack("FGSM", "0.3"),
    "pgd": attack("PGD", "3/10"),
    "box": attack("BlackBox", "0.3"),
}


def test_a_sound_test_has_no_warnings() -> None:
    assert review(made(fgsm=500, pgd=300, box=600), SUITE) == []


def test_pgd_weaker_than_fgsm_at_the_same_eps() -> None:
    (warning,) = review(made(fgsm=500, pgd=520, box=600), SUITE)
    assert warning.startswith("pgd is weaker than fgsm at the same eps (52.0 % against 50.0 %")
    assert review(made(fgsm=500, pgd=503, box=600), SUITE) == [], "three images are chance"
    smaller = {**SUITE, "fgsm": attack("FGSM", "0.1")}
    assert review(made(fgsm=500, pgd=520, box=600), smaller) == []


def test_a_black_box_that_beats_a_white_one() -> None:
    warnings = review(made(fgsm=500, pgd=300, box=400), SUITE)
    assert [w.split(" without")[0] for w in warnings] == ["box beats fgsm"]
    held = made(fgsm=500, pgd=300, box=600)
    held.predictions["box"][:500] = -1  # the attacker's own images are not compared
    assert [w.split(" without")[0] for w in review(held, SUITE)] == []


class Follower(Attack):
    """An attack of one's own that follows gradients, with a radius."""

    sees_gradients = True

    def perturb(self, *args: Any) -> Any:
        raise NotImplementedError


def test_any_attack_that_sees_gradients_should_beat_a_black_box() -> None:
    suite = {"box": SUITE["box"], "own": attack("FGSM", "0.3")}
    suite["own"]["class_path"] = f"{__name__}.Follower"
    assert len(review(made(own=600, box=500), suite)) == 1
    suite["own"]["class_path"] = "prunerob.attacks.black_box.BlackBox"
    assert review(made(own=600, box=500), suite) == []


def test_catastrophic_overfitting() -> None:
    suite = {name: SUITE[name] for name in ("fgsm", "pgd")}
    (warning,) = review(made(fgsm=850, pgd=5), suite, one_step_eps=0.3)
    assert warning.startswith("catastrophic overfitting: 85.0 % under fgsm")
    assert review(made(fgsm=850, pgd=5), suite) == []
    assert review(made(fgsm=850, pgd=800), suite, one_step_eps=0.3) == []
    (warning,) = review(made(fgsm=850, pgd=860), suite, one_step_eps=0.1)
    assert "catastrophic" not in warning
    assert review(made(fgsm=850, pgd=5), suite, one_step_eps=0.1) == [], "trained against less"


def test_attacks_that_more_work_would_strengthen_and_zero_gradients() -> None:
    def scrutiny(more_steps: int, more_restarts: int, zero: int) -> Scrutiny:
        pgd = Convergence(
            attack="pgd",
            correct=300,
            more_steps=more_steps,
            more_restarts=more_restarts,
            factor=5,
        )
        return Scrutiny(images=500, zero_gradients=zero, convergence=[pgd])

    def told(*counts: int) -> list[str]:
        return review(replace(made(), scrutiny=scrutiny(*counts)), {})

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
    sound = sum_up([scrutinize(trained, suite, x[p], y[p], key=key[p]) for p in parts])
    assert (sound.images, sound.zero_gradients) == (100, 0)
    (pgd,) = sound.convergence
    assert pgd.attack == "pgd"
    assert pgd.more_steps < pgd.correct - 10
    assert pgd.more_restarts <= pgd.correct + 5
    flat = scrutinize(Saturated(trained, 1e4), {}, x, y, key=key)
    with torch.no_grad():
        right = int((trained(x).argmax(1) == y).sum())
    assert flat.zero_gradients > 0.9 * right
