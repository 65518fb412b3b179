"""Where the output channels of convolutions go: as a network says, or as it is traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from prunerob.errors import UserError
from prunerob.networks.parts import Part
from prunerob.networks.spaces import Space
from prunerob.networks.tracing import trace

Reader = str | Part
"""A layer's name; or a part of what it reads or serves, where other channels stand beside these."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A residual stream: channels that several convolutions add to, one on top of the other.

    A channel of it can be taken out where all that write to it are silent.

    Args:
        name: tells it from other streams. All that write to it are given the same stream, equal
            in name, readers and norms.
        readers: of these channels, as in `Channels`.
        norms: of the sum's channels, as in `Channels`.
    """

    name: str
    readers: tuple[Reader, ...] = ()
    norms: tuple[Reader, ...] = ()

    def __post_init__(self) -> None:
        _make_tuples(self)


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Where the output channels of one convolution go.

    Args:
        readers: names of the convolutions and linear layers that read these channels and nothing
            else, or the `Part` of theirs that does. A linear layer behind a flatten reads each
            channel's pixels side by side.
        norms: names of the layers that serve these channels one by one, or the `Part` of theirs
            that does: BatchNorm, depthwise convolutions, and those whose output the channels are
            multiplied with, as in squeeze-and-excitation. A channel's share of them goes with it.
        stream: the residual stream that they are added to, if any; it has its readers.
    """

    readers: tuple[Reader, ...] = ()
    norms: tuple[Reader, ...] = ()
    stream: Stream | None = None

    def __post_init__(self) -> None:
        _make_tuples(self)


def _make_tuples(leads: Channels | Stream) -> None:
    for name in ("readers", "norms"):  # lists have no hash
        object.__setattr__(leads, name, tuple(getattr(leads, name)))


@runtime_checkable
class ChannelMap(Protocol):
    """A network that says where each prunable convolution leads; others are traced.

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
    """Where a network's channels lead: as it says, or else as its operations do.

    Args:
        network: any; a `ChannelMap` is taken at its word, as far as sizes fit.

    Returns:
        by the name of each convolution whose filters may go.

    Raises:
        UserError: it says what cannot be, or none of its filters may go.
    """
    kind = type(network).__name__
    if isinstance(network, ChannelMap):
        channels = network.channels()
        _check(network, channels)
        return channels
    traced = trace(network)
    if not traced.spaces:
        name, why = next(iter(traced.whole.items()), ("", "it has no convolutions"))
        if name:
            why = f"those of {name} stay because of {why}"
        raise UserError(
            f"pruning.criterion: the filters of {kind} cannot be pruned: {why}; give it a "
            "channels() method as MnistCNN has, or prune weights"
        )
    return _as_channels(traced.spaces)


def known_channels(network: nn.Module) -> Mapping[str, Channels]:
    """The same; of a network about which nothing is known, nothing."""
    try:
        return channels_of(network)
    except UserError:
        if isinstance(network, ChannelMap):
            raise
        return {}


def part_of(reader: Reader, channels: int) -> Part:
    """The part of a layer that has to do with some channels: all of it, where a name alone says so.

    Args:
        reader: the layer.
        channels: their number.
    """
    return Part(layer=reader, first=0, of=channels) if isinstance(reader, str) else reader


def _as_channels(spaces: Sequence[Space]) -> dict[str, Channels]:
    """Spaces of channels by the names of those that write to them, first ones first."""
    channels = {}
    for space in spaces:
        first = space.writers[0].name
        stream = None
        if len(space.writers) > 1:
            readers, norms = _names(space.readers, space.size), _names(space.norms, space.size)
            stream = Stream(name=f"of {first}", readers=readers, norms=norms)
        for writer in space.writers:
            readers, norms = _names(writer.readers, space.size), _names(writer.norms, space.size)
            channels[writer.name] = Channels(readers=readers, norms=norms, stream=stream)
    return channels


def _names(parts: Sequence[Part], size: int) -> tuple[Reader, ...]:
    """Layers' names where all that they read or serve is meant."""
    return tuple(part.layer if part.of == size else part for part in parts)


def _check(network: nn.Module, channels: Mapping[str, Channels]) -> None:
    """See that a network's own map fits its layers.

    Raises:
        UserError: it does not.
    """
    kind = f"{type(network).__name__}.channels()"
    modules = dict(network.named_modules())
    for name, leads in channels.items():
        filters = _size(network, modules, name, 0)
        ends: list[Channels | Stream] = [leads, leads.stream] if leads.stream else [leads]
        for served in ends:
            for reader in served.readers:
                part = part_of(reader, filters)
                if getattr(modules.get(part.layer), "groups", 1) == 1:
                    read = _size(network, modules, part.layer, 1)
                    if read % part.of or part.first + filters > part.of:
                        raise UserError(
                            f"{kind}: {part.layer} reads {read} channels, which cannot be the "
                            f"{_told(part, filters)} of {name}"
                        )
            for norm in served.norms:
                part = part_of(norm, filters)
                width = _width(network, modules, part.layer)
                if width != part.of or part.first + filters > width:
                    raise UserError(
                        f"{kind}: {part.layer} is of {width} channels, {name} of "
                        f"{_told(part, filters)}"
                    )


def _told(part: Part, filters: int) -> str:
    """The channels that are meant."""
    return str(filters) if part.of == filters else f"{filters} from {part.first} on, of {part.of}"


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
