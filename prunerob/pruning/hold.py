"""Holding masks: pruned parameters are exactly 0 outside of the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from prunerob.errors import UserError
from prunerob.pruning.masks import Masks, apply_masks


class Hold:
    """Keeps a network pruned while it trains.

    Args:
        network: is pruned at once.
        masks: of its parameters, by name, on its device.
    """

    def __init__(self, network: nn.Module, masks: Masks) -> None:
        self.network = network
        self.masks: Masks = {}
        self.change(masks)

    def change(self, masks: Masks) -> None:
        """Hold other masks from now on, which are applied at once."""
        # A mask that takes nothing away costs time at every step.
        self.masks = {name: mask for name, mask in masks.items() if not mask.all()}
        apply_masks(self.network, self.masks)

    def follow(self, optimizer: Optimizer) -> None:
        """Set pruned weights back to 0 at the end of every step of an optimizer.

        Masking gradients instead would not do: momentum and weight decay move weights too.
        """

        def reapply(optimizer: Optimizer, args: object, kwargs: object) -> None:
            apply_masks(self.network, self.masks)

        optimizer.register_step_post_hook(reapply)

    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to 0: they are no part of a norm that is clipped."""
        for name, mask in self.masks.items():
            if (gradient := self.network.get_parameter(name).grad) is not None:
                gradient.masked_fill_(~mask, 0.0)


def check_held(state: Mapping[str, Tensor], masks: Masks, when: str) -> None:
    """See, before weights are saved, that pruned ones are 0: nothing else may pass for pruned.

    Args:
        state: parameters by name, in their full shape.
        masks: of them.
        when: for the error.

    Raises:
        UserError: something has changed them outside of the optimizer's steps.
    """
    for name, mask in masks.items():
        value = state[name]
        if bool(value[~mask.to(value.device)].any()):
            raise UserError(
                f"pruning: {when}, pruned weights of {name} are not 0: a callback or hook has "
                "changed them; leave it out"
            )
