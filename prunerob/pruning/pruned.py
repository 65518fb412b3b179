"""Pruning from Python: masks that a training loop of one's own holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from prunerob.errors import UserError
from prunerob.pruning.batches import asks
from prunerob.pruning.budgets import Budget
from prunerob.pruning.counts import Layer, Shares, count_layers, count_shares
from prunerob.pruning.criteria import weight_magnitude
from prunerob.pruning.cut import Cut
from prunerob.pruning.hold import Hold
from prunerob.pruning.masks import Reading, Residual, emptied_layers
from prunerob.pruning.scores import Criterion, Scores, name_of


class Pruned(Mapping[str, Tensor]):
    """The masks of a network, by parameter name: bool, in its shape, True where it stays.

    Args:
        network: is pruned at once, in place.
        masks: on its device.
        scores: what was ranked.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor], scores: Scores) -> None:
        self.network = network
        self._masks = dict(masks)
        self._hold = Hold(network, masks)
        self.shares: Shares = count_shares(network, masks, scores)
        """How much is pruned, in [0, 1], by each of the three readings."""

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def layers(self) -> list[Layer]:
        """Parameters and channels of each layer, before and after."""
        return count_layers(self.network, self._masks)

    def hold(self, optimizer: Optimizer) -> None:
        """Keep every pruned parameter exactly 0 after each step of an optimizer.

        Args:
            optimizer: of the network's parameters; whatever momentum and weight decay it has.
        """
        self._hold.follow(optimizer)


def prune(
    network: nn.Module,
    amount: float,
    *,
    criterion: Criterion = weight_magnitude,
    budget: Budget = "global",
    reading: Reading = "weights",
    residual: Residual = "keep",
    exclude: Sequence[str] = (),
    keep_per_layer: float = 0.0,
    keep_multiple_of: int = 1,
    seed: int = 0,
) -> Pruned:
    """Prune a network in place, in one shot.

    Args:
        network: any; for filters, its channels are traced where it does not say where they lead.
        amount: share to prune, in [0, 1).
        criterion: scores weights or filters, as `prunerob.pruning.filter_l1`; a function of a
            network and a seed.
        budget: how weights are shared out among layers.
        reading: the share that is meant, for filters; see `prunerob.pruning.masks`.
        residual: what becomes of filters that write to a residual stream.
        exclude: names of layers to leave out.
        keep_per_layer: share of each layer's weights or filters that stays, in [0, 1).
        keep_multiple_of: round the number of filters that a layer keeps up to a multiple of this.
        seed: of random criteria.

    Returns:
        the masks, which `hold(optimizer)` keeps while the network trains on.

    Raises:
        UserError: so much cannot be pruned, or a layer would be empty.
    """
    if asks(criterion):
        raise UserError(
            f"criterion: {name_of(criterion)} sees training batches, which a run of `prunerob fit` "
            "has; give prune() a function of the network and the seed"
        )
    cut = Cut(
        amount=amount,
        criterion=criterion,
        budget=budget,
        reading=reading,
        residual=residual,
        exclude=exclude,
        keep_per_layer=keep_per_layer,
        keep_multiple_of=keep_multiple_of,
        seed=seed,
    )
    scores = cut.scores(network)
    masks = cut.masks(network, scores)
    if empty := emptied_layers(masks):
        raise UserError(f"amount: {amount} would empty {', '.join(empty)}; prune less")
    return Pruned(network, masks, scores)
