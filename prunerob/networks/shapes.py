"""Shapes: what operations that move dimensions about leave of channels, which are dimension 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunerob.networks.spaces import Signal


class NotUnderstood(Exception):  # noqa: N818  (no error: such channels stay whole)
    """An operation may depend on its number of channels."""


@dataclass(frozen=True)
class Size:
    """The size of a value, or one length of it, as a network's code sees it.

    Args:
        of: the value; None where it does not depend on channels.
        dim: the dimension; None for all of them.
    """

    of: Signal | None = None
    dim: int | None = None

    @property
    def tells_channels(self) -> bool:
        """Whether the number of channels is in it."""
        return self.of is not None and self.dim in (None, 1)


PLAIN = Size()
"""A number, or another value that does not depend on channels."""


def size_of(value: Signal, name: str, args: Sequence[Any], settings: Mapping[str, Any]) -> Size:
    """What `x.shape`, `x.size()` or `x.dim()` says, by name; other attributes, as the device."""
    if name == "getattr":
        return Size(value) if args[0] == "shape" else PLAIN
    if name == "dim":
        return PLAIN
    dim = args[0] if args else settings.get("dim")
    return Size(value, dim % value.dims) if isinstance(dim, int) else Size(value)


def length_of(size: Size, which: Any) -> Size:
    """One length, or some, out of all."""
    if size.of is None:
        return PLAIN
    if isinstance(which, slice):
        return Size(size.of) if 1 in range(size.of.dims)[which] else PLAIN
    return Size(size.of, which % size.of.dims) if isinstance(which, int) else size


def dimensions(named: Any, count: int) -> list[int]:
    """Dimensions, counted from the first, of one or several that are named.

    Raises:
        NotUnderstood: they are not known.
    """
    dims = list(named) if isinstance(named, list | tuple) else [named]
    if not dims or not all(isinstance(dim, int) for dim in dims):
        raise NotUnderstood
    return [dim % count for dim in dims]


def averaged(value: Signal, args: Sequence[Any], settings: Mapping[str, Any]) -> Signal:
    """After a mean, a sum or the like over other dimensions than those of images and channels.

    Args:
        value: before.
        args: dimensions, and whether they stay with length 1.
        settings: the same, by name.
    """
    over = dimensions(args[0] if args else settings.get("dim"), value.dims)
    keeps = settings.get("keepdim", args[1] if len(args) > 1 else False)
    if min(over) < 2 or not isinstance(keeps, bool):
        raise NotUnderstood
    return value if keeps else replace(value, dims=value.dims - len(over))


def flattened(value: Signal, start: Any, end: Any) -> Signal:
    """After `flatten(start, end)`."""
    start, end = dimensions((start, end), value.dims)
    if start == 0:
        raise NotUnderstood
    flat = value.is_flat or (start == 1 and end > 1)
    return replace(value, dims=value.dims - max(end - start, 0), is_flat=flat)


def squeezed(value: Signal, dims: Sequence[Any]) -> Signal:
    """After `squeeze` of some dimensions."""
    if min(over := dimensions(dims, value.dims)) < 2:
        raise NotUnderstood
    return replace(value, dims=value.dims - len(over))


def unsqueezed(value: Signal, dim: Any) -> Signal:
    """After `unsqueeze`."""
    if dimensions(dim, value.dims + 1)[0] < 2:
        raise NotUnderstood
    return replace(value, dims=value.dims + 1)


def picked(value: Signal, which: Any) -> Signal:
    """After `x[:, :, ...]`, which leaves images and channels alone."""
    everything = slice(None)
    if not isinstance(which, tuple) or which[:2] != (everything, everything):
        raise NotUnderstood
    if not {type(index) for index in which[2:]} <= {int, slice, type(None)}:
        raise NotUnderstood
    added = sum(index is None for index in which)
    taken = sum(isinstance(index, int) for index in which)
    return replace(value, dims=value.dims + added - taken)


def viewed(value: Signal, shape: Sequence[Any], given: Sequence[Any]) -> tuple[Signal, Signal]:
    """After `view(B, -1)`, or after one that names the number of channels as it is.

    Args:
        value: before.
        shape: what is written.
        given: what each of it is: a `Size`.

    Returns:
        the value after; and that whose number of channels it is to have.
    """
    if len(shape) == 2 and shape[1] == -1:
        flat = value.is_flat or value.dims > 2
        return replace(value, dims=2, is_flat=flat), value
    channels, *others = given[1:2], given[0], *given[2:]
    like = channels[0].of if channels and channels[0].dim == 1 else None
    if like is None or like.is_flat or value.is_flat or like.sizes != value.sizes:
        raise NotUnderstood
    if any(other.tells_channels for other in others):
        raise NotUnderstood
    return replace(value, dims=len(shape)), like
