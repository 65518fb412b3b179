"""A suite of attacks on one batch; the work that they share is done once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from prunerob.attacks.attack import Attack
from prunerob.attacks.fgsm import FGSM
from prunerob.attacks.pgd import PGD


def perturb_by_each(
    attacks: Mapping[str, Attack], network: nn.Module, x: Tensor, y: Tensor, *, key: Tensor
) -> Iterator[Tensor]:
    """Attack a batch with every attack of a suite.

    One gradient serves FGSM at all its radii: in a smaller ball, FGSM's example is the largest
    ball's, moved to the nearest point of the smaller one.

    Args:
        attacks: the suite, by name.
        network: from pixels in [0, 1] to logits.
        x: images, float32, (B, C, H, W), pixels in [0, 1].
        y: true labels, int64, (B,).
        key: int64, (B,), what each image's noise is a function of.

    Yields:
        adversarial examples, float32, (B, C, H, W), of one attack after another, each made when
        it is asked for.
    """
    signs = [attack for attack in attacks.values() if type(attack) is FGSM]
    largest = {attack.label: attack for attack in sorted(signs, key=lambda attack: attack.eps)}
    edges: dict[str, Tensor] = {}
    for attack in attacks.values():
        if type(attack) is not FGSM:
            yield attack(network, x, y, key=key)
            continue
        if attack.label not in edges:
            edges[attack.label] = largest[attack.label](network, x, y, key=key)
        yield edges[attack.label].clamp(x - attack.eps, x + attack.eps)


def is_one_step(attack: Attack) -> bool:
    """Whether an attack takes a single gradient step: FGSM, or PGD of one step."""
    return isinstance(attack, FGSM) or (isinstance(attack, PGD) and attack.steps == 1)
