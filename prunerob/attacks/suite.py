"""A suite of attacks on one batch; the work that they share is done once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from prunerob.attacks.attack import Attack
from prunerob.attacks.fgsm import FGSM
from prunerob.attacks.pgd import PGD
from prunerob.pixels import Pixels


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


def are_alike(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether two suites have the same attacks by the same names, with the same settings.

    A setting that one lacks, as it was written before there was a choice, stands at its default.

    Args:
        a: attacks by name as a configuration has them: `class_path` and `init_args`.
        b: another suite.
    """
    return a.keys() == b.keys() and all(_in_full(a[name]) == _in_full(b[name]) for name in a)


def is_same_test(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether two tests have the same attacks, in the table and for the worst case alone.

    Args:
        a: `attacks` and `worst_case_attacks`, as a configuration has them.
        b: those of another test.
    """
    groups = ("attacks", "worst_case_attacks")
    return all(are_alike(a.get(group, {}), b.get(group, {})) for group in groups)


def _in_full(attack: Mapping[str, Any]) -> dict[str, Any]:
    """An attack's class and settings, with the defaults of those that are not written down."""
    defaults = {f.name: f.default for f in fields(attack_class(attack)) if f.default is not MISSING}
    plain = {k: str(v) if isinstance(v, Pixels) else v for k, v in defaults.items()}
    return {**plain, **attack.get("init_args", {}), "class_path": attack["class_path"]}


def attack_class(attack: Mapping[str, Any]) -> type[Attack]:
    """The class of an attack as a configuration has it; `Attack` itself if it is not at hand."""
    module, _, name = str(attack["class_path"]).rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError):
        return Attack
    return found if isinstance(found, type) and issubclass(found, Attack) else Attack


def is_one_step(attack: Attack) -> bool:
    """Whether an attack takes a single gradient step: FGSM, or PGD of one step."""
    return isinstance(attack, FGSM) or (isinstance(attack, PGD) and attack.steps == 1)


def one_step_eps(attack: Attack) -> float | None:
    """The radius of an attack of a single gradient step, in pixel units of [0, 1], else None."""
    return float(attack.eps) if isinstance(attack, FGSM | PGD) and is_one_step(attack) else None
