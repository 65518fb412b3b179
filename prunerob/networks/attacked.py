"""The network as attacks and evaluation see it: without the channels that pruning silenced."""

from __future__ import annotations

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from prunerob.networks.narrow import NarrowCopy, Narrowing


class AttackedNetwork:
    """Gives the fastest network that answers as another does, with that one's weights of today.

    Not an `nn.Module`: it does not own the network.

    Args:
        network: to be attacked; it may go on training.
        narrowing: which of its channels stay; None for all.
    """

    def __init__(self, network: nn.Module, narrowing: Narrowing | None = None) -> None:
        self.network = network
        self._copy = NarrowCopy(network, narrowing) if narrowing and narrowing.kept else None
        self._agrees = False

    def __call__(self, x: Tensor) -> nn.Module:
        """The network to attack.

        Args:
            x: images, as examples: the first is asked whether the network can do without channels.

        Returns:
            the narrow copy; the network itself where there is none, or (with a warning, once)
            where it answers otherwise.
        """
        if self._copy is None:
            return self.network
        if not self._agrees:
            self._agrees = self._copy.agrees(x[:1])
            if not self._agrees:
                rank_zero_warn(
                    f"{type(self.network).__name__} depends on its number of channels, so those "
                    "that are silent stay in it: attacks are slower than they could be"
                )
                self._copy = None
                return self.network
        return self._copy.update_narrow()

    def to(self, device: torch.device) -> None:
        """Move the narrow copy to where the network is."""
        if self._copy is not None:
            self._copy.to(device)
