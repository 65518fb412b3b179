"""The lock on a run: one `fit` at a time writes into its folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prunerob.errors import UserError
from prunerob.runs.folder import check_writable


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; the system gives it back when the process dies.

    Args:
        folder: of the run; made if it is not there, and removed at the end if nothing came into it.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    check_writable(folder)
    lock, holder = FileLock(folder / ".lock", timeout=0), folder / ".holder"
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(holder)}; wait for its end, or stop it"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: see filelock
        lock.release()
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _holder(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:  # it has only just begun, or ended
        return "another process"
