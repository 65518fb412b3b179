"""Budgets: how an amount is shared out among layers.

A budget is a function from scores and an amount to an amount for each layer. Without one, "global",
a single threshold over all layers decides, and what a layer loses follows from its scores.

- "erk": a layer keeps the more, the smaller it is (Erdős-Rényi-kernel: Evci et al.,
  arXiv:1911.11134);
- "uniform": the same share of every layer; of weights, the first layer stays whole and the last one
  keeps a fifth at least ("uniform+": Gale et al., arXiv:1902.09574; Lee et al., arXiv:2010.07611);
- amounts by layer name: each layer that is named loses its share, and one threshold over all
  others shares out what is left of the amount.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from prunerob.errors import UnreachableAmount, UserError
from prunerob.pruning.masks import floor, lowest_of_all
from prunerob.pruning.scores import Scores, scores_filters

Budget = Literal["global", "erk", "uniform"] | dict[str, float]

LAST_KEEPS = 0.2
"""Share of its weights that the last layer keeps at least under "uniform"."""


def check_budget(budget: Budget) -> None:
    """See that amounts by layer name are amounts.

    Raises:
        UserError: one lies outside [0, 1).
    """
    for layer, amount in budget.items() if isinstance(budget, dict) else ():
        if not 0 <= amount < 1:
            raise UserError(f"pruning.budget: {amount} of {layer} lies outside [0, 1)")


def share_out(
    scores: Scores, amount: float, budget: Budget, *, keep_per_layer: float = 0.0
) -> dict[str, float] | None:
    """The amount of each layer.

    Args:
        scores: from a criterion, in each weight's shape.
        amount: share of all weights to prune, in [0, 1).
        budget: how to share it out.
        keep_per_layer: share of each layer's weights that stays whatever the budget.

    Returns:
        shares of each layer's weights, by parameter name; None where one threshold decides, or
        filters are ranked in each layer. They
        come to exactly round(amount x number of weights) weights, but where every layer has its
        amount by name, to 4 digits.

    Raises:
        UserError: the budget has no meaning for filters, which the scores are of; a name is no
            layer's; or the amount cannot be reached.
    """
    if budget == "global" or not amount:
        return None
    if scores_filters(scores):
        if budget == "uniform":
            return None
        raise UserError(
            "pruning.budget: shares out weights, but the criterion scores filters, with which "
            "weights of other layers go; set it to global, with pruning.keep_per_layer for a "
            "floor, or to uniform"
        )
    if isinstance(budget, dict):
        return by_name(scores, amount, budget, keep_per_layer=keep_per_layer)
    return (erk if budget == "erk" else uniform)(scores, amount, keep_per_layer=keep_per_layer)


def erk(scores: Scores, amount: float, *, keep_per_layer: float = 0.0) -> dict[str, float]:
    """Each layer keeps a share in proportion to the sum over the product of its dimensions.

    A layer whose share would be above 1 stays whole, and the others keep less (Evci et al.,
    arXiv:1911.11134). Arguments and result are those of `share_out`.
    """
    parts = {name: sum(score.shape) / score.numel() for name, score in scores.items()}
    floors = dict.fromkeys(scores, keep_per_layer)
    return _in_proportion(scores, amount, parts, floors, "erk")


def uniform(scores: Scores, amount: float, *, keep_per_layer: float = 0.0) -> dict[str, float]:
    """The same share of each layer; the first stays whole, the last keeps a fifth at least.

    Arguments and result are those of `share_out`.
    """
    names = list(scores)
    floors = dict.fromkeys(names, keep_per_layer)
    floors[names[-1]] = max(LAST_KEEPS, keep_per_layer)
    floors[names[0]] = 1.0
    return _in_proportion(scores, amount, dict.fromkeys(names, 1.0), floors, "uniform")


def by_name(
    scores: Scores, amount: float, amounts: Mapping[str, float], *, keep_per_layer: float = 0.0
) -> dict[str, float]:
    """Amounts of named layers; one threshold over all others for what they leave.

    Arguments and result are those of `share_out`; layers are named without ".weight".
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    for layer in amounts:
        if f"{layer}.weight" not in scores:
            known = ", ".join(name.removesuffix(".weight") for name in scores)
            raise UserError(f"pruning.budget: no prunable layer {layer!r}; there are {known}")
    named = {f"{n}.weight": round(share * sizes[f"{n}.weight"]) for n, share in amounts.items()}
    for name, count in named.items():
        if count > sizes[name] - floor(scores[name], keep_per_layer):
            layer = name.removesuffix(".weight")
            raise UserError(
                f"pruning.budget: {amounts[layer]} of {layer} leaves less than keep_per_layer "
                f"{keep_per_layer}"
            )
    others = {name: score for name, score in scores.items() if name not in named}
    total, wanted = sum(sizes.values()), round(amount * sum(sizes.values()))
    left = wanted - sum(named.values())
    if abs(left) <= 5e-5 * total and (left < 0 or not others):
        left = 0  # amounts are told in a few digits
    most = sum(sizes[name] - floor(score, keep_per_layer) for name, score in others.items())
    if not 0 <= left <= most:
        least = sum(named.values()) / total
        raise UnreachableAmount(
            f"pruning.amount: {amount} of the weights cannot be pruned with the amounts in "
            f"pruning.budget; from {least:.4f} to {least + most / total:.4f} can"
        )
    gone = lowest_of_all(others, left, keep_per_layer) if left else {}
    counts = {**named, **{name: int(marks.sum()) for name, marks in gone.items()}}
    return {name: counts.get(name, 0) / size for name, size in sizes.items()}


def _in_proportion(
    scores: Scores,
    amount: float,
    parts: Mapping[str, float],
    floors: Mapping[str, float],
    budget: str,
) -> dict[str, float]:
    """Layers keep shares in proportion to their parts, from a floor each up to all of them."""
    sizes = {name: score.numel() for name, score in scores.items()}
    total = sum(sizes.values())
    kept = total - round(amount * total)
    floors = {name: floor(scores[name], share) / sizes[name] for name, share in floors.items()}
    least = sum(floors[name] * size for name, size in sizes.items())
    if round(least) > kept:
        raise UnreachableAmount(
            f"pruning.amount: {amount} of the weights cannot be pruned with pruning.budget "
            f"{budget} and its floors; at most {1 - least / total:.4f} can"
        )

    def shares(factor: float) -> dict[str, float]:
        return {n: min(1.0, max(floors[n], factor * part)) for n, part in parts.items()}

    low, high = 0.0, 1 / min(parts.values())
    for _ in range(200):  # the number kept grows with the factor: to the last bit of it
        middle = (low + high) / 2
        fits = sum(share * sizes[n] for n, share in shares(middle).items()) <= kept
        low, high = (middle, high) if fits else (low, middle)
    exact = {name: share * sizes[name] for name, share in shares(low).items()}
    counts = {name: math.floor(number + 1e-6) for name, number in exact.items()}
    # What rounding down left over goes to those that lost most by it.
    by_loss = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_loss[: kept - sum(counts.values())]:
        counts[name] += 1
    return {name: 1 - counts[name] / size for name, size in sizes.items()}
