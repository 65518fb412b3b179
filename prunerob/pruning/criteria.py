"""Criteria: pure functions from a network to a score for each thing that may be pruned.

A criterion is called as `criterion(network, seed)` and returns scores by parameter name. A score
per weight (the parameter's shape) prunes weights, a score per output channel (a vector) prunes
filters; what scores lowest goes first. Scores of all layers are ranked together, so they must be
comparable across layers.

It may have keyword parameters, which are found by their names:

- `batches`, a `prunerob.pruning.batches.ScoringBatches`: the run's training batches, clean and
  adversarial;
- `masks`, a function from scores to the masks that the run's settings make of them;
- `amount`, the share to prune;
- `names`, those of the weights of the layers that may go.

One that asks for any of them is not called before training, and says by an attribute `unit`,
"weights" or "filters", what it scores. A criterion with settings is a frozen dataclass with such a
`__call__`. Each leaves the network as it found it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunerob.noise import image_keys, uniform
from prunerob.pruning.learned_rates import FilterHarp, Harp
from prunerob.pruning.learned_scores import FilterHydra, Hydra
from prunerob.pruning.magnitude import lamp
from prunerob.pruning.saliency import FilterTaylor, Taylor
from prunerob.pruning.scores import Criterion, Scores, filters_of, weights_of


def weight_magnitude(network: nn.Module, seed: int) -> Scores:
    """Magnitude of each weight, over all layers: "class-blinded" (See et al., arXiv:1606.09274).

    Args:
        network: its convolutions and linear layers take part, biases and normalisations do not.
        seed: not used.

    Returns:
        scores, float, in each weight's shape.
    """
    return {name: weight.detach().abs() for name, weight in weights_of(network)}


def filter_l1(network: nn.Module, seed: int) -> Scores:
    """Mean magnitude of each filter's weights, comparable across layers of different sizes.

    The l1 norm of Li et al. (arXiv:1608.08710) divided by the filter's number of weights, as in
    Wang et al. (2018).

    Args:
        network: any whose channels are known; see `prunerob.networks.channels`.
        seed: not used.

    Returns:
        scores, float, (filters,) per convolution.
    """
    return {name: weight.detach().abs().flatten(1).mean(1) for name, weight in filters_of(network)}


def random_weights(network: nn.Module, seed: int) -> Scores:
    """A random score per weight: the baseline of `weight_magnitude`.

    Args:
        network: its convolutions and linear layers take part.
        seed: the run's seed; the scores are a function of it.

    Returns:
        scores in [0, 1), float, in each weight's shape.
    """
    return {name: _random(name, weight.shape, seed) for name, weight in weights_of(network)}


def random_filters(network: nn.Module, seed: int) -> Scores:
    """A random score per filter: the baseline of `filter_l1`.

    No baseline where channels of a residual stream are removed (`pruning.residual`): a mean of
    several random scores is seldom among the lowest.

    Args:
        network: any whose channels are known; see `prunerob.networks.channels`.
        seed: the run's seed; the scores are a function of it.

    Returns:
        scores in [0, 1), float, (filters,) per convolution.
    """
    return {name: _random(name, weight.shape[:1], seed) for name, weight in filters_of(network)}


CRITERIA: Mapping[str, Criterion] = {
    "weight": weight_magnitude,
    "lamp": lamp,
    "taylor": Taylor(),
    "hydra": Hydra(),
    "harp": Harp(),
    "filter": filter_l1,
    "filter_taylor": FilterTaylor(),
    "filter_hydra": FilterHydra(),
    "filter_harp": FilterHarp(),
    "random_weight": random_weights,
    "random_filter": random_filters,
}
"""Short names; any function, or class of criteria, can be named by its import path."""


def path_of(name: str) -> str:
    """The import path of a criterion by its short name, or the path that it is."""
    criterion = CRITERIA.get(name)
    if criterion is None:
        return name
    function = getattr(criterion, "__name__", type(criterion).__name__)
    return f"prunerob.pruning.{function}"


def _random(name: str, shape: torch.Size, seed: int) -> Tensor:
    key = image_keys(torch.zeros(1, dtype=torch.int64), seed=seed, purpose=f"prune {name}")
    return uniform(key, shape)[0]
