"""How a network tells filter pruning where the output channels of its convolutions go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Where the output channels of one convolution go.

    Args:
        readers: names of the convolutions and linear layers that read these channels and nothing
            else. A linear layer behind a flatten reads each channel's pixels side by side.
        norms: names of the normalisations (BatchNorm) that serve these channels alone.
    """

    readers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


@runtime_checkable
class ChannelMap(Protocol):
    """A network whose filters can be pruned: it says where each prunable convolution leads.

    A convolution that is missing from the mapping is not ranked by filter pruning. As channels are
    not only silenced but taken out (`prunerob.networks.narrow`), `forward` must not depend on
    their number: `flatten(1)`, not `view(-1, 1600)`.
    """

    def channels(self) -> Mapping[str, Channels]:
        """Module name of each convolution whose filters may go, and where its channels lead."""
        ...
