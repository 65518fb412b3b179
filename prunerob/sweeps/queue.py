"""The queue of a sweep's runs: which of them an executor is given when, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic, sleep

from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live

from prunerob.errors import UserError
from prunerob.sweeps.executor import Executor
from prunerob.sweeps.job import Job
from prunerob.sweeps.progress import Running, SweepProgress, epochs_done

POLL = 0.2
"""Seconds between two looks at what runs."""

Say = Callable[[str], None]


def run_jobs(jobs: Sequence[Job], executor: Executor) -> dict[Job, str]:
    """Run what is not finished, and show how it goes.

    Args:
        jobs: all runs, each behind the one it builds on.
        executor: where.

    Returns:
        the runs that failed, with the reason; those that build on them are among them.
    """
    with ExitStack() as locks:
        for folder in sorted({job.sweep for job in jobs}):
            folder.mkdir(parents=True, exist_ok=True)
            try:  # two would train in one run
                locks.enter_context(FileLock(folder / ".lock", timeout=0))
            except Timeout:
                raise UserError(f"another sweep is running in {folder}") from None
        for job in jobs:
            job.check()
            base = job.after
            if base and base.is_finished and not base.is_trained and job.commands():
                raise UserError(
                    f"{base.run.folder} has finished, but its checkpoint is gone, and {job.name} "
                    "builds on it; put it back, or remove the folder to train it again"
                )
        return _run_jobs(jobs, executor)


def _run_jobs(jobs: Sequence[Job], executor: Executor) -> dict[Job, str]:
    # What runs say may look like markup.
    console = Console()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    progress = SweepProgress(jobs, executor)
    for job in jobs:
        if job.is_trained:
            progress.learn(job)
        if not job.commands():
            progress.done.append(job)
    if progress.waiting():
        try:
            executor.prepare(progress.waiting(), say)
            with Live(progress, console=console, refresh_per_second=2, transient=True):
                while progress.waiting() or progress.running:
                    _start(progress, executor, say)
                    sleep(POLL)
                    _collect(progress, say)
        finally:  # also after an interruption: nobody would watch them
            try:
                for running in reversed(progress.running):  # first those that only wait
                    running.work.stop()
            finally:
                executor.close()
    say(progress.headline())
    return progress.failed


def _start(progress: SweepProgress, executor: Executor, say: Say) -> None:
    """Give the executor what it has room for and whose base is there."""
    for job in progress.waiting():
        if job.after in progress.failed and not job.after.is_trained:
            progress.failed[job] = f"{job.after.name} failed, on which it builds"
            say(f"{job.name}: left out, {progress.failed[job]}")
        elif executor.accepts(len(progress.running)) and (
            job.after is None or job.after.is_trained
        ):
            before = epochs_done(job)
            progress.running.append(Running(job, executor.begin(job, say), before))


def _collect(progress: SweepProgress, say: Say) -> None:
    """Take note of the runs that have begun or ended."""
    for running in list(progress.running):
        job, work = running.job, running.work
        if running.started is None and work.has_begun():
            running.started = monotonic()
            say(f"{job.name}: begun")
        if not work.has_ended():
            continue
        progress.running.remove(running)
        failure = work.failure()
        if not failure and job.commands():
            failure = f"ended without {'a table' if job.is_trained else 'a trained network'}"
        if failure:
            progress.failed[job] = failure
            say(f"{job.name}: failed: {failure} ({job.log})")
        else:
            progress.done.append(job)
            progress.learn(job, running)
            say(f"{job.name}: finished; {progress.headline()}")
