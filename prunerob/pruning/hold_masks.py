"""A callback that keeps masks in any Lightning Trainer, with any module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from prunerob.pruning.hold import Hold, check_held
from prunerob.pruning.masks import to_device


class HoldMasks(Callback):
    """Keeps a network pruned while a Trainer trains it, in whatever module it is.

    Checkpoints hold the masks, too; a run that goes on from one has those.

    Args:
        network: that of the module which is trained, or the module itself.
        masks: what stays of its parameters, by name; of `prunerob.prune`.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.network = network
        self.masks = dict(masks)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the masks, from the first step on."""
        hold = Hold(self.network, to_device(self.masks, pl_module.device))
        for optimizer in trainer.optimizers:
            hold.follow(optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that they held.

        Raises:
            UserError: something has changed pruned weights outside of the optimizer's steps.
        """
        check_held(self.network.state_dict(), self.masks, "at the end")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"masks": {name: mask.cpu() for name, mask in self.masks.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take masks up from a checkpoint."""
        self.masks = dict(state_dict["masks"])
