"""What a worker does with a run, in a process of its own, on whatever machine.

Importing this module imports nothing that reads the environment: `forget_ranks` comes first.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import traceback
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from prunerob.sweeps.job import Job


def forget_ranks() -> None:
    """Drop a launcher's variables about ranks; to be called before Lightning is imported.

    A run of a sweep takes one device, whoever began the sweep or its cluster. Told that it is
    SLURM's second task, Lightning would leave it to the first to write.
    """
    ranks = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR")
    for name in list(os.environ):
        if name in ranks or name.startswith(("SLURM_", "TORCHELASTIC_", "JSM_", "OMPI_", "LSB_")):
            del os.environ[name]


def work(job: Job, threads: int) -> str:
    """Bring a run to its end, from wherever it stands; all that it prints goes into its log.

    Args:
        job: the run.
        threads: CPU threads.

    Returns:
        why it failed; nothing if it went well.
    """
    locks = job.sweep / ".locks"
    locks.mkdir(exist_ok=True)
    lock = locks / f"{job.run.folder.parent.name}-{job.run.folder.name}"
    me = f"{socket.gethostname()}, process {os.getpid()}"
    with ExitStack() as locks_held:
        try:
            locks_held.enter_context(FileLock(lock, timeout=0))
        except Timeout:  # on a machine that is only thought to be dead
            with suppress(FileNotFoundError), job.log.open("a") as log:
                log.write(f"# {me}, waits for another worker that is still at this run\n")
            locks_held.enter_context(FileLock(lock))
        return _work(job, threads, me)


def _work(job: Job, threads: int, me: str) -> str:
    job.clear()
    job.run.folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.close(opened)
    _print(f"# {me}")

    import torch

    from prunerob.cli import main
    from prunerob.sweeps.progress import last_line

    torch.set_num_threads(threads)
    try:
        for command in job.commands():
            _print(f"$ prunerob {shlex.join(command)}")
            main(command)
    except SystemExit as end:
        failed = bool(end.code)
    except Exception:
        traceback.print_exc()
        failed = True
    else:
        failed = False
    sys.stdout.flush()
    sys.stderr.flush()
    os.fsync(1)  # others read it on other machines
    return last_line(job.log) if failed else ""


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # in front of what Lightning says, which has another way out
