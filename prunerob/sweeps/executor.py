"""What a sweep asks of the place where its runs go on: processes here, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from prunerob.sweeps.job import Job


class Work(Protocol):
    """A run that was given to an executor."""

    def has_begun(self) -> bool:
        """Whether it had its turn."""

    def has_ended(self) -> bool:
        """Whether it is over, well or not."""

    def failure(self) -> str:
        """Why it failed, once it has ended; nothing if it went well."""

    def stop(self) -> None:
        """Tell it to end now. What it has finished stays."""


class Executor(Protocol):
    """A place where runs go on."""

    def prepare(self, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        """Make ready for some runs, or find that they cannot go on here.

        Args:
            jobs: the runs that are left.
            say: tells the user something.

        Raises:
            UserError: they cannot.
        """

    def accepts(self, running: int) -> bool:
        """Whether to give it one more, when it has so many."""

    def room(self) -> int:
        """How many runs go on side by side."""

    def begin(self, job: Job, say: Callable[[str], None]) -> Work:
        """Take a run on.

        Args:
            job: the run; the one that it builds on is finished.
            say: tells the user something about it.
        """

    def close(self) -> None:
        """Wait for what was stopped, and leave nothing behind."""
