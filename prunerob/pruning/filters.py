"""Filters: which go, and everything that serves or reads their channels alone goes with them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.networks.channels import Channels, channels_of, writers
from prunerob.pruning.counts import count_shares
from prunerob.pruning.masks import Masks, Reading, Residual, marked, rank, split
from prunerob.pruning.scores import Scores, scores_filters


def prune_filters(
    network: nn.Module,
    scores: Scores,
    amount: float,
    *,
    reading: Reading = "weights",
    residual: Residual = "keep",
    keep_per_layer: float = 0.0,
    keep_multiple_of: int = 1,
) -> Masks:
    """Prune the filters that score lowest, over all layers together.

    They go in rank order until the share pruned first reaches the amount; each layer keeps its
    best one.

    Args:
        network: the network that was scored; only its structure is read.
        scores: from a criterion, on the CPU, (filters,) per convolution.
        amount: share to prune, in [0, 1).
        reading: the share that is meant.
        residual: what becomes of filters that write to a residual stream.
        keep_per_layer: share of each layer's filters that stays whatever their score.
        keep_multiple_of: round the number of filters that each layer keeps up to a multiple of
            this, after the amount is reached: vector units like 8 or 16. Less is pruned then.

    Returns:
        masks, bool, in each masked parameter's shape.

    Raises:
        UserError: the amount cannot be reached.
    """
    scores, together = ranked(network, scores, residual), residual == "remove"
    groups = [group for group in _streams(network) if group[0] in scores] if together else []
    units = _pooled(network, scores, groups)
    order, total = rank(units, keep_per_layer)

    def gone(count: int) -> dict[str, Tensor]:
        return split(marked(order[:count], total), units)

    def masks(gone: dict[str, Tensor]) -> Masks:
        everywhere = {other: gone[first] for first, *others in groups for other in others}
        return silence_filters(network, gone | everywhere)

    def share(count: int) -> float:
        return float(getattr(count_shares(network, masks(gone(count)), scores), reading))

    counts = range(len(order) + 1)
    # The share grows with the number of filters, so the first that reaches it is found by halving.
    # A share of n/N in floating point must not miss an amount that was meant to be the same n/N.
    count = bisect_left(counts, amount - 1e-12, key=share)
    if count == len(counts):
        left = len(scores) < len(channels_of(network))
        also = "; pruning.residual and pruning.exclude say which are ranked" if left else ""
        raise UserError(
            f"pruning.amount: {amount} of the {reading} cannot be pruned and leave filters in "
            f"every layer; at most {share(len(order)):.4f} can{also}"
        )
    # Where filters of a stream go one by one, its width is not theirs, and rounding would be idle.
    alone = set() if together else {name for group in _streams(network) for name in group}
    rounded = {
        name: marks if name in alone else _round_kept_up(marks, units[name], keep_multiple_of)
        for name, marks in gone(count).items()
    }
    return masks(rounded)


def ranked(network: nn.Module, scores: Scores, residual: Residual) -> Scores:
    """The scores of those filters that may go.

    Args:
        network: the network that was scored; only its structure is read.
        scores: from a criterion: in each weight's shape, which all may, or (filters,).
        residual: what becomes of filters that write to a residual stream.

    Raises:
        UserError: none may.
    """
    if not scores_filters(scores):
        return scores
    left, channels = dict(scores), channels_of(network)
    if residual == "silence":
        return left
    for group in writers(channels).values():
        # Those of a stream go together, or not at all.
        if residual == "keep" or any(f"{name}.weight" not in scores for name in group):
            for name in group:
                left.pop(f"{name}.weight", None)
    if not left:
        raise UserError(
            f"pruning.residual: {residual} leaves no filters to prune (nor does pruning.exclude)"
        )
    return left


def _streams(network: nn.Module) -> list[list[str]]:
    """The weights that write to each residual stream."""
    groups = writers(channels_of(network)).values()
    return [[f"{name}.weight" for name in group] for group in groups]


def _pooled(network: nn.Module, scores: Scores, groups: list[list[str]]) -> Scores:
    """Scores of what goes together: in the place of the first, the mean over all weights."""
    pooled = dict(scores)
    for group in groups:
        sizes = [network.get_parameter(name)[0].numel() for name in group]
        total = sum(scores[name] * size for name, size in zip(group, sizes, strict=True))
        for name in group[1:]:
            del pooled[name]
        pooled[group[0]] = cast(Tensor, total) / sum(sizes)
    return pooled


def _round_kept_up(gone: Tensor, score: Tensor, multiple: int) -> Tensor:
    """Take the best filters back until a multiple of them stays, or all; bool, (filters,)."""
    kept = int((~gone).sum())
    back = min(-kept % multiple, len(gone) - kept)
    best = score.masked_fill(~gone, -torch.inf).argsort(stable=True)[len(gone) - back :]
    return gone & ~marked(best, len(gone))


def silence_filters(network: nn.Module, gone: Mapping[str, Tensor]) -> Masks:
    """Masks that silence channels and everything that serves or reads them alone.

    A filter whose weights are zero still emits its bias, and behind a BatchNorm its beta; the
    weights that read a silent channel do nothing, but would drift under weight decay. A channel of
    a residual stream is silent where all that write to it are.

    Args:
        network: says where its channels lead.
        gone: bool, (filters,), by the name of each convolution's weight.

    Returns:
        masks, bool, in each masked parameter's shape, on the device of `gone`.
    """
    masks: dict[str, Tensor] = {}
    channels = channels_of(network)

    def take(owners: Sequence[str], readers: Sequence[str], gone: Tensor) -> None:
        for owner in owners:
            for parameter, value in network.get_submodule(owner).named_parameters(recurse=False):
                full = masks.setdefault(f"{owner}.{parameter}", _ones(value, gone))
                full[gone] = False
        for reader in readers:
            if getattr(network.get_submodule(reader), "groups", 1) != 1:
                continue  # its weights do not stand in columns by channel
            value = network.get_submodule(reader).get_parameter("weight")
            full = masks.setdefault(f"{reader}.weight", _ones(value, gone))
            # A linear layer behind a flatten reads a channel's pixels side by side.
            full[:, gone.repeat_interleave(value.shape[1] // len(gone))] = False

    # Every ranked layer gets a mask, also one that nothing is taken from.
    for weight, silent in gone.items():
        name = weight.removesuffix(".weight")
        served = channels.get(name, Channels())
        take((name, *served.norms), served.readers, silent)
    for stream, group in writers(channels).items():
        if all(f"{name}.weight" in gone for name in group):
            silent = torch.stack([gone[f"{name}.weight"] for name in group]).all(0)
            take(stream.norms, stream.readers, silent)
    return masks


def _ones(value: Tensor, like: Tensor) -> Tensor:
    """An empty mask of a parameter."""
    return torch.ones(value.shape, dtype=torch.bool, device=like.device)
