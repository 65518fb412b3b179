"""The teacher: the network as it was before pruning, in objectives that distil it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Teacher:
    """A copy of a network that no longer learns; not an `nn.Module`, so nobody's weights.

    Args:
        network: to copy as it is, on its device.
        state: weights and buffers to take in place of the network's.
    """

    def __init__(self, network: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        if state is not None:
            self.network.load_state_dict(state)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, classes) for images (B, C, H, W), pixels in [0, 1]."""
        logits: Tensor = self.network.to(x.device)(x)
        return logits

    @property
    def state(self) -> dict[str, Tensor]:
        """Weights and buffers, by name."""
        return self.network.state_dict()
