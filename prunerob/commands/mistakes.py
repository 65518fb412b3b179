"""Mistakes in a command line or a configuration, each in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from prunerob.errors import UserError
from prunerob.runs.configuration import find_object

REFUSALS = (TypeError, ValueError, OverflowError, AttributeError, KeyError, ImportError)
"""What Lightning's Trainer raises where it is made from settings that it cannot take."""

NOT_ACCEPTED = re.compile(r"([\w.]+): ([\w.]+): Option '(\w+)' is not accepted")
"""A key, the class or function that it is set to, and a setting that its signature lacks."""


class Parser(LightningArgumentParser):
    """Tells a mistake in one line."""

    def parse_args(self, args: Sequence[str] | None = None, **settings: Any) -> Any:  # type: ignore[override]
        """Parse; settings that a function takes as `**kwargs` alone may be typed like others."""
        while True:
            try:
                return super().parse_args(args, **settings)
            except UserError as error:
                spelled = spelled_out(args or (), str(error))
                if spelled is None:
                    raise
                args = spelled

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the command line, or tell a caller inside jsonargparse why it does not parse."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UserError(plain(message))


@contextmanager
def refusing() -> Iterator[None]:
    """Where classes are made from settings: what one refuses is the user's mistake, not a crash.

    Raises:
        UserError: a class refuses its settings.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if isinstance(error, TypeError) and "argument" not in str(error):
            raise
        raise UserError(plain(str(error))) from error


def spelled_out(args: Sequence[str], message: str) -> list[str] | None:
    """A command line that names a function's `**kwargs` as jsonargparse wants them: dict_kwargs.

    `timm.create_model` is such a function: what it takes hangs on the model's name.

    Args:
        args: the command line.
        message: why it does not parse.

    Returns:
        the command line with one setting more of them; None where that is not what is wrong.
    """
    refused = NOT_ACCEPTED.search(message)
    if refused is None:
        return None
    key, path, name = refused.groups()
    if not _takes_more(path):
        return None
    words = re.compile(rf"--{re.escape(key)}\.(init_args\.)?{name}(?==|$)")
    spelled = [words.sub(f"--{key}.dict_kwargs.{name}", word, count=1) for word in args]
    return None if spelled == list(args) else spelled


def _takes_more(path: str) -> bool:
    """Whether a function or class takes `**kwargs`."""
    try:
        parameters = signature(find_object(path)).parameters.values()
    except (ImportError, AttributeError, TypeError, ValueError):
        return False
    return any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)


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
        (
            r"^Subclasses are disabled for AdversarialTraining, thus '([^']*)'.*",
            r"model.adversarial_training: holds settings, and no class as \1",
        ),
    ):
        text = re.sub(pattern, shorter, text)
    if module := re.search(r"subclass\s+of\s+\S*ImageDataModule;\s+got\s+(\S+)", text):
        return (
            f"data: {module[1]} is no prunerob.data.ImageDataModule, which splits and orders "
            "images by seed; write a subclass of that with one method, load(): training and test "
            "images, uint8 (N, C, H, W), with labels (N,), as in docs/extend.md"
        )
    own_class = (
        r"model: Unable to load config '\w+(\.\w+)+'|Group 'model' .* option 'class_path'"
        r"|.* does not accept option 'model\.class_path'"
    )
    if re.match(own_class, text) and "yaml" not in text:
        return (
            "model: holds the settings of prunerob's Classifier, no class of your own: what a run "
            "records and resumes is fixed. Networks, objectives, attacks and criteria of your own "
            "go in by class path; a training loop of your own holds the masks of prunerob.prune"
        )
    if single := re.fullmatch(r"([\w.]+): Unable to load config '(.*)' \1: Unable .*", text):
        key, value = single.groups()
        value = "an empty text" if not value else f"{value:.100}"
        hint = "; to prune nothing, set pruning.epoch to null" if key == "pruning" else ""
        return f"{key}: {value} is no mapping of settings, nor a file with one{hint}"
    if (refused := NOT_ACCEPTED.search(text)) and _takes_more(refused[2]):
        text += f"; what {refused[2]} takes as **kwargs goes under dict_kwargs in its place"
    return text or message
