"""Looking an attack in the teeth: do gradients point anywhere, has PGD converged?

What a careful reviewer asks of a robust accuracy (Carlini et al., "On Evaluating Adversarial
Robustness", arXiv:1902.06705; Athalye et al., arXiv:1802.00420), measured on a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunerob.attacks import PGD, Attack
from prunerob.attacks.attack import evaluating, input_gradient, misclassified
from prunerob.robustness.table import Convergence, Scrutiny

FACTOR = 5
"""How many times the steps, and the restarts, PGD is tried with."""


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
            more_steps=right(replace(attack, steps=FACTOR * attack.steps)),
            more_restarts=right(
                replace(attack, restarts=FACTOR * attack.restarts, random_start=True)
            ),
            factor=FACTOR,
        )
        for name, attack in suite.items()
        if isinstance(attack, PGD)
    ]
    return Scrutiny(images=len(y), zero_gradients=flat, convergence=convergence)


def sum_up(parts: Sequence[Scrutiny]) -> Scrutiny:
    """What was seen on several batches, with the same suite; one or more."""
    first = parts[0]
    return Scrutiny(
        images=sum(part.images for part in parts),
        zero_gradients=sum(part.zero_gradients for part in parts),
        convergence=[
            Convergence(
                attack=pgd.attack,
                correct=sum(part.convergence[i].correct for part in parts),
                more_steps=sum(part.convergence[i].more_steps for part in parts),
                more_restarts=sum(part.convergence[i].more_restarts for part in parts),
                factor=pgd.factor,
            )
            for i, pgd in enumerate(first.convergence)
        ],
    )
