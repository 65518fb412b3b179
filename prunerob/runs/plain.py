"""YAML files that others may have made: looked through before they are built in memory."""

from __future__ import annotations

from pathlib import Path

import yaml

from prunerob.errors import UserError

MOST_BYTES = 128 * 1024
DEEPEST = 50
MOST_VALUES = 100_000
"""With all aliases written out."""

LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: Path) -> object:
    """Read a YAML file, in plain values.

    Args:
        file: at most 128 KiB of UTF-8.

    Raises:
        UserError: it is no YAML, or more than a configuration ever is.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        data = opened.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{file}: is larger than 128 KiB, so it is no configuration")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text (at byte {error.start}); save it so") from None
    try:
        _check_events(file, text)
        return yaml.load(text, LOADER)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{file}: is no YAML: {place}{error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no YAML: {error}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # such as a 40th of May
        raise UserError(f"{file}: holds a value that cannot be read ({error})") from None


def _check_events(file: Path, text: str) -> None:
    """Refuse what is small as a file and endless in memory."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, LOADER):
        anchor: str | None = getattr(event, "anchor", None)
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
            if len(opened) > DEEPEST:
                raise UserError(f"{file}: is nested deeper than {DEEPEST} levels")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == name for name, _ in opened):
                raise UserError(f"{file}: the alias *{anchor} stands within what it stands for")
            size = sizes.get(anchor or "", 1)
        if anchor is not None:
            sizes[anchor] = size
        name, total = opened.pop()
        if total + size > MOST_VALUES:
            raise UserError(f"{file}: its aliases stand for more than {MOST_VALUES:,} values")
        opened.append((name, total + size))
