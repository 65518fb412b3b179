"""How far a test can be trusted: is there a gradient, has it converged, is an attack too weak?

What a careful reviewer asks of a robust accuracy (Carlini et al., "On Evaluating Adversarial
Robustness", arXiv:1902.06705; Athalye et al., arXiv:1802.00420).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.attacks import Attack
from prunerob.attacks.attack import input_gradient
from prunerob.attacks.pgd import logit_margin
from prunerob.networks.modes import evaluating
from prunerob.robustness.scrutiny import Behaviour, Convergence, Scrutiny
from prunerob.robustness.table import Robustness, Row
from prunerob.statistics import SIGNIFICANT, mcnemar

FACTOR = 5
"""How many times the work an attack is tried with."""
UNCONVERGED = 0.01
"""Accuracy that it may lose with more work before it has not converged; 3 images anyway."""
ZERO_GRADIENTS = 0.01
"""Share of images without a gradient from which on there is a warning."""
NOT_RISING = 0.1
"""Share of images whose loss an attack does not raise before there is a warning."""
UNBOUNDED = 0.05
"""Accuracy that may be left at eps 1 before there is a warning."""
BLIND = 0.002
"""Share of images that Square may find after gradients: AutoAttack's own flag; 3 images anyway."""
CALLS, SAME = 5, 1e-4
"""How often a network is asked for the same answer, and how much a logit may move, as there."""


def scrutinize(
    network: nn.Module,
    suite: Mapping[str, Attack],
    x: Tensor,
    y: Tensor,
    *,
    key: Tensor,
    before: nn.Module | None = None,
) -> Scrutiny:
    """Try the attacks of a suite harder on a batch.

    Args:
        network: from pixels in [0, 1] to logits, in evaluation mode; left exactly as it was
            found.
        suite: the attacks, by name.
        x: images, float32, (B, C, H, W), pixels in [0, 1].
        y: true labels, int64, (B,).
        key: int64, (B,), what each image's noise is a function of: that of the test.
        before: the network before pruning, whose adversarial examples are tried on this one.

    Returns:
        what was seen.
    """
    with evaluating(network), torch.inference_mode(False), torch.enable_grad():
        gradient, logits = input_gradient(network, x.clone(), y.clone(), torch.float32)
        of_margin = _margin_gradient(network, x.clone(), y.clone())
        behaviour = Behaviour(
            right=int((logits.argmax(1) == y).sum()),
            random=_random(network, x),
            probabilities=_probabilities(logits),
            uses_autograd=len(y) if _uses_autograd(network, x[:1].clone()) else 0,
            zero_margin_gradients=_zeros(of_margin),
        )
    convergence = [
        _try_harder(name, attack, harder, network, x, y, key, before)
        for name, attack in suite.items()
        if (harder := attack.harder(FACTOR))
    ]
    return Scrutiny(
        images=len(y),
        zero_gradients=_zeros(gradient),
        convergence=convergence,
        behaviour=behaviour,
    )


