"""Scores: what a criterion gives, and what can be asked of any of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.networks.channels import channels_of

Scores = Mapping[str, Tensor]
"""By parameter name: in its shape, or (filters,); what scores lowest goes first."""

Criterion = Callable[..., Scores]
"""`criterion(network, seed) -> scores`; see `prunerob.pruning.criteria`."""

Unit = Literal["filters", "weights"]
"""What is scored, and pruned."""


def unit_of(criterion: Criterion) -> Unit:
    """What a criterion scores that cannot be called before training, as it sees data.

    Raises:
        UserError: it does not say.
    """
    unit: Unit | None = getattr(criterion, "unit", None)
    if unit not in ("filters", "weights"):
        raise UserError(
            f"pruning.criterion: {name_of(criterion)} sees data, so it must say before there are "
            "any what it scores: give it an attribute unit, 'weights' or 'filters'"
        )
    return unit


def weights_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of convolutions and linear layers, by name; not biases and normalisations."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            yield f"{name}.weight" if name else "weight", module.weight


def filters_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of the convolutions whose filters may go, by name: one filter in each row.

    Raises:
        UserError: it is not known where the network's channels lead.
    """
    for name in channels_of(network):
        yield f"{name}.weight", network.get_submodule(name).get_parameter("weight")


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


def name_of(criterion: object) -> str:
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
