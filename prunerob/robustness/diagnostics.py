"""How far a test can be trusted: is there a gradient, has it converged, is an attack too weak?

What a careful reviewer asks of a robust accuracy (Carlini et al., "On Evaluating Adversarial
Robustness", arXiv:1902.06705; Athalye et al., arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunerob.attacks import Attack
from prunerob.attacks.attack import input_gradient, misclassified
from prunerob.networks.modes import evaluating
from prunerob.robustness.table import Convergence, Robustness, Scrutiny
from prunerob.statistics import SIGNIFICANT, mcnemar

FACTOR = 5
"""How many times the work an attack is tried with."""
UNCONVERGED = 0.01
"""Accuracy that it may lose with more work before it has not converged; 3 images anyway."""
ZERO_GRADIENTS = 0.01
"""Share of images without a gradient from which on there is a warning."""


def scrutinize(
    network: nn.Module,
    suite: Mapping[str, Attack],
    x: Tensor,
    y: Tensor,
    *,
    key: Tensor,
) -> Scrutiny:
    """Try the attacks of a suite harder on a batch.

    Args:
        network: from pixels in [0, 1] to logits, in evaluation mode; left exactly as it was
            found.
        suite: the attacks, by name.
        x: images, float32, (B, C, H, W), pixels in [0, 1].
        y: true labels, int64, (B,).
        key: int64, (B,), what each image's noise is a function of: that of the test.

    Returns:
        what was seen.
    """

    def right(attack: Attack) -> int:
        wrong = misclassified(network, attack(network, x, y, key=key), y)
        return len(y) - int(wrong.sum())

    with evaluating(network), torch.inference_mode(False), torch.enable_grad():
        gradient, _ = input_gradient(network, x.clone(), y.clone(), torch.float32)
    flat = int((gradient.flatten(1) == 0).all(1).sum())

    convergence = [
        Convergence(
            attack=name,
            correct=right(attack),
            more={what: right(more) for what, more in harder.items()},
            factor=FACTOR,
        )
        for name, attack in suite.items()
        if (harder := attack.harder(FACTOR))
    ]
    return Scrutiny(images=len(y), zero_gradients=flat, convergence=convergence)


def sum_up(parts: Sequence[Scrutiny]) -> Scrutiny:
    """What was seen on several batches, with the same suite; one or more."""
    return Scrutiny(
        images=sum(part.images for part in parts),
        zero_gradients=sum(part.zero_gradients for part in parts),
        convergence=[
            Convergence(
                attack=first.attack,
                correct=sum(part.convergence[i].correct for part in parts),
                more={
                    what: sum(part.convergence[i].more[what] for part in parts)
                    for what in first.more
                },
                factor=first.factor,
            )
            for i, first in enumerate(parts[0].convergence)
        ],
    )


def review(robustness: Robustness, suite: Mapping[str, Attack], *, training: Attack) -> list[str]:
    """Read a test as a reviewer would, for signs that its attacks were too weak.

    Gradients that are masked make a network look more robust than it is (Athalye et al.,
    arXiv:1802.00420). Differences count where they are significant on the same images.

    Args:
        robustness: the test.
        suite: its attacks, by name.
        training: the attack that the network was trained against.

    Returns:
        warnings, a line each.
    """
    warnings = []
    for name, attack in suite.items():
        for other, weaker in suite.items():
            if attack.radius is None or attack.radius != weaker.radius:
                continue
            if attack.gradient_steps > 1 and weaker.is_one_step:
                warnings += _against_one_step(robustness, name, other, weaker, training)
            elif weaker.sees_gradients and attack.learns:
                warnings += _against_black_box(robustness, name, other)
    return warnings + _scrutiny_warnings(robustness)


def _against_one_step(
    robustness: Robustness, name: str, other: str, one_step: Attack, training: Attack
) -> list[str]:
    """What is to be said of an attack of many steps beside one of a single step."""
    both = robustness.attacked(name) & robustness.attacked(other)
    ours, theirs = (robustness.correct(attack)[both] for attack in (name, other))
    is_of_training = training.is_one_step and training.radius == one_step.radius
    if is_of_training and overfits_to_one_step(int(ours.sum()), int(theirs.sum())):
        return [
            f"catastrophic overfitting: {_percent(theirs)} under {other}, the attack of "
            f"the training, but {_percent(ours)} under {name}"
        ]
    if _is_above(ours, theirs):
        return [
            f"{name} is weaker than {other} at the same eps ({_percent(ours)} against "
            f"{_percent(theirs)} right): gradients are masked, or {name} has not converged; "
            "other attacks may leave far less"
        ]
    return []


def _against_black_box(robustness: Robustness, name: str, other: str) -> list[str]:
    """What is to be said of an attack without gradients that beats one with them."""
    both = robustness.attacked(name) & robustness.attacked(other)
    blind, seeing = (robustness.correct(attack)[both] for attack in (name, other))
    if not _is_above(seeing, blind):
        return []
    return [
        f"{name} beats {other} without a gradient ({_percent(blind)} against "
        f"{_percent(seeing)} right on the same images): gradients are masked"
    ]


def _scrutiny_warnings(robustness: Robustness) -> list[str]:
    scrutiny = robustness.scrutiny
    if scrutiny is None:
        return []
    n = scrutiny.images
    warnings = []
    for tried in scrutiny.convergence:
        results = [
            f"{tried.factor} times the {what} leave {100 * right / n:.1f} %"
            for what, right in tried.more.items()
            if tried.correct - right > max(3, UNCONVERGED * n)
        ]
        if results:
            warnings.append(
                f"{tried.attack} has not converged: of {n:,} images "
                f"{100 * tried.correct / n:.1f} % are right, {' and '.join(results)}"
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


def _is_above(a: Tensor, b: Tensor) -> bool:
    """Whether one accuracy is higher than another on the same images, beyond chance."""
    return int(a.sum()) > int(b.sum()) and mcnemar(a, b) < SIGNIFICANT


def _percent(right: Tensor) -> str:
    return f"{100 * float(right.float().mean()):.1f} %"
