"""Running the jobs of a sweep: side by side, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prunerob.errors import UserError
from prunerob.locks import locked
from prunerob.sweeps.plan import Job

POLL = 0.2
"""Seconds between two looks at what runs."""


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    started: float
    epochs_before: int


@dataclass
class SweepProgress:
    """What is done, what runs and what is left, with a guess when it ends.

    Args:
        jobs: all that are to run, finished or not.
        at_once: how many run side by side.
    """

    jobs: Sequence[Job]
    at_once: int
    done: list[Job] = field(default_factory=list)
    failed: dict[Job, str] = field(default_factory=dict)
    running: list[_Running] = field(default_factory=list)
    _epoch_seconds: dict[Path, list[float]] = field(default_factory=dict)
    _rest_seconds: list[float] = field(default_factory=list)

    def waiting(self) -> list[Job]:
        """Jobs not begun."""
        begun = {id(running.job) for running in self.running}
        over = {id(job) for job in (*self.done, *self.failed)}
        return [job for job in self.jobs if id(job) not in begun | over]

    def learn(self, job: Job, running: _Running | None = None) -> None:
        """Note how long a finished run took: its epochs and, if it ran just now, the rest."""
        per_epoch = trained_seconds(job) / job.epochs
        self._epoch_seconds.setdefault(job.sweep, []).append(per_epoch)
        if running is not None:
            epochs = job.epochs - running.epochs_before
            self._rest_seconds.append(max(0.0, monotonic() - running.started - epochs * per_epoch))

    def seconds_left(self) -> float | None:
        """A guess of the time to the end; None before anything is known."""
        known = {sweep: list(found) for sweep, found in self._epoch_seconds.items()}
        for running in self.running:
            epochs = epochs_done(running.job) - running.epochs_before
            if epochs > 0 and running.job.sweep not in self._epoch_seconds:
                per_epoch = (monotonic() - running.started) / epochs
                known.setdefault(running.job.sweep, []).append(per_epoch)
        if not known:
            return None
        # Of a sweep that has not begun, guess by the others.
        others = median(seconds for found in known.values() for seconds in found)
        per_epochs = {sweep: median(found) for sweep, found in known.items()}
        rest = median(self._rest_seconds) if self._rest_seconds else 10 * others
        left = sum(
            (job.epochs - epochs_done(job)) * per_epochs.get(job.sweep, others)
            + (0 if job.is_tested else rest)
            for job in (*self.waiting(), *(running.job for running in self.running))
        )
        return left / max(1, min(self.at_once, len(self.running) + len(self.waiting())))

    def headline(self) -> str:
        """One line for people."""
        told = f"{len(self.done)} of {len(self.jobs)} runs finished"
        if self.failed:
            told += f", {len(self.failed)} failed"
        seconds = self.seconds_left()
        if seconds is not None and len(self.done) + len(self.failed) < len(self.jobs):
            end = datetime.now().astimezone() + timedelta(seconds=seconds)
            told += f"; done at about {end:%H:%M}"
            told += f" on {end:%d %B}" if seconds > 12 * 3600 else ""
        return told

    def __rich__(self) -> Group:
        """The display: the headline, and a line for each run that goes on."""
        table = Table.grid(padding=(0, 2))
        for running in self.running:
            minutes, seconds = divmod(int(monotonic() - running.started), 60)
            table.add_row(f"  {running.job.name}", stage(running.job), f"{minutes}:{seconds:02}")
        return Group(Text(self.headline(), style="bold"), table)


def run_jobs(jobs: Sequence[Job], *, at_once: int, threads: int) -> dict[Job, str]:
    """Run what is not finished, and show how it goes.

    Args:
        jobs: all runs, each behind the one it builds on.
        at_once: how many to run side by side.
        threads: CPU threads for each.

    Returns:
        the runs that failed, with the reason; those that build on them are among them.
    """
    with ExitStack() as locks:
        for folder in sorted({job.sweep for job in jobs}):
            folder.mkdir(parents=True, exist_ok=True)
            try:  # two would train in one run
                locks.enter_context(locked(folder / ".lock", wait=False))
            except BlockingIOError:
                raise UserError(f"another sweep is running in {folder}") from None
        for job in jobs:
            job.check()
        return _run_jobs(jobs, at_once, threads)


def _run_jobs(jobs: Sequence[Job], at_once: int, threads: int) -> dict[Job, str]:
    console = Console()
    progress = SweepProgress(jobs, at_once)
    for job in jobs:
        if job.is_trained:
            progress.learn(job)
        if not job.commands():
            progress.done.append(job)
    context = _context()
    with Live(progress, console=console, refresh_per_second=2, transient=True) as live:
        try:
            while progress.waiting() or progress.running:
                _start(progress, context, threads, live.console)
                sleep(POLL)
                _collect(progress, live.console)
        finally:  # also after an interruption: nobody would watch them
            for running in progress.running:
                running.process.terminate()
            for running in progress.running:
                running.process.join(10)
                running.process.kill()  # a file is written beside the old one, then renamed
    _say(console, progress.headline())
    return progress.failed


def _context() -> Any:
    """How processes begin: on Linux from one that has imported all that takes seconds."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prunerob.commands"])
    return context


