"""Averaged weights: an exponential moving average over the steps, which is what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.runs.ranks import broadcast_buffers

STATE = "averaging"
"""Where a checkpoint holds the weights that training goes on from."""


class Averaging(Callback):
    """The average of a network's weights and buffers, in which late ones weigh more.

    After every optimizer step: average = decay * average + (1 - decay) * weights; the first step
    begins it. The average is what is validated, saved under `state_dict` and tested. Training goes
    on from the weights themselves, which checkpoints hold beside it. At the end of a phase the
    network becomes its average: that is what is pruned, and what teaches. A pruned weight is
    exactly 0 in both.

    Args:
        decay: in [0, 1); 0.995 remembers about 200 steps. None averages nothing.

    Raises:
        UserError: it lies outside.
    """

    def __init__(self, decay: float | None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise UserError(f"model.averaging: {decay} lies outside [0, 1)")
        self.decay = decay
        self.average: dict[str, Tensor] | None = None
        """By name in the network; None before the first step of a phase."""
        self._steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Count a network's weights in."""
        if self.decay is None:
            return
        state = network.state_dict()
        if self.average is None:
            self.average = {name: value.clone() for name, value in state.items()}
            return
        weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
        averages = [self.average[name] for name in weights]
        torch._foreach_lerp_(averages, list(weights.values()), 1 - self.decay)
        for name, value in network.named_buffers():
            if (average := self.average.get(name)) is None:  # one that is not kept
                continue
            if value.is_floating_point():  # an endless one stays as it is
                value = torch.where(value == average, value, average.lerp(value, 1 - self.decay))
            average.copy_(value)

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange the network's values and the average's, if there is one."""
        for name, value in network.state_dict().items() if self.average else ():
            mine = cast(dict[str, Tensor], self.average)[name]
            kept = value.clone()
            value.copy_(mine)
            mine.copy_(kept)

    @contextmanager
    def swapped(self, network: nn.Module) -> Iterator[None]:
        """The network is its average, if there is one, for a while."""
        self.swap(network)
        try:
            yield
        finally:
            self.swap(network)

    def take(self, network: nn.Module) -> None:
        """Make the network its average, the same on all ranks; the next step begins anew."""
        self.swap(network)
        self.average = None
        broadcast_buffers(network)

    @torch.no_grad()
    def apply(self, masks: Mapping[str, Tensor]) -> None:
        """Set to 0 what is pruned.

        Args:
            masks: by parameter name, bool, True for what stays.
        """
        for name, mask in masks.items() if self.average else ():
            value = cast(dict[str, Tensor], self.average)[name]
            value.masked_fill_(~mask.to(value.device), 0)

    # In training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move to the network's device what a checkpoint held."""
        self._steps = trainer.global_step
        if self.average is not None:
            self.average = {name: v.to(pl_module.device) for name, v in self.average.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count the weights in, if the optimizer took a step."""
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self.update(cast(nn.Module, pl_module.network))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.swap(cast(nn.Module, pl_module.network))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.swap(cast(nn.Module, pl_module.network))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the network, and the weights beside it."""
        if self.average is None:
            return
        checkpoint[STATE] = checkpoint["state_dict"]
        average = {f"network.{name}": value for name, value in self.average.items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from the weights; Lightning has loaded the average into the network by now."""
        if trainer.state.fn != TrainerFn.FITTING or STATE not in checkpoint:
            return
        network = cast(nn.Module, pl_module.network)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        state = checkpoint[STATE].items()
        network.load_state_dict({name.removeprefix("network."): value for name, value in state})
