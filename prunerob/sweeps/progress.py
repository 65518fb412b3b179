"""What is known of a sweep's runs while they go on: from their files alone, wherever they run."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from time import monotonic

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prunerob.sweeps.executor import Executor, Work
from prunerob.sweeps.job import Job


@dataclass
class Running:
    """A run that was given to an executor.

    Args:
        job: the run.
        work: the executor's side of it.
        epochs_before: how many of its epochs were finished before.
        started: when it began, by the monotonic clock; None while it waits for its turn.
    """

    job: Job
    work: Work
    epochs_before: int
    started: float | None = None

    def seconds(self) -> float:
        """How long it has been going on."""
        return 0.0 if self.started is None else monotonic() - self.started


@dataclass
class SweepProgress:
    """What is done, what runs and what is left, with a guess when it ends.

    Args:
        jobs: all that are to run, finished or not.
        executor: where they run.
    """

    jobs: Sequence[Job]
    executor: Executor
    done: list[Job] = field(default_factory=list)
    failed: dict[Job, str] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)
    _epoch_seconds: dict[Path, list[float]] = field(default_factory=dict)
    _rest_seconds: list[float] = field(default_factory=list)

    def waiting(self) -> list[Job]:
        """Jobs not begun."""
        begun = {id(running.job) for running in self.running}
        over = {id(job) for job in (*self.done, *self.failed)}
        return [job for job in self.jobs if id(job) not in begun | over]

    def learn(self, job: Job, running: Running | None = None) -> None:
        """Note how long a finished run took: its epochs and, if it ran just now, the rest."""
        per_epoch = trained_seconds(job) / job.epochs
        self._epoch_seconds.setdefault(job.sweep, []).append(per_epoch)
        if running is not None:
            epochs = job.epochs - running.epochs_before
            self._rest_seconds.append(max(0.0, running.seconds() - epochs * per_epoch))

    def seconds_left(self) -> float | None:
        """A guess of the time to the end; None before anything is known."""
        known = {sweep: list(values) for sweep, values in self._epoch_seconds.items()}
        for running in self.running:
            epochs = epochs_done(running.job) - running.epochs_before
            if epochs > 0 and running.job.sweep not in self._epoch_seconds:
                per_epoch = running.seconds() / epochs
                known.setdefault(running.job.sweep, []).append(per_epoch)
        if not known:
            return None
        # Of a sweep that has not begun, guess by the others.
        others = median(seconds for values in known.values() for seconds in values)
        per_epochs = {sweep: median(values) for sweep, values in known.items()}
        rest = median(self._rest_seconds) if self._rest_seconds else 10 * others
        left = sum(
            (job.epochs - epochs_done(job)) * per_epochs.get(job.sweep, others)
            + (0 if job.is_tested else rest)
            for job in (*self.waiting(), *(running.job for running in self.running))
        )
        return left / max(1, min(self.executor.room(), len(self.running) + len(self.waiting())))

    def headline(self) -> str:
        """One line for people."""
        line = f"{len(self.done)} of {len(self.jobs)} runs finished"
        if self.failed:
            line += f", {len(self.failed)} failed"
        over = len(self.done) + len(self.failed) == len(self.jobs)
        if not over and (seconds := self.seconds_left()) is not None:
            end = datetime.now().astimezone() + timedelta(seconds=seconds)
            line += f"; done at about {end:%H:%M}"
            line += f" on {end:%d %B}" if seconds > 12 * 3600 else ""
        return line

    def __rich__(self) -> Group:
        """The display: the headline, and a line for each run that goes on."""
        table = Table.grid(padding=(0, 2))
        begun = [running for running in self.running if running.started is not None]
        for running in begun:
            minutes, seconds = divmod(int(running.seconds()), 60)
            table.add_row(f"  {running.job.name}", stage(running.job), f"{minutes}:{seconds:02}")
        if queued := len(self.running) - len(begun):
            table.add_row(f"  {queued} more in the executor's queue")
        return Group(Text(self.headline(), style="bold"), table)


def epochs_done(job: Job) -> int:
    """How many of its own epochs a run has finished, as its log tells."""
    if job.is_trained:
        return job.epochs
    lines = re.findall(r"^Epoch (\d+)/(\d+) \(", _tail(job.log), re.MULTILINE)
    if not lines:
        return 0
    epoch, epochs = map(int, lines[-1])
    return max(0, job.epochs - (epochs - epoch))


def trained_seconds(job: Job) -> float:
    """How long the training of a finished run took, without that of a run it went on from."""
    seconds = job.seconds
    if job.dense and job.dense.is_trained:
        seconds -= trained_seconds(job.dense)
    return seconds


def stage(job: Job) -> str:
    """What a run is at."""
    if job.is_trained:
        return "test"
    return f"epoch {min(job.epochs, epochs_done(job) + 1)} of {job.epochs}"


def last_line(log: Path) -> str:
    """The last line of a run's log: its error, where there is one."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return (lines[-1] if lines else "no word").removeprefix("prunerob: error: ")


def _tail(log: Path, size: int = 20_000) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:  # not begun, or begun anew just now
        return ""