def _say(console: Console, text: str) -> None:
    """Print a line as it is: what runs say may look like markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _start(progress: SweepProgress, context: Any, threads: int, console: Console) -> None:
    """Begin as many runs as there is room for and whose base is there."""
    for job in progress.waiting():
        if job.after in progress.failed and not job.after.is_trained:
            progress.failed[job] = f"{job.after.name} failed, on which it builds"
            _say(console, f"{job.name}: left out, {progress.failed[job]}")
        elif len(progress.running) < progress.at_once and (
            job.after is None or job.after.is_trained
        ):
            job.clear()
            job.run.folder.mkdir(parents=True, exist_ok=True)
            process = context.Process(
                target=_work, args=(job.commands(), str(job.log), threads), daemon=True
            )
            before = epochs_done(job)
            process.start()
            running = _Running(job, process, monotonic(), before)
            progress.running.append(running)
            _say(console, f"{job.name}: begun")


def _collect(progress: SweepProgress, console: Console) -> None:
    """Take note of the runs that have ended."""
    for running in [r for r in progress.running if not r.process.is_alive()]:
        progress.running.remove(running)
        job = running.job
        if running.process.exitcode == 0 and not job.commands():
            progress.done.append(job)
            progress.learn(job, running)
            _say(console, f"{job.name}: finished; {progress.headline()}")
        else:
            code = running.process.exitcode
            # Below 0 it was ended by a signal, and had no last word.
            ended = f"ended by signal {-code}: " if code is not None and code < 0 else ""
            progress.failed[job] = ended + last_line(job.log)
            _say(console, f"{job.name}: failed: {progress.failed[job]} ({job.log})")


def _work(commands: Sequence[Sequence[str]], log: str, threads: int) -> None:
    """What a process does: some commands, one after the other, printing into a file."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)

    import torch

    from prunerob.cli import main

    torch.set_num_threads(threads)
    for command in commands:
        sys.stdout.write(f"$ prunerob {shlex.join(command)}\n")
        sys.stdout.flush()  # in front of what it says, which has another way out
        main(command)
        sys.stdout.flush()


def _end_with_parent() -> None:
    """Two processes must never train in one folder: none outlives the sweep that began it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def epochs_done(job: Job) -> int:
    """How many of its own epochs a run has finished, as its log tells."""
    if job.is_trained:
        return job.epochs
    found = re.findall(r"^Epoch (\d+)/(\d+) ", _tail(job.log), re.MULTILINE)
    if not found:
        return 0
    epoch, epochs = map(int, found[-1])
    return max(0, job.epochs - (epochs - epoch))


def trained_seconds(job: Job) -> float:
    """How long the training of a finished run took, without that of a run it went on from."""
    seconds = float(json.loads(job.run.summary.read_text())["seconds"])
    if job.dense and job.dense.is_trained:
        seconds -= trained_seconds(job.dense)
    return seconds


def stage(job: Job) -> str:
    """What a run is at."""
    if job.is_trained:
        return "test"
    return f"epoch {min(job.epochs, epochs_done(job) + 1)} of {job.epochs}"


def last_line(log: Path) -> str:
    """The last thing a run said: its error, where there is one."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return (lines[-1] if lines else "no word").removeprefix("prunerob: error: ")


def _tail(log: Path, size: int = 20_000) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")
