"""One `fit` at a time writes into a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunerob.errors import UserError
from prunerob.runs.folder import Run
from prunerob.runs.lock import locked
from tests.conftest import RUN, TINY, assert_equal, refused, wait_for, weights


def contents(run: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_lock_is_of_one_process_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "run"
    with locked(folder):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "), locked(folder):
            pass
        assert (folder / ".holder").is_file(), "who was refused takes nothing away"
    assert not folder.exists(), "it was not there before"
    (tmp_path / "logs" / "run").mkdir()
    with locked(folder):
        (folder / "config.yaml").touch()
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]


def test_a_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    code = "import os\nfrom pathlib import Path\nfrom prunerob.runs.lock import locked\n"
    code += "with locked(Path('run')):\n    os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".holder").is_file()
    with locked(tmp_path / "run"):
        assert f"process {os.getpid()} " in (tmp_path / "run" / ".holder").read_text()


def test_a_run_that_is_written_is_held(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes: the second, new or gone on with, is told who has the run; the first ends."""
    fit = ["fit", "--config", TINY, "--trainer.logger.version", "version_0"]
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    code += f"from prunerob.cli import main; main({fit!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: Run(RUN).checkpoint().is_file() or process.poll() is not None)
        os.kill(process.pid, signal.SIGSTOP)
        assert process.poll() is None, "it ended before it could be met"
        before = contents(RUN)
        for command in (("fit", "--ckpt_path", str(RUN)), tuple(fit)):
            told = refused(capsys, *command)
            assert f"{RUN} is in use by process {process.pid} on " in told
        assert contents(RUN) == before
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(300) == 0
    finally:
        process.kill()
        process.wait()
    assert_equal(weights(RUN), weights(finished))
    assert not (RUN / ".holder").exists()
    assert not (RUN / ".lock").exists()


def test_a_folder_that_cannot_be_written_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    (run / "summary.json").unlink()
    monkeypatch.setattr("prunerob.runs.folder.tempfile.TemporaryFile", refuse)
    told = refused(capsys, "fit", "--ckpt_path", str(run))
    assert told.endswith(f"{run} cannot be written (Permission denied)")
