"""Locks between processes, on one machine or several that share a file system."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CANNOT_LOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems answer that know no locks, as some of clusters."""


@contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file's lock; it is given back in any case, also when the process is killed.

    Windows and some file systems of clusters have no such locks; there this does nothing.

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
        try:
            fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
        yield
