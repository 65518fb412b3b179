"""A sweep that is told to end stops its runs and says how to go on."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunerob.sweeps.signals import ending_in_order, uninterrupted
from tests.conftest import SWEEP, wait_for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_stands_within(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    tidy = []
    before = signal.getsignal(number)

    def work() -> None:
        with ending_in_order():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), number)  # once more, while the first is obeyed
                tidy.append(True)

    with pytest.raises(SystemExit) as end:
        work()
    assert end.value.code == 128 + number
    assert tidy
    assert signal.getsignal(number) == before
    assert capsys.readouterr().err.startswith(f"Ended by {number.name}: the same command goes on")


def test_a_signal_waits_for_what_must_not_be_interrupted() -> None:
    done = []

    def work() -> None:
        with ending_in_order():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("start")
            done.append("more")

    with pytest.raises(SystemExit) as end:
        work()
    assert end.value.code == 128 + signal.SIGTERM
    assert done == ["start"]


def test_a_signal_that_is_ignored_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def descendants(number: int) -> set[int]:
    """Processes that come from one, with their own."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found: set[int] = set()
    level = {number}
    while level:
        level = {child for child, parent in parents if parent in level}
        found |= level
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_leaves_no_process_and_no_temporary_folder(
    number: signal.Signals, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "prunerob", *SWEEP],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log = Path("sweeps/tiny/seed0/dense/log.txt")
        wait_for(log.is_file, 300)
        helpers = descendants(process.pid)
        assert helpers
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert f"Ended by {number.name}: the same command goes on where it stopped" in told
    assert "Traceback" not in told
    alive = [p for p in helpers if Path(f"/proc/{p}").is_dir()]
    wait_for(lambda: not [p for p in alive if Path(f"/proc/{p}").is_dir()], 20)
    left = {file.name for file in temporary.iterdir()}
    assert left <= {f"torchinductor_{getpass.getuser()}"}  # torch's own, one for all processes
