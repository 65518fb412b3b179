"""Train, prune and attack image classifiers: what does compression do to robustness?

The names below are the library's face; each is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunerob.attacks import APGD, FAB, FGSM, PGD, AutoAttack, Square
    from prunerob.networks.narrow import narrow
    from prunerob.pruning.hold_masks import HoldMasks
    from prunerob.pruning.pruned import Pruned, prune
    from prunerob.robustness.evaluation import evaluate
    from prunerob.robustness.table import Robustness
    from prunerob.runs.loading import load

__version__ = "0.1.0"

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "PGD",
    "AutoAttack",
    "HoldMasks",
    "Pruned",
    "Robustness",
    "Square",
    "evaluate",
    "load",
    "narrow",
    "prune",
]

_HOMES = {
    **dict.fromkeys(("APGD", "FAB", "FGSM", "PGD", "AutoAttack", "Square"), "prunerob.attacks"),
    **dict.fromkeys(("Pruned", "prune"), "prunerob.pruning.pruned"),
    "HoldMasks": "prunerob.pruning.hold_masks",
    "Robustness": "prunerob.robustness.table",
    "evaluate": "prunerob.robustness.evaluation",
    "load": "prunerob.runs.loading",
    "narrow": "prunerob.networks.narrow",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'prunerob' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
