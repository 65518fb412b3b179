"""Attacks as configurations and result files have them, read into objects; nothing is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from prunerob.attacks.attack import Attack
from prunerob.errors import UserError


@dataclass(frozen=True)
class Unknown(Attack):
    """An attack that a file names and that is not at hand: it can be compared, but not run.

    Args:
        class_path: import path of its class.
        init_args: its settings, in plain values.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Its class's."""
        return self.class_path.rpartition(".")[2]

    def without_seed(self) -> Attack:
        """The same without its seed."""
        settings = {key: value for key, value in self.init_args.items() if key != "seed"}
        return Unknown(self.class_path, settings)

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Refuse: its class is not here."""
        raise UserError(f"{self.class_path} is not at hand")


def read_attack(record: object) -> Attack:
    """Read one attack.

    Settings that are not written down have their defaults. The class is looked for in prunerob and
    among what the program has imported by itself: a file must not make it import anything.

    Args:
        record: `class_path` and `init_args`, in plain values.

    Returns:
        the attack; `Unknown` if there is no such class at hand, or it refuses the settings.

    Raises:
        UserError: the record is not one of an attack.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("class_path"), str):
        raise UserError(f"not an attack: {str(record)[:60]!r}")
    class_path, settings = record["class_path"], record.get("init_args") or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"not an attack's settings: {str(settings)[:60]!r}")
    known = _find_class(class_path)
    if known is not None:
        try:
            return known(**settings)
        except (TypeError, ValueError):
            pass  # of another version
    return Unknown(class_path, dict(settings))


def _find_class(class_path: str) -> type[Attack] | None:
    """An attack's class, if it is at hand."""
    module, _, name = class_path.rpartition(".")
    if module == "prunerob.attacks":
        import_module(module)
    candidate = getattr(sys.modules.get(module), name, None)
    is_attack = isinstance(candidate, type) and issubclass(candidate, Attack)
    return candidate if is_attack else None
