"""Criteria: pure functions from a network to a score for each thing that may be pruned.

A criterion is called as `criterion(network, seed)` and returns scores by parameter name. A score
per weight (the parameter's shape) prunes weights, a score per output channel (a vector) prunes
filters; what scores lowest goes first. Scores of all layers are ranked together, so they must be
comparable across layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.networks.channels import channels_of
from prunerob.noise import image_keys, uniform

Scores = Mapping[str, Tensor]
Criterion = Callable[[nn.Module, int], Scores]


def weight_magnitude(network: nn.Module, seed: int) -> Scores:
    """Magnitude of each weight, over all layers: "class-blinded" (See et al., arXiv:1606.09274).

    Args:
        network: its convolutions and linear layers take part, biases and normalisations do not.
        seed: not used.

    Returns:
        scores, float, in each weight's shape.
    """
    return {name: weight.detach().abs() for name, weight in _weights(network)}


def filter_l1(network: nn.Module, seed: int) -> Scores:
    """Mean magnitude of each filter's weights, comparable across layers of different sizes.

    The l1 norm of Li et al. (arXiv:1608.08710) divided by the filter's number of weights, as in
    Wang et al. (2018).

    Args:
        network: one that says where its channels lead (`ChannelMap`).
        seed: not used.

    Returns:
        scores, float, (filters,) per convolution.
    """
    return {name: weight.detach().abs().flatten(1).mean(1) for name, weight in _filters(network)}


def random_weights(network: nn.Module, seed: int) -> Scores:
    """A random score per weight: the baseline of `weight_magnitude`.

    Args:
        network: its convolutions and linear layers take part.
        seed: the run's seed; the scores are a function of it.

    Returns:
        scores in [0, 1), float, in each weight's shape.
    """
    return {name: _random(name, weight.shape, seed) for name, weight in _weights(network)}


def random_filters(network: nn.Module, seed: int) -> Scores:
    """A random score per filter: the baseline of `filter_l1`.

    No baseline where channels of a residual stream are removed (`pruning.residual`): a mean of
    several random scores is seldom among the lowest.

    Args:
        network: one that says where its channels lead (`ChannelMap`).
        seed: the run's seed; the scores are a function of it.

    Returns:
        scores in [0, 1), float, (filters,) per convolution.
    """
    return {name: _random(name, weight.shape[:1], seed) for name, weight in _filters(network)}


CRITERIA: Mapping[str, Criterion] = {
    "weight": weight_magnitude,
    "filter": filter_l1,
    "random_weight": random_weights,
    "random_filter": random_filters,
}
"""Short names; any function can be named by its import path."""


def path_of(name: str) -> str:
    """The import path of a criterion by its short name, or the path that it is."""
    function = CRITERIA.get(name)
    return f"prunerob.pruning.{getattr(function, '__name__', '')}" if function else name


def _weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            yield f"{name}.weight" if name else "weight", module.weight


def _filters(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name in channels_of(network):
        yield f"{name}.weight", network.get_submodule(name).get_parameter("weight")


def _random(name: str, shape: torch.Size, seed: int) -> Tensor:
    key = image_keys(torch.zeros(1, dtype=torch.int64), seed=seed, purpose=f"prune {name}")
    return uniform(key, shape)[0]


def scores_filters(scores: Scores) -> bool:
    """Whether scores are per filter (vectors) rather than per weight."""
    return all(score.dim() == 1 for score in scores.values())


def check_scores(network: nn.Module, scores: Scores) -> None:
    """See that scores are all per weight, or all per filter of convolutions that can be pruned.

    Args:
        network: the network that was scored.
        scores: from a criterion, in each parameter's shape or (filters,).

    Raises:
        UserError: they are not.
    """
    if scores_filters(scores):
        known = {f"{name}.weight" for name in channels_of(network)}
        if unknown := sorted(scores.keys() - known):
            raise UserError(
                f"pruning.criterion: it scores the filters of {unknown[0]}, which "
                f"{type(network).__name__}.channels() does not have"
            )
    elif any(scores[name].dim() != network.get_parameter(name).dim() for name in scores):
        raise UserError(
            "pruning.criterion: it scores some layers by filter and others by weight; choose one"
        )


def without(scores: Scores, excluded: Collection[str]) -> Scores:
    """Scores without the layers to leave out.

    Args:
        scores: from a criterion.
        excluded: names of layers ("conv1") or of blocks ("stage1" leaves out all inside it).

    Raises:
        UserError: a name is no layer's, or nothing is left.
    """
    for layer in excluded:
        if not any(name.startswith(f"{layer}.") for name in scores):
            known = ", ".join(name.removesuffix(".weight") for name in scores)
            raise UserError(f"pruning.exclude: no prunable layer {layer!r}; there are {known}")
    left = {
        name: score
        for name, score in scores.items()
        if not any(name.startswith(f"{layer}.") for layer in excluded)
    }
    if not left:
        raise UserError("pruning.exclude: leaves out every layer; use pruning.epoch null instead")
    return left


def name_of(criterion: Criterion) -> str:
    """A criterion's import path; of an object, that of its class, with its settings."""
    if (name := getattr(criterion, "__qualname__", None)) is not None:
        return f"{criterion.__module__}.{name}"
    if isinstance(criterion, partial):
        settings = [*map(repr, criterion.args)]
        settings += [f"{key}={value!r}" for key, value in sorted(criterion.keywords.items())]
        return f"{name_of(criterion.func)}({', '.join(settings)})"
    kind = type(criterion)
    if is_dataclass(criterion):  # which may do without a dictionary
        values = {field.name: getattr(criterion, field.name) for field in fields(criterion)}
    else:
        values = getattr(criterion, "__dict__", {})
    settings = [f"{k}={v!r}" for k, v in sorted(values.items()) if not k.startswith("_")]
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(settings)})"
