"""A first try of a file in a process of its own: a bad one must not take this one with it.

Libraries of C++ read files, and end their process where they did not expect what is there. And a
small file can ask for more memory than there is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prunerob.errors import UserError

PROGRAM = """\
import sys
from pathlib import Path
import torch
from torch import nn
from prunerob.artefacts.formats import format_of
from prunerob.errors import UserError
file = Path(sys.argv[1])
try:
    form = format_of(file)
    form.open(file, network=nn.Identity())(torch.rand(2, *map(int, sys.argv[2:])))
except UserError as error:
    sys.stdout.write(str(error))
    raise SystemExit(3)
"""
TIMEOUT = 120
"""Seconds after which a file is given up on."""
MEMORY = 8 << 30
"""Bytes that it may take for two images; where there is less, half of that."""


def try_out(file: Path, shape: Sequence[int]) -> None:
    """Open a file and ask it about two images, where a crash costs nothing.

    Args:
        file: an artefact.
        shape: of an image, (C, H, W).

    Raises:
        UserError: it is refused, ends its process, or does not answer.
    """
    command = [sys.executable, "-P", "-c", PROGRAM, str(file), *map(str, shape)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            preexec_fn=_limit_memory,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{file} does not answer within {TIMEOUT} s") from None
    if done.returncode == 3:
        raise UserError(done.stdout)
    if done.returncode:
        *_, last = ["", *done.stderr.strip().splitlines()]
        raise UserError(
            f"{file} is damaged, or asks for too much memory: its reader ended with status "
            f"{done.returncode} ({last:.200}); take another copy"
        )


def _limit_memory() -> None:
    """Let a process have no more than its share; of effect where the system knows how."""
    try:
        import resource

        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = min(MEMORY, there // 2)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except (ImportError, ValueError, OSError):
        return
