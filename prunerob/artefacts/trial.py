"""A first try of a file in a process of its own: a damaged one must not take this one with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prunerob.errors import UserError

PROGRAM = """\
import sys
from pathlib import Path
import torch
from prunerob.artefacts.formats import format_of
from prunerob.errors import UserError
file = Path(sys.argv[1])
try:
    form = format_of(file)
    form.open(file)(torch.zeros(2, *map(int, sys.argv[2:])))
except UserError as error:
    sys.stdout.write(str(error))
    raise SystemExit(3)
"""
TIMEOUT = 600
"""Seconds after which a file is given up on."""


def try_out(file: Path, shape: Sequence[int]) -> None:
    """Open a file and ask it about two images, where a crash costs nothing.

    Args:
        file: an artefact.
        shape: of an image, (C, H, W).

    Raises:
        UserError: it is refused, ends its process, or does not answer.
    """
    command = [sys.executable, "-c", PROGRAM, str(file), *map(str, shape)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{file} does not answer within {TIMEOUT} s") from None
    if done.returncode == 3:
        raise UserError(done.stdout)
    if done.returncode:
        raise UserError(
            f"{file} is damaged: its reader ended with status {done.returncode}; take another copy"
        )
