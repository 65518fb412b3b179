"""Runs in processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunerob.cli import main
from prunerob.sweeps import processes
from tests.conftest import TINY, assert_equal, wait_for, weights


def test_a_kill_ends_every_process_and_the_sweep_goes_on(sweep: Path, tmp_path: Path) -> None:
    args = ["sweep", "--config", TINY, "--amount", "0,0.5", "--threads", "1", "--seed", "1"]
    command = [sys.executable, "-m", "prunerob", *args]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "sweeps" / "tiny" / "seed1"
    begun = folder / "control" / "config.yaml"
    wait_for(lambda: begun.is_file() or process.poll() is not None)
    assert process.poll() is None
    process.kill()  # its children are not told: they must notice
    process.wait()
    wait_for(lambda: not group_is_alive(process.pid), 20)  # no child goes on without its sweep
    assert not (folder / "weight-0.5").exists()
    dense = (folder / "dense" / "summary.json").stat().st_mtime

    main([*args, "--jobs", "2"])
    assert (folder / "dense" / "summary.json").stat().st_mtime == dense
    for name in ("dense", "control", "weight-0.5"):
        assert_equal(weights(folder / name), weights(sweep / "seed1" / name))
        assert (folder / name / "robustness.json").is_file()


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_runs_side_by_side_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable that CUDA reads in each process; the processes here are stand-ins."""
    seen: dict[int, str] = {}
    ended: set[int] = set()

    class Stub:
        def __init__(self, target: Any, args: tuple[int, int, str], daemon: bool) -> None:
            self.run, self.args = target, args

        def start(self) -> None:
            with pytest.raises(SystemExit):
                self.run(*self.args)

        def is_alive(self) -> bool:
            return self.args[0] not in ended

    def work(job: int, threads: int) -> bool:
        seen[job] = os.environ["CUDA_VISIBLE_DEVICES"]
        return False

    monkeypatch.setattr(processes, "work", work)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for visible, names in (("", ("0", "1")), ("3,5", ("3", "5"))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        executor = processes.Processes(at_once=3, threads=1)
        executor.prepare([], print)
        executor._context = SimpleNamespace(Process=Stub)
        ended.clear()
        for number in range(3):
            executor.begin(number, print)  # type: ignore[arg-type]
        ended.add(1)
        executor.begin(3, print)  # type: ignore[arg-type]
        first, second = names
        assert seen == {0: first, 1: second, 2: first, 3: second}
