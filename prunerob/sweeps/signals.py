"""Sweeps that are told to end: they stop their runs, and say how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GO_ON = "the same command goes on where it stopped; what is finished is not run again"


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what stands within as an exception does, with all its `finally`.

    The second and later ones are ignored: the first is being obeyed. A signal that was ignored
    before (`nohup`) stays so.

    Raises:
        SystemExit: with status 128 and the signal's number, as a shell has it.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not received:
            received.append(number)
            if not _uninterrupted:
                raise SystemExit(128 + number)
            _uninterrupted[-1] = number

    for number in numbers:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt:
        _say(f"Interrupted: {GO_ON}")
        raise
    except SystemExit:
        if received:
            _say(f"Ended by {signal.Signals(received[0]).name}: {GO_ON}")
        raise
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


_uninterrupted: list[int] = []
"""For each block of `uninterrupted` that is at work, the number of a signal that waits, or 0."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal that would end what stands within `ending_in_order` wait for the block's end.

    Such as the start of a process, which nothing would end if nobody came to know of it.

    Raises:
        SystemExit: one came.
    """
    _uninterrupted.append(0)
    try:
        yield
    finally:
        number = _uninterrupted.pop()
    if number:
        raise SystemExit(128 + number)


def _say(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:  # the terminal has hung up
        pass
