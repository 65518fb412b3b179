"""Training the really narrower network, without the channels that pruning silenced.

The narrow network stands in the Classifier's place of the full one, and the optimizer has its
parameters. Checkpoints hold the full shape all the same: the Classifier's `state_dict` is that of
the full network (a hook on it, as Lightning asks no callback when it saves weights alone), and the
optimizer's state is widened where it is saved and narrowed where it is loaded.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerob.errors import UserError
from prunerob.networks.attacked import AttackedNetwork
from prunerob.networks.narrow import NarrowCopy, Narrowing, find_narrowing
from prunerob.pruning.filters import silence_filters
from prunerob.pruning.masks import Masks, apply_masks
from prunerob.pruning.scores import Scores, scores_filters
from prunerob.training.checks import choose_layout
from prunerob.training.classifier import Classifier
from prunerob.training.phases import FINE_TUNING


class NarrowTraining:
    """Puts the narrow network in the place of the full one; `end` takes it out again.

    Args:
        module: whose network it is.
        narrowing: which channels stay.
    """

    def __init__(self, module: Classifier, narrowing: Narrowing) -> None:
        self.module = module
        self.both = NarrowCopy(module.network, narrowing)
        module.network = self.both.narrow
        module.attacked = AttackedNetwork(self.both.narrow)
        self._hook = module.register_state_dict_post_hook(partial(self._in_full_shape))  # type: ignore[no-untyped-call]

    def _in_full_shape(
        self, module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object
    ) -> None:
        """Give a state of the Classifier the full shape."""
        state.update(self.both.update_wide().state_dict(prefix=f"{prefix}network."))

    @property
    def full(self) -> nn.Module:
        """The full network; its weights may be behind."""
        return self.both.wide

    def to(self, device: torch.device) -> None:
        """Move both networks."""
        self.both.to(device)

    def masks(self, masks: Masks) -> Masks:
        """The masks of the narrow network's parameters."""
        narrowing = self.both.narrowing
        return {name: narrowing.narrow(name, mask) for name, mask in masks.items()}

    def save(self, checkpoint: dict[str, Any], optimizers: list[Optimizer]) -> None:
        """Widen the optimizers' state in a checkpoint that is about to be written."""
        checkpoint["optimizer_states"] = [
            self.both.widen_optimizer_state(state, optimizer)
            for state, optimizer in zip(checkpoint["optimizer_states"], optimizers, strict=True)
        ]

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Narrow the optimizer's state in a checkpoint that was read, before it is taken up."""
        optimizer = self.module.phases[FINE_TUNING].optimizer(self.both.narrow.parameters())
        checkpoint["optimizer_states"] = [
            self.both.narrow_optimizer_state(state, optimizer)
            for state in checkpoint["optimizer_states"]
        ]

    def end(self) -> None:
        """Back to the full network, with the weights of today."""
        self._hook.remove()
        self.module.network = self.both.update_wide()
        self.module.attacked = AttackedNetwork(self.module.network, self.both.narrowing)


def check_narrow(module: Classifier, scores: Scores, criterion: str) -> None:
    """See, before training, that a network and its optimizer can do without channels.

    Args:
        module: whose network it is; it is laid out as it will train.
        scores: of what may go.
        criterion: that made them, for errors.

    Raises:
        UserError: they cannot, or no filters are pruned, or more than once.
    """
    if not scores_filters(scores):
        raise UserError(f"pruning.narrow: is about filters, but {criterion} scores weights")
    if module.pruning_epochs:
        raise UserError(
            "pruning.narrow: takes channels out once, but pruning.schedule prunes again "
            "and again; set it to false (attacks do without them either way)"
        )
    if module.averaging.decay is not None:
        raise UserError(
            "pruning.narrow: does without the channels that model.averaging averages; set it to "
            "false (attacks do without them either way)"
        )
    choose_layout(module.network, module.datamodule.image_shape, module.device)
    try:
        _check_narrow(module, scores)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"pruning.narrow: a trial of one step failed: {error}") from None


def _check_narrow(module: Classifier, scores: Scores) -> None:
    wide = copy.deepcopy(module.network)
    first = {name: torch.arange(len(score)) == 0 for name, score in scores.items()}
    first = {name: gone & (len(gone) > 1) for name, gone in first.items()}
    apply_masks(wide.cpu(), silence_filters(wide, first))
    wide.to(module.device)
    both = NarrowCopy(wide.eval(), find_narrowing(wide))
    x = next(iter(module.datamodule.train_dataloader())).x[:1]
    if not both.agrees(x.to(next(wide.parameters()).device)):
        raise UserError(
            f"pruning.narrow: {type(module.network).__name__} depends on its number of "
            "channels, so they cannot be taken out for training; set it to false"
        )
    optimizer = module.phases[FINE_TUNING].optimizer(wide.parameters())
    for parameter in wide.parameters():
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
        plain = all(
            not isinstance(value, Tensor) or value.shape in (parameter.shape, ())
            for parameter, moments in optimizer.state.items()
            for value in moments.values()
        )
    except (RuntimeError, TypeError):
        plain = False
    if not plain:
        raise UserError(
            f"pruning.narrow: {type(optimizer).__name__} keeps more than numbers by weight, "
            "which cannot be taken out with channels; set it to false"
        )
