"""What a careful reviewer would object to: warnings about a test, and tests of differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from prunerob.attacks import FGSM, PGD, Attack, BlackBox
from prunerob.attacks.suite import attack_class
from prunerob.pixels import Pixels
from prunerob.robustness.table import Robustness

SIGNIFICANT = 0.05
UNCONVERGED = 0.01
"""Accuracy that PGD may lose with more work before it counts as not converged; 3 images anyway."""
ZERO_GRADIENTS = 0.01
"""Share of images without a gradient from which on it is told."""

Suite = Mapping[str, Mapping[str, Any]]
"""Attacks by name as a configuration has them: `class_path` and `init_args`."""


def review(robustness: Robustness, suite: Suite, *, one_step_eps: float | None = None) -> list[str]:
    """Read a test as a reviewer would, for signs that its attacks were too weak.

    Gradients that are masked make a network look more robust than it is (Athalye et al.,
    arXiv:1802.00420). Differences count where they are significant on the same images.

    Args:
        robustness: the test.
        suite: its attacks.
        one_step_eps: radius of the single step that the network was trained against, in pixel
            units of [0, 1]; None of other training.

    Returns:
        warnings, a line each.
    """
    warnings = []
    for name, attack in _of_kind(PGD, suite).items():
        for other, one_step in _of_kind(FGSM, suite).items():
            if eps(one_step) != eps(attack):
                continue
            ours, theirs = (robustness.correct(attack) for attack in (name, other))
            is_of_training = eps(one_step) == one_step_eps
            if is_of_training and overfits_to_one_step(int(ours.sum()), int(theirs.sum())):
                warnings.append(
                    f"catastrophic overfitting: {_percent(theirs)} under {other}, the attack of "
                    f"the training, but {_percent(ours)} under {name}"
                )
            elif _is_above(ours, theirs):
                warnings.append(
                    f"{name} is weaker than {other} at the same eps ({_percent(ours)} against "
                    f"{_percent(theirs)} right): gradients are masked, or PGD has not converged; "
                    "quote the worst case"
                )
    for name, attack in _of_kind(BlackBox, suite).items():
        attacked = robustness.attacked(name)
        blind = robustness.correct(name)[attacked]
        for other, seeing in suite.items():
            if not attack_class(seeing).sees_gradients:
                continue
            both = robustness.correct(other)[attacked]
            if eps(seeing) == eps(attack) and _is_above(both, blind):
                warnings.append(
                    f"{name} beats {other} without a gradient ({_percent(blind)} against "
                    f"{_percent(both)} right on the same images): gradients are masked"
                )
    return warnings + _scrutiny_warnings(robustness)


def _of_kind(kind: type[Attack], suite: Suite) -> Suite:
    return {name: a for name, a in suite.items() if issubclass(attack_class(a), kind)}


def _scrutiny_warnings(robustness: Robustness) -> list[str]:
    scrutiny = robustness.scrutiny
    if scrutiny is None:
        return []
    n = scrutiny.images
    warnings = []
    for pgd in scrutiny.convergence:
        told = [
            f"{pgd.factor} times the {what} leave {100 * right / n:.1f} %"
            for what, right in (("steps", pgd.more_steps), ("restarts", pgd.more_restarts))
            if pgd.correct - right > max(3, UNCONVERGED * n)
        ]
        if told:
            warnings.append(
                f"{pgd.attack} has not converged: of {n:,} images {100 * pgd.correct / n:.1f} % "
                f"are right, {' and '.join(told)}"
            )
    if scrutiny.zero_gradients >= max(1, ZERO_GRADIENTS * n):
        warnings.append(
            f"the gradient is exactly 0 on {100 * scrutiny.zero_gradients / n:.1f} % of {n:,} "
            "images: FGSM does not move them, and PGD only from its random start"
        )
    return warnings


def overfits_to_one_step(robust: int, one_step: int) -> bool:
    """Whether a network has learned to resist a single step alone.

    Training against one step can collapse: accuracy under that step stays high while accuracy
    under many falls to nothing (Wong et al., arXiv:2001.03994). Told here where less than half of
    the first is left.

    Args:
        robust: images classified right under an attack of many steps.
        one_step: of the same images, those classified right under the single step.
    """
    return 2 * robust < one_step


def kind(attack: Mapping[str, Any]) -> str:
    """The name of an attack's class."""
    return str(attack["class_path"]).rsplit(".", 1)[-1]


def eps(attack: Mapping[str, Any]) -> float | None:
    """An attack's radius, in pixel units of [0, 1]; None if it has none."""
    value = attack.get("init_args", {}).get("eps")
    return None if value is None else float(Pixels(value))


def mcnemar(a: Tensor, b: Tensor) -> float:
    """The exact test of McNemar (1947): do two accuracies on the same images differ?

    Only images on which one is right and the other wrong count; if there is no difference, either
    is as likely to be the one.

    Args:
        a: classified right by one, bool, (N,).
        b: by the other, in the same order, bool, (N,).

    Returns:
        p-value, two-sided, in [0, 1].

    Example:
        >>> a = torch.tensor([True] * 10)
        >>> round(mcnemar(a, torch.tensor([False] * 6 + [True] * 4)), 4)
        0.0312
    """
    return sign_test(int((a & ~b).sum()), int((b & ~a).sum()))


def sign_test(for_a: int, for_b: int) -> float:
    """Two-sided p-value, in [0, 1], of a fair coin that fell so many times on either side."""
    n = for_a + for_b
    term = tail = 1  # ways to fall 0 times on one side; then 1, 2, ...
    for k in range(min(for_a, for_b)):
        term = term * (n - k) // (k + 1)
        tail += term
    # Integers, however large: their quotient is exact where floats would overflow.
    return min(1.0, 2 * tail / (1 << n))


def t_test(values: Sequence[float], *, resolution: float = 0.0) -> float | None:
    """Two-sided p-value, in [0, 1], of Student's t test that the mean of some values is 0.

    Args:
        values: a sample.
        resolution: the step in which values are counted: their spread is taken to be no smaller,
            as a few that coincide say nothing about those to come.

    Returns:
        None of a single value, which says nothing about others.

    Example:
        >>> round(t_test([1.0, 2.0]), 3)
        0.205
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtr  # needed by reports alone

    center, spread = mean(values), max(stdev(values), resolution)
    if spread == 0:
        return float(center == 0)
    t = center / (spread / math.sqrt(len(values)))
    return 2 * float(stdtr(len(values) - 1, -abs(t)))


def _is_above(a: Tensor, b: Tensor) -> bool:
    """Whether one accuracy is higher than another on the same images, beyond chance."""
    return int(a.sum()) > int(b.sum()) and mcnemar(a, b) < SIGNIFICANT


def _percent(right: Tensor) -> str:
    return f"{100 * float(right.float().mean()):.1f} %"
