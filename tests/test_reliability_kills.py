"""Runs and sweeps that are killed at any moment go on to the same bits.

Most runs here begin from a process that has imported what takes seconds, as those of sweeps do.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch

from prunerob.runs.folder import Run
from tests.conftest import RUN, SWEEP, TINY, assert_equal, refused, wait_for, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    CONTEXT.set_forkserver_preload(["prunerob.commands.lightning", __name__])


def command(args: Sequence[str], threads: int, death: tuple[int, float] | None) -> None:
    """A command, in a process of its own.

    Args:
        args: of it.
        threads: of torch.
        death: which of the files that it writes beside their place, from 0, and at what share of
            its bytes, in [0, 1]: there it is killed; None for nowhere.
    """
    from prunerob.cli import main

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    torch.set_num_threads(threads)
    if death is not None:
        _die_while_writing(*death)
    main(args)


def _die_while_writing(number: int, share: float) -> None:
    original, count = Path.open, [0]

    class Deadly:
        def __init__(self, opened: Any) -> None:
            self.opened = opened

        def write(self, content: bytes) -> None:
            self.opened.write(content[: int(share * len(content))])
            self.opened.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        def __enter__(self) -> Deadly:
            return self

        def __exit__(self, *_: object) -> None:
            self.opened.close()

    def opening(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened = original(self, *args, **kwargs)
        if not self.name.endswith(".unfinished"):
            return opened
        count[0] += 1
        return Deadly(opened) if count[0] == number + 1 else opened

    Path.open = opening  # type: ignore[assignment, method-assign]


def begin(*args: str, death: tuple[int, float] | None = None) -> Any:
    process = CONTEXT.Process(
        target=command, args=(args, torch.get_num_threads(), death), daemon=False
    )
    process.start()
    return process


def end(*args: str) -> float:
    """Run a command to its end; the seconds that it took."""
    start = monotonic()
    process = begin(*args)
    process.join()
    assert process.exitcode == 0
    return monotonic() - start


FIT = ("fit", "--config", TINY, "--trainer.logger.version", "version_0")


def go_on(finished: Path) -> str:
    """Bring a killed run to its end, which must be that of one that was not; where it was."""
    run = Run(RUN)
    if run.summary.is_file():
        stage = "finished"
    elif run.checkpoint().is_file():
        end("fit", "--ckpt_path", str(RUN))
        stage = "gone on with"
    else:
        shutil.rmtree(RUN, ignore_errors=True)  # as a sweep does; nothing had been learnt
        end(*FIT)
        stage = "begun anew"
    assert_equal(weights(RUN), weights(finished))
    assert_equal(weights(RUN, "before_pruning"), weights(finished, "before_pruning"))
    assert run.summary.is_file()
    assert (RUN / "pruning.json").is_file()
    assert (RUN / "weights.safetensors").is_file()
    assert not list(RUN.rglob("*.unfinished"))
    shutil.rmtree(RUN)
    return stage


def test_twenty_kills_of_fit_at_random(finished: Path) -> None:
    draw = random.Random(0)
    end("--version")  # so that the imports are behind it
    whole = end(*FIT)
    shutil.rmtree(RUN)
    stages = []
    for _ in range(20):
        process = begin(*FIT)
        process.join(draw.uniform(0.1, 1) * whole)
        process.kill()
        process.join()
        stages.append(go_on(finished))
    print({stage: stages.count(stage) for stage in sorted(set(stages))})
    assert stages.count("gone on with") >= 5


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("number", [0, 1, 3, 6, 9])
def test_a_kill_while_a_file_is_written(number: int, share: float, finished: Path) -> None:
    """The record, checkpoints, the final weights and reports: none, half or all of the bytes."""
    process = begin(*FIT, death=(number, share))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(RUN.rglob("*.unfinished"))
    go_on(finished)


def sweep_state(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {run.name: weights(run) for run in sorted((folder / "seed0").iterdir())}


def test_ten_kills_of_a_sweep_at_random(tmp_path: Path) -> None:
    """One sweep, killed ten times, the whole of it or its first process alone."""
    args = [*SWEEP[:4], "weight", *SWEEP[5:]]
    whole = end(*args, "--folder", "whole")
    draw, kills = random.Random(0), 0
    for i in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "prunerob", *args, "--folder", "killed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if i == 0:  # the next ones have some of this one's work to go on with
            wait_for(lambda: list(Path("killed").rglob("log.txt")), 600)
        sleep(draw.uniform(0.2, 0.6) * whole)
        if process.poll() is None:
            kills += 1
            if i % 2:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    end(*args, "--folder", "killed")
    one, other = sweep_state(Path("whole")), sweep_state(Path("killed"))
    assert one.keys() == other.keys()
    for name in one:
        assert_equal(one[name], other[name])
    for run in (tmp_path / "killed" / "seed0").iterdir():
        assert (run / "robustness.json").is_file()
    print(f"{kills} kills met the sweep at work")


def two_ranks(*args: str) -> subprocess.Popen[str]:
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    return subprocess.Popen(
        [sys.executable, "-m", "prunerob", *args, *devices],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_two_ranks_that_are_interrupted_or_lost_go_on_to_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By SIGINT to both, then by the death of the second."""
    fit = ("fit", "--config", TINY, "--trainer.logger.version")
    whole = two_ranks(*fit, "whole")
    told, _ = whole.communicate()
    assert whole.returncode == 0, told
    run = RUN.with_name("stopped")
    process = two_ranks(*fit, "stopped")
    wait_for(Run(run).checkpoint().is_file, 600)
    told = refused(capsys, "fit", "--ckpt_path", str(run))
    assert f"{run} is in use by process {process.pid} on " in told
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert f"go on with: prunerob fit --ckpt_path {run}" in told

    before = Run(run).checkpoint().stat().st_mtime
    process = two_ranks("fit", "--ckpt_path", str(run))
    wait_for(lambda: Run(run).checkpoint().stat().st_mtime > before, 600)
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    for child in [child for child, parent in parents if parent == process.pid]:
        os.kill(child, signal.SIGKILL)
    told, _ = process.communicate(timeout=120)
    assert process.returncode in (2, -signal.SIGKILL), told
    if process.returncode == 2:
        assert "Traceback" not in told
        last = told.strip().splitlines()[-1]
        assert last.startswith("prunerob: error: rank 0 lost another process of this run")
        assert last.endswith(f"go on with: prunerob fit --ckpt_path {run}")
    else:  # Lightning saw it first, and ends all others by a signal that leaves no last word
        assert "Forcefully terminating all other processes" in told
    process = two_ranks("fit", "--ckpt_path", str(run))
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert_equal(weights(run), weights(RUN.with_name("whole")))
