"""Masks: which parameters stay. Pure functions that make them from scores, count and apply them.

Masks map parameter names to boolean tensors, True where the parameter stays. Three readings say
how much they prune; papers differ in which of them they mean by "75 % of parameters pruned":

- "filters": filters pruned, of all that were ranked;
- "weights": weights in pruned filters (or single weights pruned), of all that were ranked;
- "parameters": parameters gone from the compressed network, of all it had: the filters' weights
  and biases, their normalisation's parameters and the next layer's weights that read them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.networks import ChannelMap, Channels
from prunerob.pruning.criteria import Scores

Masks = Mapping[str, Tensor]
Reading = Literal["filters", "weights", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much is pruned, in [0, 1], by the three readings of this module's docstring."""

    filters: float
    weights: float
    parameters: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer's parameters (weights and bias) and output channels, before and after pruning."""

    name: str
    parameters_before: int
    parameters_after: int
    channels_before: int
    channels_after: int

    @property
    def share_pruned(self) -> float:
        """Share of the layer's parameters that are pruned, in [0, 1]."""
        return 1 - self.parameters_after / self.parameters_before


def make_masks(
    network: nn.Module,
    scores: Scores,
    amount: float,
    *,
    reading: Reading = "weights",
    keep_per_layer: float = 0.0,
    keep_multiple_of: int = 1,
) -> Masks:
    """Prune what scores lowest, over all layers together.

    Weights: exactly round(amount x number of ranked weights) go, ties by position. Filters: taken
    in rank order until the share pruned first reaches the amount; each layer keeps its best one.

    Args:
        network: the network that was scored; only its structure is read.
        scores: from a criterion: in each weight's shape, or (filters,) per convolution.
        amount: share to prune, in [0, 1).
        reading: the share that is meant, for filters.
        keep_per_layer: share of each layer's weights or filters that stays whatever their score.
        keep_multiple_of: round the number of filters that each layer keeps up to a multiple of
            this, after the amount is reached: vector units like 8 or 16. Less is pruned then.

    Returns:
        masks, bool, in each masked parameter's shape.

    Raises:
        UserError: the amount cannot be reached.
    """
    # Ranked on the CPU: not every accelerator sorts stably, or has float64.
    device = next(iter(scores.values())).device
    scores = {name: score.cpu().double() for name, score in scores.items()}
    protected = {name: _best(score, keep_per_layer) for name, score in scores.items()}
    ranks = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.cat([keep.flatten() for keep in protected.values()])
    order = ranks.argsort(stable=True)
    order = order[~kept[order]]

    if not scores_filters(scores):
        count = round(amount * len(ranks))
        if count > len(order):
            raise UserError(
                f"pruning.amount: {amount} of the weights cannot be pruned with "
                f"keep_per_layer {keep_per_layer}; at most {len(order) / len(ranks):.4f} can"
            )
        masks = _split(~_marked(order[:count], len(ranks)), scores)
        return {name: mask.to(device) for name, mask in masks.items()}

    def after(count: int) -> Masks:
        return _filter_masks(network, _split(_marked(order[:count], len(ranks)), scores))

    def share(count: int) -> float:
        return float(getattr(count_shares(network, after(count), scores), reading))

    counts = range(len(order) + 1)
    # The share grows with the number of filters, so the first that reaches it is found by halving.
    # A share of n/N in floating point must not miss an amount that was meant to be the same n/N.
    count = bisect_left(counts, amount - 1e-12, key=share)
    if count == len(counts):
        raise UserError(
            f"pruning.amount: {amount} of the {reading} cannot be pruned and leave filters in "
            f"every layer; at most {share(len(order)):.4f} can"
        )
    marked = _split(_marked(order[:count], len(ranks)), scores)
    silent = {n: _round_kept_up(gone, scores[n], keep_multiple_of) for n, gone in marked.items()}
    return {name: mask.to(device) for name, mask in _filter_masks(network, silent).items()}


def scores_filters(scores: Scores) -> bool:
    """Whether scores are per filter (vectors) rather than per weight."""
    return all(score.dim() == 1 for score in scores.values())


