"""Masks: which parameters stay. Pure functions that make them from scores, count and apply them.

Masks map parameter names to boolean tensors, True where the parameter stays. Three readings say
how much they prune; papers differ in which of them they mean by "75 % of parameters pruned":

- "filters": filters pruned, of all filters of convolutions, those that were not ranked included;
- "weights": weights in pruned filters, of those in all filters; or, where single weights are
  pruned, of all that were ranked;
- "parameters": parameters that are 0, of all: the filters' weights and biases, their
  normalisation's parameters and the next layer's weights that read them. All of these are gone from
  the narrow network, but for filters that are silenced on a residual stream (below).

In a residual network some filters write to a residual stream, to which others add. What becomes of
those has three answers, too:

- "keep": they are not ranked, and stay;
- "silence": each is ranked by itself; one that is pruned adds nothing, and the stream's channel
  goes only when the last filter that writes to it does;
- "remove": the stream's channels are ranked, each by the mean score over the weights of all
  filters that write to it, and these go together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from prunerob.errors import UnreachableAmount
from prunerob.pruning.scores import Scores

Masks = Mapping[str, Tensor]
Reading = Literal["filters", "weights", "parameters"]
Residual = Literal["keep", "silence", "remove"]


def prune_weights(
    scores: Scores,
    amount: float,
    *,
    keep_per_layer: float = 0.0,
    amounts: Mapping[str, float] | None = None,
) -> Masks:
    """Prune the weights that score lowest, over all layers together or in each layer.

    Exactly round(amount x number of ranked weights) go, ties by position.

    Args:
        scores: from a criterion, on the CPU, in each weight's shape.
        amount: share to prune, in [0, 1).
        keep_per_layer: share of each layer's weights that stays whatever their score.
        amounts: share of each layer that goes instead, by parameter name; see
            `prunerob.pruning.budgets`.

    Returns:
        masks, bool, in each weight's shape.

    Raises:
        UserError: the amount cannot be reached.
    """
    if amounts is not None:
        return {
            name: ~lowest(score.flatten(), round(amounts[name] * score.numel())).view(score.shape)
            for name, score in scores.items()
        }
    total = sum(score.numel() for score in scores.values())
    count = round(amount * total)
    most = total - sum(floor(score, keep_per_layer) for score in scores.values())
    if count > most:
        raise UnreachableAmount(
            f"pruning.amount: {amount} of the weights cannot be pruned with "
            f"keep_per_layer {keep_per_layer}; at most {most / total:.4f} can"
        )
    gone = lowest_of_all(scores, count, keep_per_layer)
    return {name: ~marks for name, marks in gone.items()}


def lowest_of_all(scores: Scores, count: int, keep_per_layer: float) -> dict[str, Tensor]:
    """Mark what scores lowest over all layers together, ties by position.

    Args:
        scores: in any shapes, on the CPU.
        count: how many to mark; no more than may go.
        keep_per_layer: share of each layer that is not marked whatever its score.

    Returns:
        marks, bool, in the scores' shapes.
    """
    gone = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    free = [_free(score, keep_per_layer) for score in scores.values()]
    flat = [score.flatten()[may] for score, may in zip(scores.values(), free, strict=True)]
    marks = torch.split(lowest(torch.cat(flat), count), [len(part) for part in flat])
    for name, may, mark in zip(scores, free, marks, strict=True):
        gone[name][may] = mark
    return {name: mark.view(scores[name].shape) for name, mark in gone.items()}


def _free(score: Tensor, keep_per_layer: float) -> Tensor | slice:
    """Positions in a flat score of what may go: all but a layer's best, ties by position."""
    kept = floor(score, keep_per_layer)
    if not kept:
        return slice(None)
    return lowest(score.flatten(), score.numel() - kept).nonzero().squeeze(1)


def lowest(values: Tensor, count: int) -> Tensor:
    """Mark the lowest of some values, ties by position, as a stable sort would.

    Args:
        values: (N,), without NaN.
        count: how many, in [0, N].

    Returns:
        marks, bool, (N,).
    """
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(count).values
    marks = values < threshold
    ties = (values == threshold).nonzero().squeeze(1)
    marks[ties[: count - int(marks.sum())]] = True
    return marks


def rank(scores: Scores, keep_per_layer: float) -> tuple[Tensor, int]:
    """Positions of what may go, over all layers, what goes first first; and the number of all."""
    flat = [score.flatten() for score in scores.values()]
    ranks = torch.cat(flat)
    free = [
        lowest(part, len(part) - floor(score, keep_per_layer))
        for part, score in zip(flat, scores.values(), strict=True)
    ]
    order = ranks.argsort(stable=True)
    return order[torch.cat(free)[order]], len(ranks)


def marked(positions: Tensor, length: int) -> Tensor:
    """A vector that is True at some positions."""
    marked = torch.zeros(length, dtype=torch.bool, device=positions.device)
    marked[positions] = True
    return marked


def split(flat: Tensor, scores: Scores) -> dict[str, Tensor]:
    """Cut a vector over all ranked entries back into the layers' shapes."""
    parts = torch.split(flat, [score.numel() for score in scores.values()])
    return {n: p.view(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)}


def floor(score: Tensor, share: float) -> int:
    """How many of a layer's entries stay whatever their score: its share, of filters one or more.

    Args:
        score: of the layer.
        share: of its entries, in [0, 1].
    """
    count = math.ceil(share * score.numel())
    return max(count, 1) if score.dim() == 1 else count


def emptied_layers(masks: Masks) -> list[str]:
    """Names of the layers none of whose weights stay."""
    return [
        name.removesuffix(".weight")
        for name, mask in masks.items()
        if mask.dim() > 1 and not mask.any()
    ]


@torch.no_grad()
def apply_masks(network: nn.Module, masks: Masks) -> None:
    """Set every pruned parameter to exactly 0, in place.

    Args:
        network: its parameters have the masks' names and shapes.
        masks: bool, on the network's device.
    """
    for name, mask in masks.items():
        # Not a product: 0 x infinity would be NaN.
        network.get_parameter(name).masked_fill_(~mask, 0)


def to_device(masks: Masks, device: torch.device) -> dict[str, Tensor]:
    """The masks on a device."""
    return {name: mask.to(device) for name, mask in masks.items()}
