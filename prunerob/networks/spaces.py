"""Spaces of channels: strands that convolutions write, and that sums unite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from prunerob.networks.parts import Part


@dataclass(eq=False)
class Strand:
    """Channels side by side that come out of one layer, or out of a sum of others.

    Args:
        size: number of channels.
        writer: name of the layer that they come out of; None of a sum.
        is_linear: whether that is a linear layer.
    """

    size: int
    writer: str | None = None
    is_linear: bool = False
    readers: list[Part] = field(default_factory=list)
    norms: list[Part] = field(default_factory=list)
    gates: Strand | None = None
    """The strand that it is multiplied with, and so goes with: as squeeze-and-excitation does."""
    whole: str | None = None
    """Why no channel may go."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A convolution, and who has to do with its output alone, before it becomes part of a sum."""

    name: str
    readers: tuple[Part, ...] = ()
    norms: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Space:
    """Channels that can go, each with all that write, serve and read it.

    Args:
        size: number of channels.
        writers: convolutions, first ones first.
        readers: of the sum of all writers' outputs; none where there is but one.
        norms: of the sum, likewise.
    """

    size: int
    writers: tuple[Writer, ...]
    readers: tuple[Part, ...] = ()
    norms: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Signal:
    """What flows from one operation to the next, as far as channels are concerned.

    Args:
        strands: that stand side by side.
        dims: number of dimensions; channels are dimension 1.
        is_flat: whether each channel's pixels stand side by side in dimension 1.
        is_silent: whether a channel that its writer leaves at 0 is 0 here.
    """

    strands: tuple[Strand, ...]
    dims: int
    is_flat: bool = False
    is_silent: bool = True

    @property
    def size(self) -> int:
        """Number of channels."""
        return sum(strand.size for strand in self.strands)

    @property
    def sizes(self) -> list[int]:
        """Number of channels of each strand."""
        return [strand.size for strand in self.strands]

    def loud(self) -> Signal:
        """The same where silent channels are no longer 0."""
        return replace(self, is_silent=False)


class Spaces:
    """All strands of a network, and which of them are the same channels."""

    def __init__(self) -> None:
        self.strands: list[Strand] = []
        self._above: dict[Strand, Strand] = {}

    def begin(self, size: int, writer: str | None = None, *, is_linear: bool = False) -> Strand:
        """A new strand."""
        self.strands.append(Strand(size, writer, is_linear))
        return self.strands[-1]

    def root(self, strand: Strand) -> Strand:
        """The one strand that stands for all that are the same channels."""
        while strand in self._above:
            strand = self._above[strand]
        return strand

    def are_same(self, these: Sequence[Strand], those: Sequence[Strand]) -> bool:
        """Whether strands are, one by one, the same channels."""
        return [*map(self.root, these)] == [*map(self.root, those)]

    def unite(self, these: Iterable[Strand], those: Iterable[Strand]) -> None:
        """Make strands, one by one, the same channels."""
        for this, that in zip(these, those, strict=True):
            if self.root(this) is not self.root(that):
                self._above[self.root(that)] = self.root(this)

    def gate(self, gates: Iterable[Strand], strands: Iterable[Strand]) -> None:
        """Let channels go with those that they are multiplied with."""
        for gate, strand in zip(gates, strands, strict=True):
            if self.root(gate) is self.root(strand):
                continue
            for member in self.strands:
                if self.root(member) is self.root(gate):
                    member.gates = strand
            self.unite([strand], [gate])

    def keep_whole(self, strands: Iterable[Strand], why: str) -> None:
        """Let no channel of some strands, and so of all that are the same, go."""
        for strand in strands:
            strand.whole = strand.whole or why

    def finish(self) -> tuple[list[Space], dict[str, str]]:
        """What can go, and why the other convolutions' channels cannot, by name."""
        members: dict[Strand, list[Strand]] = {}
        for strand in self.strands:
            members.setdefault(self.root(strand), []).append(strand)
        spaces, whole = list[Space](), dict[str, str]()
        for same in members.values():
            names = [s.writer for s in same if s.writer and not s.is_linear]
            linear = next((s.writer for s in same if s.is_linear and not s.gates), None)
            why = next((s.whole for s in same if s.whole), None)
            if linear and not why:
                why = f"{linear} writes to the same channels, and linear layers keep theirs"
            if why:
                whole |= dict.fromkeys(names, why)
            elif names:
                spaces.append(_space(same))
        return spaces, whole


def _space(strands: Sequence[Strand]) -> Space:
    """The space of strands that are the same channels."""
    alone: dict[str, list[Strand]] = {s.writer: [] for s in strands if s.writer and not s.gates}
    together: list[Strand] = []
    for strand in strands:
        owner = strand.gates or strand
        own = owner.writer is not None and not owner.gates
        (alone[owner.writer or ""] if own else together).append(strand)
    if len(alone) == 1:
        alone = {name: list(strands) for name in alone}
        together = []
    writers = [
        Writer(name=name, readers=_readers(own), norms=_norms(own)) for name, own in alone.items()
    ]
    return Space(
        size=strands[0].size,
        writers=tuple(writers),
        readers=_readers(together),
        norms=_norms(together),
    )


def _readers(strands: Sequence[Strand]) -> tuple[Part, ...]:
    return tuple(dict.fromkeys(part for strand in strands for part in strand.readers))


def _norms(strands: Sequence[Strand]) -> tuple[Part, ...]:
    """Who serves some strands; layers that gate others serve those."""
    served = [part for strand in strands for part in strand.norms]
    gates = [
        Part(layer=strand.writer, first=0, of=strand.size)
        for strand in strands
        if strand.gates and strand.writer
    ]
    return tuple(dict.fromkeys([*served, *gates]))
