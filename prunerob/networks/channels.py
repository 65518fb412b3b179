"""How a network tells filter pruning where the output channels of its convolutions go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from prunerob.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A residual stream: channels that several convolutions add to, one on top of the other.

    A channel of it can be taken out where all that write to it are silent.

    Args:
        name: tells it from other streams. All that write to it are given the same stream, equal
            in name, readers and norms.
        readers: names of the convolutions and linear layers that read these channels and nothing
            else.
        norms: names of the normalisations (BatchNorm) that serve the sum's channels alone.
    """

    name: str
    readers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("readers", "norms"):  # lists have no hash
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Where the output channels of one convolution go.

    Args:
        readers: names of the convolutions and linear layers that read these channels and nothing
            else. A linear layer behind a flatten reads each channel's pixels side by side.
        norms: names of the normalisations (BatchNorm) that serve these channels alone.
        stream: the residual stream that they are added to, if any; it has its readers.
    """

    readers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    stream: Stream | None = None


@runtime_checkable
class ChannelMap(Protocol):
    """A network whose filters can be pruned: it says where each prunable convolution leads.

    A convolution that is missing from the mapping keeps its filters; a criterion must not score
    them. As channels are not only silenced but taken out (`prunerob.networks.narrow`), `forward`
    must not depend on their number: `flatten(1)`, not `view(-1, 1600)`.
    """

    def channels(self) -> Mapping[str, Channels]:
        """Module name of each convolution whose filters may go, and where its channels lead.

        All that write to a residual stream must be in it, or none.
        """
        ...


def channels_of(network: nn.Module) -> Mapping[str, Channels]:
    """Where a network's channels lead.

    Raises:
        UserError: it does not say, or says what cannot be.
    """
    if not isinstance(network, ChannelMap):
        raise UserError(
            f"pruning.criterion: {type(network).__name__} does not say where its channels lead, so "
            "its filters cannot be pruned; give it a channels() method as MnistCNN has"
        )
    channels = network.channels()
    modules = dict(network.named_modules())
    for name, leads in channels.items():
        filters = _size(network, modules, name, 0)
        ends: list[Channels | Stream] = [leads, leads.stream] if leads.stream else [leads]
        for served in ends:
            for reader in served.readers:
                if getattr(modules.get(reader), "groups", 1) == 1:
                    read = _size(network, modules, reader, 1)
                    if read % filters:
                        raise UserError(
                            f"{type(network).__name__}.channels(): {reader} reads {read} channels, "
                            f"which cannot be the {filters} of {name}"
                        )
            for norm in served.norms:
                if (served_by_it := _width(network, modules, norm)) != filters:
                    raise UserError(
                        f"{type(network).__name__}.channels(): {norm} is of {served_by_it} "
                        f"channels, {name} of {filters}"
                    )
    return channels


def _size(network: nn.Module, modules: Mapping[str, nn.Module], name: str, dim: int) -> int:
    """Length of a named layer's weight along one dimension.

    Raises:
        UserError: there is no such layer with weights.
    """
    weight = getattr(modules.get(name), "weight", None)
    if weight is None or weight.dim() <= dim:
        problem = "is no layer of it" if name not in modules else "has no such weights"
        raise UserError(f"{type(network).__name__}.channels(): {name!r} {problem}")
    return int(weight.shape[dim])


def _width(network: nn.Module, modules: Mapping[str, nn.Module], norm: str) -> int:
    """Number of channels that a named normalisation serves; it may be without weights."""
    for name in ("num_features", "num_channels"):
        if isinstance(width := getattr(modules.get(norm), name, None), int):
            return width
    return _size(network, modules, norm, 0)


def writers(channels: Mapping[str, Channels]) -> dict[Stream, list[str]]:
    """The residual streams of a network, and the convolutions that write to each."""
    streams: dict[Stream, list[str]] = {}
    for name, leads in channels.items():
        if leads.stream is not None:
            streams.setdefault(leads.stream, []).append(name)
    return streams
