"""A suite: the attacks of a test by their names, and the work that they share on a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from prunerob.attacks.attack import Attack
from prunerob.attacks.reading import read_attack
from prunerob.pixels import Pixels


@dataclass(frozen=True)
class Suite:
    """What a test attacks with; two are equal if their attacks are, name by name.

    Args:
        attacks: each under the name of its row in the table.
        worst_case_attacks: those that count in the worst case alone.
    """

    attacks: Mapping[str, Attack] = field(default_factory=dict)
    worst_case_attacks: Mapping[str, Attack] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Suite:
        """The suite of a configuration's `model`, or of a result file's `suite`.

        Args:
            record: `attacks` and `worst_case_attacks`, in plain values.

        Raises:
            UserError: it is not what a configuration has.
        """
        groups = ("attacks", "worst_case_attacks")
        return cls(*(_read_attacks(record.get(group) or {}) for group in groups))


def _read_attacks(record: Mapping[str, Any]) -> dict[str, Attack]:
    return {str(name): read_attack(attack) for name, attack in record.items()}


def perturb_by_each(
    attacks: Mapping[str, Attack], network: nn.Module, x: Tensor, y: Tensor, *, key: Tensor
) -> Iterator[Tensor]:
    """Attack a batch with every attack of a suite.

    Attacks that differ in their radius alone and whose examples are projections (FGSM) are made
    once, in the largest ball.

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
    projected = [attack for attack in attacks.values() if attack.is_projected]
    by_radius = sorted(projected, key=lambda attack: attack.radius or 0.0)
    largest = {_without_radius(attack): attack for attack in by_radius}
    edges: dict[Attack, Tensor] = {}
    for attack in attacks.values():
        if not attack.is_projected:
            yield attack(network, x, y, key=key)
            continue
        alike = _without_radius(attack)
        if alike not in edges:
            edges[alike] = largest[alike](network, x, y, key=key)
        radius = attack.radius or 0.0
        yield edges[alike].clamp(x - radius, x + radius)


def _without_radius(attack: Attack) -> Attack:
    return replace(attack, **{"eps": Pixels(0)})
