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
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.networks.channels import Channels, channels_of, writers
from prunerob.pruning.criteria import Scores

Masks = Mapping[str, Tensor]
Reading = Literal["filters", "weights", "parameters"]
Residual = Literal["keep", "silence", "remove"]


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

    @property
    def is_normalisation(self) -> bool:
        """Whether it has but a factor and a term for each channel."""
        return self.parameters_before <= 2 * self.channels_before

    @property
    def has_nearly_vanished(self) -> bool:
        """Whether under 1 % of its parameters are left, or under a tenth of its channels.

        Never of a normalisation, whose channels are those of a convolution.
        """
        return not self.is_normalisation and (
            self.share_pruned > 0.99 or self.channels_after < 0.1 * self.channels_before
        )


def make_masks(
    network: nn.Module,
    scores: Scores,
    amount: float,
    *,
    reading: Reading = "weights",
    residual: Residual = "keep",
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
        residual: what becomes of filters that write to a residual stream.
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
    if scores_filters(scores):
        masks = _prune_filters(
            network,
            ranked(network, scores, residual),
            amount,
            reading=reading,
            together=residual == "remove",
            keep_per_layer=keep_per_layer,
            keep_multiple_of=keep_multiple_of,
        )
    else:
        masks = _prune_weights(scores, amount, keep_per_layer=keep_per_layer)
    return {name: mask.to(device) for name, mask in masks.items()}


def _prune_weights(scores: Scores, amount: float, *, keep_per_layer: float) -> Masks:
    order, total = _order(scores, keep_per_layer)
    count = round(amount * total)
    if count > len(order):
        raise UserError(
            f"pruning.amount: {amount} of the weights cannot be pruned with "
            f"keep_per_layer {keep_per_layer}; at most {len(order) / total:.4f} can"
        )
    return _split(~_marked(order[:count], total), scores)


def _prune_filters(
    network: nn.Module,
    scores: Scores,
    amount: float,
    *,
    reading: Reading,
    together: bool,
    keep_per_layer: float,
    keep_multiple_of: int,
) -> Masks:
    groups = [group for group in _streams(network) if group[0] in scores] if together else []
    units = _pooled(network, scores, groups)
    order, total = _order(units, keep_per_layer)

    def gone(count: int) -> dict[str, Tensor]:
        return _split(_marked(order[:count], total), units)

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


def _order(scores: Scores, keep_per_layer: float) -> tuple[Tensor, int]:
    """Positions of what may go, over all layers, what goes first first; and the number of all."""
    ranks = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.cat([_best(score, keep_per_layer).flatten() for score in scores.values()])
    order = ranks.argsort(stable=True)
    return order[~kept[order]], len(ranks)


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
    # A convolution may be unmasked: where nothing of it was ranked, or read by what was.
    convolutions = [
        masks.get(f"{name}.weight", torch.ones_like(weight, dtype=torch.bool)).flatten(1)
        for name, weight in _convolutions(network)
    ]
    gone = [~mask.any(1) for mask in convolutions]
    if scores_filters(scores):
        # A weight that stays in its filter but reads a silent channel does not count here.
        weights = [g[:, None].expand_as(m) for g, m in zip(gone, convolutions, strict=True)]
    else:
        weights = [~masks[name] for name in scores]
    masked = sum(int((~mask).sum()) for mask in masks.values())
    return Shares(
        filters=_share(gone),
        weights=_share(weights),
        parameters=masked / sum(p.numel() for p in network.parameters()),
    )


def _convolutions(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield name, module.weight


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
