"""Names in CSV files, of which no spreadsheet makes a formula."""

from __future__ import annotations

import re

FORMULA = r"'*[=+\-@\t\r]"


def to_cell(name: object) -> str:
    """A name as a cell: behind an apostrophe if it begins as a formula does."""
    text = str(name)
    return f"'{text}" if re.match(FORMULA, text) else text


def from_cell(cell: str) -> str:
    """The name that `to_cell` made a cell of."""
    return cell[1:] if re.match(f"'{FORMULA}", cell) else cell
