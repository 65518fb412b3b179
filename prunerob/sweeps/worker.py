"""What a worker does with a run, in a process of its own, on whatever machine."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import traceback

from prunerob.locks import locked
from prunerob.sweeps.plan import Job


def work(job: Job, threads: int) -> int:
    """Bring a run to its end, from wherever it stands; all that it prints goes into its log.

    Args:
        job: the run.
        threads: CPU threads.

    Returns:
        0, or the exit status of the command that failed.
    """
    forget_ranks()
    locks = job.sweep / ".locks"
    locks.mkdir(exist_ok=True)
    # Where a machine is only thought to be dead, its worker may still be at it.
    with locked(locks / f"{job.run.folder.parent.name}-{job.run.folder.name}", wait=True):
        job.clear()
        job.run.folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        _print(f"# {socket.gethostname()}, process {os.getpid()}")

        import torch

        from prunerob.cli import main

        torch.set_num_threads(threads)
        for command in job.commands():
            _print(f"$ prunerob {shlex.join(command)}")
            try:
                main(command)
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else 1
            except Exception:
                traceback.print_exc()
                return 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()  # in front of what Lightning says, which has another way out


def forget_ranks() -> None:
    """Drop what a launcher told this process of ranks.

    A run of a sweep takes one device, whoever began the sweep or its cluster. Told that it is
    SLURM's second task, Lightning would leave writing to the first. To be called before Lightning
    is imported.
    """
    ranks = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR")
    for name in list(os.environ):
        if name in ranks or name.startswith(("SLURM_", "TORCHELASTIC_", "JSM_", "OMPI_", "LSB_")):
            del os.environ[name]