def _try_harder(
    name: str,
    attack: Attack,
    harder: Mapping[str, Attack],
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    key: Tensor,
    before_pruning: nn.Module | None,
) -> Convergence:
    """See whether an attack does what it could."""

    def answers(x: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(network):
            logits: Tensor = network(x)
        return logits.float()

    def right(attack: Attack) -> int:
        return int((answers(attack(network, x, y, key=key)).argmax(1) == y).sum())

    before, after = answers(x), answers(attack(network, x, y, key=key))
    was_right = before.argmax(1) == y
    losses = [F.cross_entropy(logits, y, reduction="none") for logits in (before, after)]
    anything = attack(network, x, y, eps=torch.ones_like(losses[0]), key=key)
    transferred = None
    if before_pruning is not None:
        with evaluating(before_pruning):
            theirs = attack(before_pruning, x, y, key=key)
        transferred = int((answers(theirs).argmax(1) == y).sum())
    found = attack.fools(network, x, y, key=key, batch_size=len(y))
    return Convergence(
        attack=name,
        correct=int((after.argmax(1) == y).sum()),
        more={what: right(more) for what, more in harder.items()},
        factor=FACTOR,
        found=int((~found & (after.argmax(1) == y)).sum()),
        not_rising=int((was_right & ~(losses[1] > losses[0])).sum()),
        unbounded=int((answers(anything).argmax(1) == y).sum()),
        transferred=transferred,
    )


def _zeros(gradient: Tensor) -> int:
    """How many images have a gradient of exactly 0."""
    return int((gradient.flatten(1) == 0).all(1).sum())


def _margin_gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's margin with respect to its pixels, as x; 0 without a graph."""
    x = x.requires_grad_()
    margins = logit_margin(network(x).float(), y)
    if not margins.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(margins.sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


@torch.no_grad()
def _random(network: nn.Module, x: Tensor) -> int:
    """On how many images answers change from call to call."""
    calls = torch.stack([network(x).float() for _ in range(CALLS)])
    moved = (calls - calls[0]).abs().flatten(2).amax((0, 2)) > SAME
    return int((moved | (calls.argmax(2) != calls[0].argmax(1)).any(0)).sum())


def _probabilities(logits: Tensor) -> int:
    """For how many images the answers look like probabilities, not like logits."""
    return int(((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)).sum())


def _uses_autograd(network: nn.Module, x: Tensor) -> bool:
    """Whether a network calls autograd to answer."""
    called = []

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(True)
            return original(*args, **kwargs)

        return call

    with (
        patch.object(torch.autograd, "grad", noted(torch.autograd.grad)),
        patch.object(torch.autograd, "backward", noted(torch.autograd.backward)),
    ):
        network(x)
    return bool(called)


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
    if is_above(ours, theirs):
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
    if not is_above(seeing, blind):
        return []
    return [
        f"{name} beats {other} without a gradient ({_percent(blind)} against "
        f"{_percent(seeing)} right on the same images): gradients are masked"
    ]


def is_blindly_beaten(row: Row) -> bool:
    """Whether the last of an attack's parts, which sees no gradients, takes much that others leave.

    As AutoAttack's Square does of a network that hides its gradients.
    """
    if not row.left:
        return False
    before, after = list(row.left.values())[-2:]
    return before - after > max(3, BLIND * row.images)


def _parts_warnings(row: Row) -> list[str]:
    """What is to be said of an attack in parts: the last of AutoAttack's sees no gradients."""
    if not is_blindly_beaten(row):
        return []
    (_, before), (last, after) = list(row.left.items())[-2:]
    return [
        f"{row.attack}: its last part, {last}, takes {before - after} of {before} images that "
        "those with gradients leave: gradients are masked"
    ]


def _behaviour_warnings(behaviour: Behaviour, n: int) -> list[str]:
    warnings = []
    if behaviour.random:
        warnings.append(
            f"answers change from call to call on {behaviour.random:,} of {n:,} images: the "
            "network draws at random, so that these accuracies are one draw's, and attacks, which "
            "see one draw at a time, too weak"
        )
    if behaviour.probabilities > n / 2:
        warnings.append(
            f"answers look like probabilities on {behaviour.probabilities:,} of {n:,} images, but "
            "attacks take logits: leave the softmax out of the network"
        )
    if behaviour.uses_autograd:
        warnings.append(
            "the network calls autograd to answer: gradients through it may be wrong, and those "
            "attacks too weak that follow them"
        )
    if behaviour.zero_margin_gradients >= max(1, ZERO_GRADIENTS * n):
        warnings.append(
            f"the gradient of the margin is exactly 0 on "
            f"{100 * behaviour.zero_margin_gradients / n:.1f} % of {n:,} images: something in the "
            "network lets no gradient through, and only attacks without gradients say anything"
        )
    return warnings


def _blindness_warnings(tried: Convergence, n: int, right: int) -> list[str]:
    """What is to be said of an attack that does not do what it could."""
    warnings = []
    if tried.not_rising is not None and tried.not_rising > max(3, NOT_RISING * right):
        warnings.append(
            f"{tried.attack} does not raise the loss on {tried.not_rising:,} of {right:,} images: "
            "it sees no gradient worth following"
        )
    if tried.found is not None and tried.correct - tried.found > max(3, UNCONVERGED * n):
        warnings.append(
            f"{tried.attack} returns less than it finds: {100 * tried.correct / n:.1f} % of {n:,} "
            f"images are right on its last iterate, {100 * tried.found / n:.1f} % on all of them"
        )
    if tried.unbounded is not None and tried.unbounded > max(3, UNBOUNDED * n):
        warnings.append(
            f"{tried.attack} leaves {100 * tried.unbounded / n:.1f} % of {n:,} images right even "
            "where it may change every pixel at will (eps 1): it does not find what is there"
        )
    if tried.transferred is not None and tried.correct - tried.transferred > max(
        3, UNCONVERGED * n
    ):
        warnings.append(
            f"{tried.attack} leaves {100 * tried.correct / n:.1f} % of {n:,} images right, its "
            f"examples against the network before pruning {100 * tried.transferred / n:.1f} %: "
            "gradients are masked"
        )
    return warnings


def _scrutiny_warnings(robustness: Robustness) -> list[str]:
    warnings = [warning for row in robustness.rows for warning in _parts_warnings(row)]
    scrutiny = robustness.scrutiny
    if scrutiny is None:
        return warnings
    n = scrutiny.images
    if scrutiny.behaviour is not None:
        warnings += _behaviour_warnings(scrutiny.behaviour, n)
    for tried in scrutiny.convergence:
        right = scrutiny.behaviour.right if scrutiny.behaviour else n
        warnings += _blindness_warnings(tried, n, right)
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


def is_above(a: Tensor, b: Tensor) -> bool:
    """Whether one accuracy is higher than another on the same images, beyond chance."""
    return int(a.sum()) > int(b.sum()) and mcnemar(a, b) < SIGNIFICANT


def _percent(right: Tensor) -> str:
    return f"{100 * float(right.float().mean()):.1f} %"