def count_shares(network: nn.Module, masks: Masks, scores: Scores) -> Shares:
    """The share pruned by each of the three readings.

    Args:
        network: the network, before or after.
        masks: its masks.
        scores: what was ranked; only names and shapes are read.
    """
    ranked = {name: masks[name] for name in scores}
    convolutions = [mask.flatten(1) for mask in ranked.values() if mask.dim() > 2]
    gone = [~mask.any(1) for mask in convolutions]
    if scores_filters(scores):
        # A weight that stays in its filter but reads a silent channel does not count here.
        weights = [g[:, None].expand_as(m) for g, m in zip(gone, convolutions, strict=True)]
    else:
        weights = [~mask for mask in ranked.values()]
    masked = sum(int((~mask).sum()) for mask in masks.values())
    return Shares(
        filters=_share(gone),
        weights=_share(weights),
        parameters=masked / sum(p.numel() for p in network.parameters()),
    )


def count_layers(network: nn.Module, masks: Masks) -> list[Layer]:
    """Parameters and channels of each layer that has weights of its own, before and after."""
    layers = []
    for name, module in network.named_modules():
        parameters = dict(module.named_parameters(prefix=name, recurse=False))
        if not parameters:
            continue
        mask = masks.get(f"{name}.weight" if name else "weight")
        channels = next(iter(parameters.values())).shape[0]
        before = sum(p.numel() for p in parameters.values())
        pruned = sum(int((~masks[n]).sum()) for n in parameters if n in masks)
        layers.append(
            Layer(
                name=name,
                parameters_before=before,
                parameters_after=before - pruned,
                channels_before=channels,
                channels_after=channels
                if mask is None
                else int(mask.view(len(mask), -1).any(1).sum()),
            )
        )
    return layers


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


def _best(score: Tensor, share: float) -> Tensor:
    """Mark a layer's best entries: its share, and of filters one at least; bool, score's shape."""
    count = math.ceil(share * score.numel())
    count = max(count, 1) if score.dim() == 1 else count
    flat = score.flatten()
    best = flat.argsort(stable=True)[len(flat) - count :]
    return _marked(best, len(flat)).view(score.shape)


def _round_kept_up(gone: Tensor, score: Tensor, multiple: int) -> Tensor:
    """Take the best filters back until a multiple of them stays, or all; bool, (filters,)."""
    kept = int((~gone).sum())
    back = min(-kept % multiple, len(gone) - kept)
    best = score.masked_fill(~gone, -torch.inf).argsort(stable=True)[len(gone) - back :]
    return gone & ~_marked(best, len(gone))


def _marked(positions: Tensor, length: int) -> Tensor:
    """A vector that is True at some positions."""
    marked = torch.zeros(length, dtype=torch.bool, device=positions.device)
    marked[positions] = True
    return marked


def _split(flat: Tensor, scores: Scores) -> dict[str, Tensor]:
    """Cut a vector over all ranked entries back into the layers' shapes."""
    parts = torch.split(flat, [score.numel() for score in scores.values()])
    return {n: p.view(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)}


def _share(marks: list[Tensor]) -> float:
    total = sum(mark.numel() for mark in marks)
    return sum(int(mark.sum()) for mark in marks) / total if total else 0.0


def _filter_masks(network: nn.Module, silent: Mapping[str, Tensor]) -> Masks:
    """Masks that silence channels and everything that serves or reads them alone.

    A filter whose weights are zero still emits its bias, and behind a BatchNorm its beta; the
    weights that read a silent channel do nothing, but would drift under weight decay.

    Args:
        network: says where its channels lead.
        silent: bool, (filters,), by the name of each convolution's weight.
    """
    masks: dict[str, Tensor] = {}
    channels = cast(ChannelMap, network).channels()
    # Every ranked layer gets a mask, also one that nothing is taken from.
    for weight_name, gone in silent.items():
        name = weight_name.removesuffix(".weight")
        served = channels.get(name, Channels())
        for owner in (name, *served.norms):
            for parameter, value in network.get_submodule(owner).named_parameters(recurse=False):
                full = masks.setdefault(f"{owner}.{parameter}", _ones(value))
                full[gone] = False
        for reader in served.readers:
            value = network.get_submodule(reader).get_parameter("weight")
            full = masks.setdefault(f"{reader}.weight", _ones(value))
            # A linear layer behind a flatten reads a channel's pixels side by side.
            full[:, gone.repeat_interleave(value.shape[1] // len(gone))] = False
    return masks


def _ones(value: Tensor) -> Tensor:
    return torch.ones(value.shape, dtype=torch.bool)
