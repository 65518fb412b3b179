"""Weights from a URL: fetched with a limit on time and on size."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from time import monotonic
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from prunerob.errors import UserError

PATIENCE = 30.0
"""Seconds without an answer after which a server counts as gone."""

LONGEST = 3600.0
"""Seconds that a file may take."""

MOST_BYTES = 4 << 30
"""More than the weights of any network here; a disk must not be filled by a mistaken address."""

BLOCK = 1 << 16
"""Bytes read at a time."""


def download(url: str) -> Path:
    """Fetch a file into a temporary folder that ends with the process, keeping its name.

    Raises:
        UserError: it cannot be fetched, takes too long, or is larger than 4 GiB.
    """
    folder = Path(tempfile.mkdtemp(prefix="prunerob-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        target = folder / (PurePosixPath(urlsplit(url).path).name or "weights")
        _fetch(url, target)
    except TimeoutError:
        raise UserError(f"ckpt_path: {url} cannot be fetched (no answer in time)") from None
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise UserError(f"ckpt_path: {url} cannot be fetched ({error})") from None
    return target


def _fetch(url: str, target: Path) -> None:
    deadline = monotonic() + LONGEST
    request = Request(url, headers={"User-Agent": "prunerob"})
    with urlopen(request, timeout=PATIENCE) as answer, target.open("wb") as opened:
        announced = answer.headers.get("Content-Length")
        received = 0
        while block := answer.read1(BLOCK):
            received += len(block)
            if received > MOST_BYTES:
                raise ValueError(f"it is larger than {MOST_BYTES >> 20:,} MiB")
            if monotonic() > deadline:
                raise TimeoutError
            opened.write(block)
        if announced is not None and received != int(announced):
            raise ValueError(f"it ended after {received:,} of {int(announced):,} bytes")
