"""Mistakes in a command line or a configuration, each in one line."""

from __future__ import annotations

import re
from typing import NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from prunerob.errors import UserError


class Parser(LightningArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the command line, or tell a caller inside jsonargparse why it does not parse."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(plain(message))


def plain(message: str) -> str:
    """A parser's explanation of a mistake, without the types that did not match either.

    Args:
        message: of jsonargparse: several lines, of which one matters.

    Returns:
        the key and what is wrong with it, in one line.
    """
    dull = r"- (Expected a <class 'NoneType'>|Expected a path but)|Given value type"
    dull += r"|(- )?(Does not validate|Subtypes:|Errors:)|Given value: .{60}"
    lines = [line.strip() for line in message.splitlines()]
    text = " ".join(line.removeprefix("- ") for line in lines if not re.match(dull, line))
    for pattern, shorter in (
        (r'Parser key "([^"]*)":( -)?', r"\1:"),
        (r"Problem with given class_path '([^']*)':", r"\1:"),
        (r"<class '([^']*)'>", r"\1"),
        (r"Type \S*Callable\[.*\] expects", "expected"),
        (r"Expected a (typing\.)?", "expected "),
        (r"[.;]? (Given|Got) value: NestedArg.*", ""),
        (r" Given value: ", "; got "),
        (r"Not of type Pixels: ", ""),
        (r"expected dot import path string", "no such class"),
    ):
        text = re.sub(pattern, shorter, text)
    return text or message
