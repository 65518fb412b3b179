"""The queue of runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prunerob.cli import main
from tests.conftest import SWEEP, TINY, refused


def test_a_run_that_fails_is_told_and_the_others_go_on(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branches = ["--amount", "0.9999,0.6", "--scratch"]  # one would empty a layer
    with pytest.raises(SystemExit) as error:
        main(["sweep", "--config", TINY, *branches, "--jobs", "2"])
    assert error.value.code == 1
    told = capsys.readouterr().out
    assert "weight-0.9999, seed 0: failed: pruning.amount: 0.9999 would empty" in told
    assert "weight-0.9999-scratch, seed 0: left out, weight-0.9999, seed 0 failed" in told
    assert "3 of 5 runs finished, 2 failed" in told
    assert (started / "seed0" / "weight-0.6-scratch" / "robustness.json").is_file()


def test_a_failed_base_leaves_its_branches_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(
            ["sweep", "--config", TINY, "--amount", "0.5", "--model.optimizer.init_args.lr", "1e30"]
        )
    assert error.value.code == 1
    told = capsys.readouterr().out
    assert "dense, seed 3: failed" not in told
    assert "dense, seed 0: failed: training diverged" in told
    assert "weight-0.5, seed 0: left out, dense, seed 0 failed" in told


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_two_sweeps_do_not_share_a_folder(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    with (started / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        told = refused(capsys, *SWEEP, "--seed", "0")
    assert told.endswith("another sweep is running in sweeps/tiny")
    main([*SWEEP, "--seed", "0"])
