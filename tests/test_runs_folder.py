"""Files of a run are there in full or not at all, also where the disk is full."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunerob.cli import main
from prunerob.robustness.predictions import write_predictions
from prunerob.runs.folder import write_whole
from prunerob.training.saving import WholeFiles
from tests.conftest import TINY, assert_equal, refused, weights


class Full:
    """A file on a disk that has room for so many bytes.

    Args:
        opened: the file.
        disk: what is left.
    """

    def __init__(self, opened: Any, disk: list[int]) -> None:
        self.opened = opened
        self.disk = disk

    def write(self, content: bytes) -> int:
        fits = min(len(content), self.disk[0])
        self.disk[0] -= fits
        self.opened.write(content[:fits])
        if fits < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.opened, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()


def fill(patch: pytest.MonkeyPatch, room: int) -> None:
    """Leave room for so many bytes to files that are written under a name beside their own."""
    disk = [room]
    original = Path.open

    def opening(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened = original(self, *args, **kwargs)
        return Full(opened, disk) if self.name.endswith(".unfinished") else opened

    patch.setattr(Path, "open", opening)


def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    write_whole(file, "before")
    for room in range(5):
        with pytest.MonkeyPatch.context() as patch:
            fill(patch, room)
            with pytest.raises(OSError, match="No space left on device") as error:
                write_whole(file, "after")
        assert error.value.filename == str(tmp_path)
        assert file.read_text() == "before"
        assert [f.name for f in tmp_path.iterdir()] == ["file.json"]
    write_whole(file, "after")
    assert file.read_text() == "after"


def test_checkpoints_are_written_beside_their_place_with_the_mode_of_other_files(
    tmp_path: Path,
) -> None:
    before = os.umask(0o027)
    try:
        WholeFiles().save_checkpoint({"a": torch.ones(3)}, tmp_path / "last.ckpt")
        with pytest.raises(FileNotFoundError) as error:
            WholeFiles().save_checkpoint({"a": torch.ones(3)}, tmp_path / "gone" / "last.ckpt")
    finally:
        os.umask(before)
    assert error.value.filename == str(tmp_path / "gone"), "not the system's temporary folder"
    assert (tmp_path / "last.ckpt").stat().st_mode & 0o777 == 0o640
    assert torch.equal(torch.load(tmp_path / "last.ckpt")["a"], torch.ones(3))


def test_names_that_are_no_utf8_are_written_all_the_same(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.csv", os.fsdecode(b"\xff.png,1"))
    assert (tmp_path / "a.csv").read_text("utf-8") == "\\udcff.png,1"


def test_predictions_are_whole_or_none(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield torch.arange(2), torch.rand(2, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(file, batches(), None)
    assert list(tmp_path.iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        fill(patch, 40)
        with pytest.raises(OSError, match="No space left"):
            write_predictions(file, [(torch.arange(2), torch.rand(2, 3))], None)
    assert list(tmp_path.iterdir()) == []


def test_all_files_of_a_run_have_the_mode_of_other_files(finished: Path) -> None:
    modes = {f.name: f.stat().st_mode & 0o777 for f in finished.rglob("*") if f.is_file()}
    mask = os.umask(0)
    os.umask(mask)
    assert set(modes.values()) == {0o666 & ~mask}, modes


def test_a_disk_that_fills_in_fit_is_told_in_a_line_and_loses_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the first epoch's checkpoint, and half of another."""
    size = (finished / "checkpoints" / "before_pruning.ckpt").stat().st_size
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    with pytest.MonkeyPatch.context() as patch:
        fill(patch, int(2.8 * size))
        told = refused(capsys, "fit", "--config", TINY)
    assert told.endswith("lightning_logs/tiny/version_0/checkpoints: No space left on device")
    run = Path("lightning_logs/tiny/version_0")
    assert not list(run.rglob("*.unfinished"))
    main(["fit", "--ckpt_path", str(run)])
    assert_equal(weights(run), weights(finished))
    assert not failures


def status_of(args: list[str]) -> object:
    """How a command ends: None if well, or its status."""
    try:
        main(args)
    except SystemExit as end:
        return end.code
    return None


def size_of(folder: Path) -> int:
    """Bytes that a folder's files take of a file system in pages of 4 KiB."""
    return sum(-(-f.stat().st_size // 4096) * 4096 for f in folder.rglob("*") if f.is_file())


@pytest.fixture
def small_disk(tmp_path: Path, finished: Path) -> Iterator[Path]:
    """A file system with room for one run and a half, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={size_of(finished) * 3 // 2}",
        "tmpfs",
        str(folder),
    ]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_disk_that_is_full_at_random_loses_nothing(
    small_disk: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real one, 10 times: `fit` stops in a line, and goes on when there is room."""
    draw = random.Random(0)
    told, began = [], 0
    for attempt in range(10):
        filler = small_disk / "filler"
        filler.write_bytes(bytes(int(size_of(finished) * draw.uniform(0.5, 1.4))))
        name = f"run{attempt}"
        fit = ["fit", "--config", TINY, "--trainer.logger.save_dir", str(small_disk)]
        fit += ["--trainer.logger.name", "", "--trainer.logger.version", name]
        run = small_disk / name
        if (status := status_of(fit)) is not None:
            assert status == 2
            told.append(capsys.readouterr().err.strip().splitlines()[-1])
            assert "No space left on device" in told[-1]
            assert str(small_disk) in told[-1]
        filler.unlink()
        if (run / "checkpoints" / "last.ckpt").is_file():
            began += 1
            main(["fit", "--ckpt_path", str(run)])
            assert_equal(weights(run), weights(finished))
        subprocess.run(["rm", "-rf", str(run)], check=True)
    assert len(told) >= 5
    assert not [line for line in told if "Traceback" in line]
    print(f"{len(told)} disks were full; {began} runs had begun and went on")
