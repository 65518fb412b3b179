"""Command lines of the commands that are not Lightning's: a mistake is one line."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import NoReturn

from prunerob.errors import UserError


class Arguments(ArgumentParser):
    """An argument parser whose help keeps the lines of its description.

    Args:
        command: the command's name.
        description: what it does.
        has_help: it has --help.
    """

    def __init__(self, command: str, description: str, *, has_help: bool = True) -> None:
        super().__init__(
            prog=f"prunerob {command}",
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=has_help,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(message)


def words(text: str) -> list[str]:
    """A list with commas between its items."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str) -> list[float]:
    """A list of numbers with commas between them."""
    return [float(word) for word in words(text)]


def integers(text: str) -> list[int]:
    """A list of integers with commas between them."""
    return [int(word) for word in words(text)]


numbers.__name__ = "list of numbers"  # argparse says what a value is not
integers.__name__ = "list of integers"
