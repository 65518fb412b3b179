"""The terminal, while a network trains: lines stay, and the bar takes one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import torch

from prunerob.training.progress import accuracies
from tests.conftest import TINY


def in_terminal(columns: int, *args: str) -> list[str]:
    """What a terminal of so many columns is sent, in lines, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "prunerob", *args]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        sent = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # as Linux ends a terminal
                break
            if not part:
                break
            sent += part
    os.close(ours)
    assert process.returncode == 0, sent[-2000:]
    text = re.sub(r"\x1b\[[0-9;?]*m", "", sent.decode("utf-8", "replace"))
    return text.replace("\r\n", "\n").split("\n")


def test_an_epoch_is_told_in_short() -> None:
    metrics = {"accuracy/validation_clean": 0.9812, "accuracy/validation_robust": 0.5}
    metrics |= {"loss/train": 0.21349, "step": 12.0}
    told = accuracies({name: torch.tensor(value) for name, value in metrics.items()})
    assert told == "validation 98.1% clean, 50.0% robust; train loss 0.213"


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_lines_stay_and_the_bar_takes_one(columns: int) -> None:
    lines = in_terminal(columns, "fit", "--config", TINY)
    # A line that lasts follows what clears the bar's: \\r and "erase in line".
    lasting = [re.split(r"\x1b\[\d*[AK]|\r|\x1b\[\?25[hl]", line)[-1] for line in lines]
    for epoch in (1, 2, 3, 4):
        assert sum(line.startswith(f"Epoch {epoch}/") and "(" in line for line in lasting) == 1
    bars = [line for line in lasting if "━" in line]
    assert bars
    assert all(len(bar.rstrip()) <= columns for bar in bars)
    assert not any("Epoch 0/" in line for line in lines)
