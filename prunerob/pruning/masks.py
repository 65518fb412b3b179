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

from prunerob.errors import UserError
from prunerob.pruning.criteria import Scores

Masks = Mapping[str, Tensor]
Reading = Literal["filters", "weights", "parameters"]
Residual = Literal["keep", "silence", "remove"]


def prune_weights(scores: Scores, amount: float, *, keep_per_layer: float = 0.0) -> Masks:
    """Prune the weights that score lowest, over all layers together.

    Exactly round(amount x number of ranked weights) go, ties by position.

    Args:
        scores: from a criterion, on the CPU, in each weight's shape.
        amount: share to prune, in [0, 1).
        keep_per_layer: share of each layer's weights that stays whatever their score.

    Returns:
        masks, bool, in each weight's shape.

    Raises:
        UserError: the amount cannot be reached.
    """
    order, total = rank(scores, keep_per_layer)
    count = round(amount * total)
    if count > len(order):
        raise UserError(
            f"pruning.amount: {amount} of the weights cannot be pruned with "
            f"keep_per_layer {keep_per_layer}; at most {len(order) / total:.4f} can"
        )
    return split(~marked(order[:count], total), scores)


def rank(scores: Scores, keep_per_layer: float) -> tuple[Tensor, int]:
    """Positions of what may go, over all layers, what goes first first; and the number of all."""
    ranks = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.cat([_best(score, keep_per_layer).flatten() for score in scores.values()])
    order = ranks.argsort(stable=True)
    return order[~kept[order]], len(ranks)


def marked(positions: Tensor, length: int) -> Tensor:
    """A vector that is True at some positions."""
    marked = torch.zeros(length, dtype=torch.bool, device=positions.device)
    marked[positions] = True
    return marked


def split(flat: Tensor, scores: Scores) -> dict[str, Tensor]:
    """Cut a vector over all ranked entries back into the layers' shapes."""
    parts = torch.split(flat, [score.numel() for score in scores.values()])
    return {n: p.view(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)}


def _best(score: Tensor, share: float) -> Tensor:
    """Mark a layer's best entries: its share, and of filters one at least; bool, score's shape."""
    count = math.ceil(share * score.numel())
    count = max(count, 1) if score.dim() == 1 else count
    flat = score.flatten()
    best = flat.argsort(stable=True)[len(flat) - count :]
    return marked(best, len(flat)).view(score.shape)


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
