"""Filters: which go, and everything that serves or reads their channels alone goes with them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prunerob.errors import UnreachableAmount, UserError
from prunerob.networks.channels import Channels, Reader, channels_of, part_of, writers
from prunerob.pruning.counts import Shares
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
    uniform: bool = False,
) -> Masks:
    """Prune the filters that score lowest, over all layers together or in each.

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
        uniform: let every layer lose the same share of its filters (Li et al., arXiv:1608.08710):
            they are ranked in their layer.

    Returns:
        masks, bool, in each masked parameter's shape.

    Raises:
        UserError: the amount cannot be reached.
    """
    channels = channels_of(network)
    streams = _streams(channels)
    scores, together = _ranked(channels, scores, residual), residual == "remove"
    groups = [group for group in streams if group[0] in scores] if together else []
    units = _pooled(network, scores, groups)
    if uniform:
        units = {name: _ranks(score) for name, score in units.items()}
    order, total = rank(units, keep_per_layer)

    def gone(count: int) -> dict[str, Tensor]:
        return split(marked(order[:count], total), units)

    def silenced(gone: dict[str, Tensor]) -> Silenced:
        everywhere = {other: gone[first] for first, *others in groups for other in others}
        return Silenced(network, channels, gone | everywhere)

    def share(count: int) -> float:
        return float(getattr(silenced(gone(count)).shares(), reading))

    counts = range(len(order) + 1)
    # The share grows with the number of filters, so the first that reaches it is found by halving.
    # A share of n/N in floating point must not miss an amount that was meant to be the same n/N.
    count = bisect_left(counts, amount - 1e-12, key=share)
    if count == len(counts):
        left = len(scores) < len(channels)
        also = "; pruning.residual and pruning.exclude say which are ranked" if left else ""
        raise UnreachableAmount(
            f"pruning.amount: {amount} of the {reading} cannot be pruned and leave filters in "
            f"every layer; at most {share(len(order)):.4f} can{also}"
        )
    # Where filters of a stream go one by one, its width is not theirs, and rounding would be idle.
    alone = set() if together else {name for group in streams for name in group}
    rounded = {
        name: marks if name in alone else _round_kept_up(marks, units[name], keep_multiple_of)
        for name, marks in gone(count).items()
    }
    return silenced(rounded).masks()


def ranked(network: nn.Module, scores: Scores, residual: Residual) -> Scores:
    """The scores of those filters that may go.

    Args:
        network: the network that was scored; only its structure is read.
        scores: from a criterion: in each weight's shape, which all may, or (filters,).
        residual: what becomes of filters that write to a residual stream.

    Raises:
        UserError: none may.
    """
    return _ranked(channels_of(network), scores, residual) if scores_filters(scores) else scores


def _ranked(channels: Mapping[str, Channels], scores: Scores, residual: Residual) -> Scores:
    left = dict(scores)
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


def _streams(channels: Mapping[str, Channels]) -> list[list[str]]:
    """The weights that write to each residual stream."""
    return [[f"{name}.weight" for name in group] for group in writers(channels).values()]


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


def _ranks(score: Tensor) -> Tensor:
    """The place of each filter in its layer, from 1 / filters for the lowest up to 1."""
    places = torch.arange(1, len(score) + 1, dtype=torch.float64) / len(score)
    return torch.empty_like(places).scatter_(0, score.argsort(stable=True), places)


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
    return Silenced(network, channels_of(network), gone).masks()


class Silenced:
    """A network's channels that are silenced, and with them the rows and columns of its weights.

    What is masked of a parameter are whole rows and whole columns, so that it is counted without
    the masks, which are as large as the network.

    Args:
        network: only its structure is read.
        channels: where its channels lead.
        gone: bool, (filters,), by the name of each convolution's weight.
    """

    def __init__(
        self, network: nn.Module, channels: Mapping[str, Channels], gone: Mapping[str, Tensor]
    ) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.rows: dict[str, Tensor] = {}
        """Along each masked parameter's first dimension, what goes; bool."""
        self.columns: dict[str, Tensor] = {}
        """The same along the second."""
        # Every ranked layer gets a mask, also one that nothing is taken from.
        for weight, silent in gone.items():
            name = weight.removesuffix(".weight")
            served = channels.get(name, Channels())
            self._take((name, *served.norms), served.readers, silent)
        for stream, group in writers(channels).items():
            if all(f"{name}.weight" in gone for name in group):
                silent = torch.stack([gone[f"{name}.weight"] for name in group]).all(0)
                self._take(stream.norms, stream.readers, silent)

    def _take(self, owners: Sequence[Reader], readers: Sequence[Reader], gone: Tensor) -> None:
        """Let channels go, with the rows of those that own them and the columns of readers."""
        for owner in owners:
            part = part_of(owner, len(gone))
            module = self.modules[part.layer]
            for name, value in module.named_parameters(recurse=False):
                rows = _none(self.rows, f"{part.layer}.{name}", value.shape[0], gone)
                rows[part.first : part.first + len(gone)] |= gone
        for reader in readers:
            part = part_of(reader, len(gone))
            module = self.modules[part.layer]
            if getattr(module, "groups", 1) != 1:
                continue  # its weights do not stand in columns by channel
            length = module.get_parameter("weight").shape[1]
            columns = _none(self.columns, f"{part.layer}.weight", length, gone)
            # A linear layer behind a flatten reads a channel's pixels side by side.
            columns.view(part.of, -1)[part.first : part.first + len(gone)] |= gone[:, None]

    def masks(self) -> Masks:
        """Masks, bool, in each masked parameter's shape, on the device of what is gone."""
        masks: dict[str, Tensor] = {}
        for name in dict.fromkeys([*self.rows, *self.columns]):
            sides = [side[name] for side in (self.rows, self.columns) if name in side]
            shape = self.network.get_parameter(name).shape
            masks[name] = torch.ones(shape, dtype=torch.bool, device=sides[0].device)
            if name in self.rows:
                masks[name][self.rows[name]] = False
            if name in self.columns:
                masks[name][:, self.columns[name]] = False
        return masks

    def shares(self) -> Shares:
        """What `count_shares` counts of the masks."""
        filters, filters_gone, weights, weights_gone = 0, 0, 0, 0
        for name, module in self.modules.items():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                weight = f"{name}.weight"
                count, size = len(module.weight), module.weight[0].numel()
                gone = self._gone(weight, count)
                filters, filters_gone = filters + count, filters_gone + gone
                weights, weights_gone = weights + count * size, weights_gone + gone * size
        parameters = masked = 0
        for name, value in self.network.named_parameters():
            parameters += value.numel()
            if name in self.rows or name in self.columns:
                rows = len(value) - int(self.rows[name].sum()) if name in self.rows else len(value)
                left = value.numel() // len(value) * rows
                if name in self.columns:
                    columns = value.shape[1]
                    left = left // columns * (columns - int(self.columns[name].sum()))
                masked += value.numel() - left
        return Shares(
            filters=filters_gone / filters if filters else 0.0,
            weights=weights_gone / weights if weights else 0.0,
            parameters=masked / parameters,
        )

    def _gone(self, weight: str, count: int) -> int:
        """How many filters of a convolution have no weights left."""
        if weight in self.columns and bool(self.columns[weight].all()):
            return count
        return int(self.rows[weight].sum()) if weight in self.rows else 0


def _none(marks: dict[str, Tensor], name: str, length: int, like: Tensor) -> Tensor:
    """Marks of a parameter, to be changed: at first none; bool, (length,)."""
    if name not in marks:
        marks[name] = torch.zeros(length, dtype=torch.bool, device=like.device)
    return marks[name]
