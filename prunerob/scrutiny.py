"""Looking an attack in the teeth: do gradients point anywhere, has PGD converged?

What a careful reviewer asks of a robust accuracy (Carlini et al., "On Evaluating Adversarial
Robustness", arXiv:1902.06705; Athalye et al., arXiv:1802.00420), measured on a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunerob.attacks import PGD, Attack
from prunerob.attacks.attack import evaluating, input_gradient, misclassified
from prunerob.robustness import Convergence, Scrutiny

FACTOR = 5
"""How many times the steps, and the restarts, PGD is tried with."""


def scrutinize(
    network: nn.Module,
    suite: Mapping[str, Attack],
    x: Tensor,
    y: Tensor,
    *,
    key: Tensor,
    batch_size: int,
) -> Scrutiny:
    """Try the attacks of a suite harder on some images.

    Args:
        network: from pixels in [0, 1] to logits; left exactly as it was found.
        suite: the attacks, by name.
        x: images, float32, (N, C, H, W), pixels in [0, 1].
        y: true labels, int64, (N,).
        key: int64, (N,), what each image's noise is a function of: that of the test.
        batch_size: images to attack at a time.

    Returns:
        what was seen.
    """
    x, y, key = (tensor.clone() for tensor in (x, y, key))
    parts = torch.split(torch.arange(len(y), device=y.device), batch_size)

    def right(attack: Attack) -> int:
        wrong = [
            misclassified(network, attack(network, x[p], y[p], key=key[p]), y[p]) for p in parts
        ]
        return len(y) - int(torch.cat(wrong).sum())

    flat = 0
    with evaluating(network), torch.inference_mode(False), torch.enable_grad():
        for p in parts:
            gradient, _ = input_gradient(network, x[p].clone(), y[p].clone(), torch.float32)
            flat += int((gradient.flatten(1) == 0).all(1).sum())

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
