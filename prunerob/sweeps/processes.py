"""Runs on this machine, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from prunerob.sweeps.job import Job
from prunerob.sweeps.progress import last_line
from prunerob.sweeps.signals import uninterrupted
from prunerob.sweeps.worker import forget_ranks, work


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else [str(number) for number in range(count)])[:count]


class Processes:
    """An executor: this machine, its GPUs in turn.

    Args:
        at_once: how many runs go on side by side.
        threads: CPU threads of each.
    """

    def __init__(self, *, at_once: int, threads: int) -> None:
        self.at_once = at_once
        self.threads = threads
        self._context: Any = None
        self._gpus: list[str] = []
        self._processes: list[_Process] = []

    def prepare(self, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        """Choose how processes begin: on Linux from one that has imported what takes seconds."""
        forget_ranks()
        self._gpus = gpus()
        linux = sys.platform == "linux"
        self._context = multiprocessing.get_context("forkserver" if linux else "spawn")
        if linux:
            self._context.set_forkserver_preload(["prunerob.commands.lightning"])

    def accepts(self, running: int) -> bool:
        """As many as there is room for."""
        return running < self.at_once

    def room(self) -> int:
        """As was asked for."""
        return self.at_once

    def begin(self, job: Job, say: Callable[[str], None]) -> _Process:
        """Begin a run."""
        busy = [other.gpu for other in self._processes if not other.has_ended()]
        gpu = min(self._gpus, key=busy.count, default=None)
        process = self._context.Process(target=_work, args=(job, self.threads, gpu), daemon=True)
        with uninterrupted():
            process.start()
            self._processes.append(_Process(process, job, gpu))
        return self._processes[-1]

    def close(self) -> None:
        """Wait for what was stopped."""
        for begun in self._processes:
            begun.process.join(10)
            begun.process.kill()  # a file is written beside the old one, then renamed


class _Process:
    """A run in a process."""

    def __init__(self, process: BaseProcess, job: Job, gpu: str | None) -> None:
        self.process = process
        self.job = job
        self.gpu = gpu

    def has_begun(self) -> bool:
        return True

    def has_ended(self) -> bool:
        return not self.process.is_alive()

    def failure(self) -> str:
        code = self.process.exitcode
        if code == 0:
            return ""
        # Below 0 it was ended by a signal, and had no last word.
        ended = f"ended by signal {-code}: " if code is not None and code < 0 else ""
        return ended + last_line(self.job.log)

    def stop(self) -> None:
        self.process.terminate()


def _work(job: Job, threads: int, gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # which CUDA reads when it is first asked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(1 if work(job, threads) else 0)


def _end_with_parent() -> None:
    """End with the sweep, which alone can tell the user how it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
