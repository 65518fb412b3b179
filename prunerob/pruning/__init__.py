"""Pruning: criteria score, budgets share out, masks decide and hold, the callback says when."""

from prunerob.pruning.callback import Pruning
from prunerob.pruning.criteria import (
    filter_l1,
    random_filters,
    random_weights,
    weight_magnitude,
)
from prunerob.pruning.learned_rates import FilterHarp, Harp
from prunerob.pruning.learned_scores import FilterHydra, Hydra
from prunerob.pruning.magnitude import lamp
from prunerob.pruning.saliency import FilterTaylor, Taylor
from prunerob.pruning.schedules import Gradual, Iterative, OneShot, PruningSchedule

__all__ = [
    "FilterHarp",
    "FilterHydra",
    "FilterTaylor",
    "Gradual",
    "Harp",
    "Hydra",
    "Iterative",
    "OneShot",
    "Pruning",
    "PruningSchedule",
    "Taylor",
    "filter_l1",
    "lamp",
    "random_filters",
    "random_weights",
    "weight_magnitude",
]
