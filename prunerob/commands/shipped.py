"""Configurations that come with prunerob, by name: `--config mnist_pgd`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from prunerob.errors import UserError

FOLDERS = (
    Path(__file__).parents[2] / "configs",  # beside the package: a checkout
    Path(sys.prefix) / "share" / "prunerob" / "configs",  # where the wheel lays them
)


def with_files(args: Sequence[str]) -> list[str]:
    """A command line with the files that its names of shipped configurations stand for.

    Args:
        args: what may hold `--config NAME`, `--config=NAME` or `-c NAME`. A file of that name
            comes first.

    Raises:
        UserError: nothing has that name.
    """
    found: list[str] = []
    for position, word in enumerate(args):
        if position and args[position - 1] in ("--config", "-c"):
            found.append(find(word))
        elif word.startswith("--config="):
            found.append("--config=" + find(word.removeprefix("--config=")))
        else:
            found.append(word)
    return found


def find(name: str) -> str:
    """The path of a configuration.

    Args:
        name: a path, which is left as it is, or the bare name of a shipped one.
    """
    is_name = name.replace("_", "a").replace("-", "a").isalnum()
    if not is_name or Path(name).exists():
        return name
    files = {file.stem: file for folder in reversed(FOLDERS) for file in folder.glob("*.yaml")}
    if name not in files:
        raise UserError(
            f"--config {name}: there is no such file, nor a configuration that comes with "
            f"prunerob; those are {', '.join(sorted(files))}"
        )
    return str(files[name])
