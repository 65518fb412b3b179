"""A checkpoint that differs from what was written is noticed."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch

from prunerob.errors import UserError
from prunerob.runs.archives import check_archive
from prunerob.runs.weights import read_checkpoint
from tests.conftest import TINY, assert_equal, refused


def flip(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def records(file: Path) -> list[tuple[str, int, int]]:
    """Names of an archive's records, where their bytes begin, and how many there are."""
    found = []
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            header = content[record.header_offset : record.header_offset + 30]
            skip = 30 + int.from_bytes(header[26:28], "little")
            skip += int.from_bytes(header[28:30], "little")
            found.append((record.filename, record.header_offset + skip, record.file_size))
    return found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "some.ckpt"
    torch.save({"state_dict": {f"w{i}": torch.randn(50, 7) for i in range(4)}, "epoch": 3}, file)
    return file


def test_a_flipped_bit_in_any_record_is_noticed(checkpoint: Path) -> None:
    check_archive(checkpoint)
    draw = random.Random(0)
    whole = checkpoint.read_bytes()
    for _, start, size in records(checkpoint):
        for _ in range(10 if size else 0):
            checkpoint.write_bytes(whole)
            flip(checkpoint, start + draw.randrange(size), draw.randrange(8))
            with pytest.raises(UserError, match=r"some.ckpt is damaged"):
                read_checkpoint(checkpoint)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(checkpoint: Path) -> None:
    """Between the records lies padding, and dates that nobody reads."""
    good = read_checkpoint(checkpoint)["state_dict"]
    assert isinstance(good, dict)
    whole, draw, noticed = checkpoint.read_bytes(), random.Random(1), 0
    for _ in range(300):
        checkpoint.write_bytes(whole)
        flip(checkpoint, draw.randrange(len(whole)), draw.randrange(8))
        try:
            read = read_checkpoint(checkpoint)["state_dict"]
        except UserError:
            noticed += 1
            continue
        assert isinstance(read, dict)
        assert_equal(read, good)
    assert noticed > 150


def test_every_cut_is_noticed(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for end in range(0, len(whole), 97):
        checkpoint.write_bytes(whole[:end])
        with pytest.raises(UserError):
            read_checkpoint(checkpoint)


def test_a_compressed_archive_is_not_blown_up(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(UserError, match="compressed, as torch never writes it"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_a_flipped_bit_is_told_by_every_command(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "last.ckpt"
    data = [(start, size) for name, start, size in records(file) if "/data/" in name]
    start, size = max(data, key=lambda record: record[1])
    flip(file, start + size // 2)
    for command in ("fit", "validate"):
        told = refused(capsys, command, "--ckpt_path", str(run))
        assert f"{file} is damaged (Bad CRC-32" in told
    assert "is damaged" in refused(capsys, "fit", "--config", TINY, "--ckpt_path", str(file))
