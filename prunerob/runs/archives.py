"""Checkpoints as archives: their checksums are compared, which torch itself does not do."""

from __future__ import annotations

import zipfile
from pathlib import Path

from prunerob.errors import UserError

BLOCK = 1 << 20
"""Bytes read at a time."""


def check_archive(file: Path) -> None:
    """See that a checkpoint is as it was written, to the bit.

    A checkpoint is a zip archive with a CRC-32 of each record. That
    takes some 0.03 s for 50 MB.

    Args:
        file: a checkpoint; one in torch's old format has no checksums, and none are asked for.

    Raises:
        UserError: a record differs from its checksum, or the archive is none that torch writes.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        if opened.read(4) != b"PK\x03\x04":
            return
        try:
            with zipfile.ZipFile(opened) as archive:
                reason = _damage(archive, file.stat().st_size)
        except Exception as error:  # a damaged archive can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
    if reason:
        raise UserError(f"ckpt_path: {file} is damaged ({reason}); take another copy")


def _damage(archive: zipfile.ZipFile, size: int) -> str:
    """What is wrong with an archive; nothing if it is sound.

    Args:
        archive: opened.
        size: of its file, in bytes.
    """
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        return "it is compressed, as torch never writes it"
    if sum(record.file_size for record in records) > size:
        return "its records are larger than the file"
    for record in records:
        with archive.open(record) as opened:  # which compares the checksum at the end
            while opened.read(BLOCK):
                pass
    return ""
