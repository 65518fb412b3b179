"""Locks between the processes of one machine; Windows has no `flock`, so there they do nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file's lock; it is given back in any case, also when the process is killed.

    Args:
        file: made if it is not there.
        wait: until others have given it back.

    Raises:
        BlockingIOError: another process holds it, and it was not to be waited for.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with file.open("a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
