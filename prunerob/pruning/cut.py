"""The cut: what is pruned, decided in one place from settings and a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunerob.errors import UnreachableAmount, UserError
from prunerob.pruning.batches import Offers, ScoringBatches, asks
from prunerob.pruning.budgets import Budget, check_budget, share_out
from prunerob.pruning.counts import count_pruned
from prunerob.pruning.criteria import filter_l1, weight_magnitude
from prunerob.pruning.filters import prune_filters, ranked
from prunerob.pruning.masks import Masks, Reading, Residual, prune_weights, to_device
from prunerob.pruning.scores import (
    Criterion,
    Scores,
    check_scores,
    name_of,
    scores_filters,
    unit_of,
    without,
)
from prunerob.runs.configuration import find_object, instantiate
from prunerob.runs.weights import find_weights, read_checkpoint

STATE = "Pruning"
"""Under which checkpoints hold the masks, among the states of callbacks."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What to prune of a network, whenever that is.

    Args:
        amount: share to prune, in [0, 1).
        criterion: scores weights or filters.
        budget: how the amount is shared out among layers.
        reading: the share that is meant, for filters.
        residual: what becomes of filters that write to a residual stream.
        exclude: names of layers to leave out.
        keep_per_layer: share of each layer's weights or filters that stays, in [0, 1).
        keep_multiple_of: number of filters that each layer keeps, rounded up to a multiple of it.
        masks_from: a pruned run, or a checkpoint of one, whose masks to take.
        seed: of random criteria.

    Raises:
        UserError: a share lies outside [0, 1), or `keep_multiple_of` is below 1.
    """

    amount: float = 0.9
    criterion: Criterion = weight_magnitude
    budget: Budget = "global"
    reading: Reading = "weights"
    residual: Residual = "keep"
    exclude: Sequence[str] = ()
    keep_per_layer: float = 0.0
    keep_multiple_of: int = 1
    masks_from: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_budget(self.budget)
        if self.keep_multiple_of < 1:
            raise UserError(f"pruning.keep_multiple_of: {self.keep_multiple_of} is below 1")
        for name, share in (("amount", self.amount), ("keep_per_layer", self.keep_per_layer)):
            if not 0 <= share < 1:
                raise UserError(f"pruning.{name}: {share} lies outside [0, 1)")

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Cut:
        """The cut of a configuration's `pruning`, in plain values; imports its criterion."""
        names = ("amount", "budget", "reading", "residual", "exclude")
        settings = {name: record[name] for name in (*names, "keep_per_layer", "keep_multiple_of")}
        criterion = record["criterion"]
        read = instantiate if isinstance(criterion, Mapping) else find_object
        return cls(criterion=read(criterion), **settings)

    def at(self, share: float) -> Cut:
        """The same on the way to its amount: of another share, and so of each layer's in a budget.

        Args:
            share: to prune, in [0, 1).
        """
        if share == self.amount:
            return self
        budget = self.budget
        if isinstance(budget, dict):
            budget = {name: part * share / self.amount for name, part in budget.items()}
        return replace(self, amount=share, budget=budget)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, in plain values."""
        return {
            "amount": self.amount,
            "criterion": name_of(self.criterion),
            "budget": self.budget,
            "reading": self.reading,
            "residual": self.residual,
            "exclude": list(self.exclude),
            "keep_per_layer": self.keep_per_layer,
            "keep_multiple_of": self.keep_multiple_of,
            "masks_from": self.masks_from,
        }

    def scores(self, network: nn.Module, batches: ScoringBatches | None = None) -> Scores:
        """Score all that may go.

        Args:
            network: in its full shape.
            batches: for a criterion that sees data. Without them, and where scores decide nothing,
                such a criterion is not called: the scores have the right names and shapes alone.

        Returns:
            float, in each weight's shape, or (filters,) per convolution.

        Raises:
            UserError: the criterion is none, or nothing may go.
        """
        name = name_of(self.criterion)
        asked: Mapping[str, Any] = {}
        may_go: Scores = {}
        if asks(self.criterion):
            stand_in = filter_l1 if unit_of(self.criterion) == "filters" else weight_magnitude
            may_go = self._ranked(network, stand_in(network, self.seed))
            if batches is None or self.masks_from is not None or not self.amount:
                return may_go
            offers = Offers(
                batches=batches,
                masks=partial(self.masks, network),
                amount=self.amount,
                names=may_go.keys(),
            )
            asked = offers.to(self.criterion)
        try:
            scores = self.criterion(network, self.seed, **asked)
            shapes = {name: network.get_parameter(name).shape for name in scores}
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"pruning.criterion: {name} is no function of a network and a seed that returns "
                f"scores by parameter name ({error})"
            ) from None
        for parameter, shape in shapes.items():
            if scores[parameter].shape not in (shape, shape[:1]):
                raise UserError(
                    f"pruning.criterion: scores of {parameter} have another shape than it"
                )
            if bool(scores[parameter].isnan().any()):
                raise UserError(f"pruning.criterion: scores of {parameter} are not numbers (nan)")
        if not may_go:
            return self._ranked(network, scores)
        check_scores(network, scores)
        return {name: score for name, score in scores.items() if name in may_go}

    def _ranked(self, network: nn.Module, scores: Scores) -> Scores:
        """The scores of what may go."""
        scores = without(scores, self.exclude)
        check_scores(network, scores)
        return ranked(network, scores, self.residual)

    def masks(self, network: nn.Module, scores: Scores | None = None) -> Masks:
        """Decide what goes.

        Args:
            network: in its full shape.
            scores: of it, if they are known.

        Returns:
            masks, bool, in each masked parameter's shape, on the scores' device.

        Raises:
            UserError: the amount cannot be reached, or the masks to take do not fit.
        """
        scores = self.scores(network) if scores is None else scores
        if self.masks_from is not None:
            return self._read_masks(network, scores)
        return make_masks(
            network,
            scores,
            self.amount,
            budget=self.budget,
            reading=self.reading,
            residual=self.residual,
            keep_per_layer=self.keep_per_layer,
            keep_multiple_of=self.keep_multiple_of,
        )

    def check(self, network: nn.Module) -> Scores:
        """See, before anything is trained, that so much can be pruned.

        Whether it can hardly depends on the weights.

        Args:
            network: in its full shape, trained or not.

        Returns:
            its scores.

        Raises:
            UserError: it cannot, or nothing would be pruned.
        """
        scores = self.scores(network)
        if not scores_filters(scores):
            if self.keep_multiple_of > 1:
                raise UserError(
                    "pruning.keep_multiple_of: is about filters, but "
                    f"{name_of(self.criterion)} scores weights"
                )
            is_free = not self.keep_per_layer and self.budget == "global"
            if is_free and self.masks_from is None:
                return scores  # any share of weights can go; sorting millions takes a second
        if self.amount and not count_pruned(self.masks(network, scores)):
            raise UnreachableAmount(
                f"pruning.keep_multiple_of: {self.keep_multiple_of} rounds every layer up to all "
                "of its filters; nothing would be pruned"
            )
        return scores

    def kept_by_rounding_up(self, network: nn.Module, scores: Scores, masks: Masks) -> int:
        """How many parameters stay for `keep_multiple_of` alone."""
        if self.keep_multiple_of == 1:
            return 0
        if self.masks_from is not None:
            _, state = _read_state(self.masks_from)
            return int(state["rounded_up"])
        exact = replace(self, keep_multiple_of=1).masks(network, scores)
        return count_pruned(exact) - count_pruned(masks)

    def _read_masks(self, network: nn.Module, scores: Scores) -> Masks:
        """The masks of a pruned run, for a network of the same architecture.

        Raises:
            UserError: there are none, or they are of another network or of other settings.
        """
        file, state = _read_state(self.masks_from or "")
        masks: dict[str, Tensor] = state["masks"]
        shapes = {name: value.shape for name, value in network.named_parameters()}
        for name, mask in masks.items():
            if shapes.get(name) != mask.shape:
                raise UserError(f"pruning.masks_from: {file} is of another network ({name})")
        for name, value in self.settings.items():
            if name != "masks_from" and (theirs := state["settings"].get(name)) != value:
                raise UserError(
                    f"pruning.{name}: {value}, but {file} in pruning.masks_from was pruned with "
                    f"{theirs}"
                )
        if missing := sorted(scores.keys() - masks.keys()):
            raise UserError(f"pruning.masks_from: {file} has no mask of {missing[0]}")
        device = next(iter(scores.values())).device
        return to_device(masks, device)


def _read_state(place: str) -> tuple[Path, dict[str, Any]]:
    """What a pruned run's checkpoint holds about its pruning, and where it is.

    Raises:
        UserError: nothing.
    """
    if not place:
        raise UserError("pruning.masks_from: is empty; name a pruned run, or null for none")
    try:
        file = find_weights(place).file
    except UserError as error:
        told = str(error).removeprefix("ckpt_path: ")
        raise UserError(f"pruning.masks_from: {told}") from None
    callbacks = read_checkpoint(file).get("callbacks")
    state = callbacks.get(STATE) if isinstance(callbacks, dict) else None
    if not state or "masks" not in state:
        raise UserError(f"pruning.masks_from: {file} holds no masks: it is not of a pruned run")
    return file, state


def make_masks(
    network: nn.Module,
    scores: Scores,
    amount: float,
    *,
    budget: Budget = "global",
    reading: Reading = "weights",
    residual: Residual = "keep",
    keep_per_layer: float = 0.0,
    keep_multiple_of: int = 1,
) -> Masks:
    """Prune what scores lowest: see `prune_weights`, `prune_filters`.

    Args:
        network: the network that was scored; only its structure is read.
        scores: from a criterion: in each weight's shape, or (filters,) per convolution.
        amount: share to prune, in [0, 1).
        budget: how it is shared out among layers; of filters "global" or "uniform".
        reading: the share that is meant, for filters.
        residual: what becomes of filters that write to a residual stream.
        keep_per_layer: share of each layer's weights or filters that stays whatever their score.
        keep_multiple_of: number of filters that each layer keeps, rounded up to a multiple of it.

    Returns:
        masks, bool, in each masked parameter's shape, on the scores' device.

    Raises:
        UserError: the amount cannot be reached.
    """
    # Ranked on the CPU: not every accelerator sorts stably, or has float64.
    device = next(iter(scores.values())).device
    scores = {name: score.cpu().double() for name, score in scores.items()}
    amounts = share_out(scores, amount, budget, keep_per_layer=keep_per_layer)
    if scores_filters(scores):
        masks = prune_filters(
            network,
            scores,
            amount,
            reading=reading,
            residual=residual,
            keep_per_layer=keep_per_layer,
            keep_multiple_of=keep_multiple_of,
            uniform=budget == "uniform",
        )
    else:
        masks = prune_weights(scores, amount, keep_per_layer=keep_per_layer, amounts=amounts)
    return to_device(masks, device)
