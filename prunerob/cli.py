"""The command line: one command is one module with a function `run`.

Importing Lightning's CLI takes seconds, so this module imports nothing heavy: `prunerob --help`,
`--version` and a mistyped command answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from prunerob import __version__
from prunerob.commands.help import short_help
from prunerob.commands.shipped import with_files
from prunerob.errors import UserError

LIGHTNING = ("fit", "validate", "test", "predict")
"""The commands of Lightning's Trainer."""

MODULES = {
    **dict.fromkeys(LIGHTNING, "prunerob.commands.lightning"),
    "sweep": "prunerob.commands.sweep",
    "report": "prunerob.commands.report",
    "reproduce": "prunerob.commands.reproduce",
    "export": "prunerob.commands.export",
}
"""Where each command's `run` is; imported only when it is asked for."""

HELP = """\
usage: prunerob COMMAND [options]

Train, prune and attack image classifiers: what does compression do to robustness?

commands:
  fit       train, prune at the prune epoch, fine-tune: prunerob fit --config configs/mnist_pgd.yaml
  test      attack with the whole suite: prunerob test (the newest finished run), or
            prunerob test RUN (a run's folder, a checkpoint, a .safetensors file, an export)
  validate  accuracy on the held-out validation images: prunerob validate --ckpt_path RUN
  predict   class and probabilities per image, as CSV: prunerob predict --ckpt_path RUN
  sweep     many prunings of one configuration: prunerob sweep --config configs/mnist_pgd.yaml
            --criterion weight,filter --amount 0,0.5,0.9 --seed 0,1,2
  report    tables, figures and a page about finished runs: prunerob report RUNS
  export    files for onnxruntime and others, checked, with a card: prunerob export RUN --to FOLDER
  reproduce the paper's tables and figures beside ours: prunerob reproduce table1

options:
  -h, --help     show this and exit; `prunerob fit --help` lists the settings of a command,
                 `prunerob fit --help all` every one, Lightning's too, and
                 `prunerob fit --data.help prunerob.data.MNIST` those of a class
  --version      show the version and exit
  --config FILE  (of the first four) a configuration, a file or the name of one that comes with
                 prunerob: mnist_pgd; without one, that of the run in --ckpt_path
  --print_config (of the first four) show the whole configuration and exit
  --KEY VALUE    (of the first four) set one key of the configuration: --pruning.amount 0.8

`prunerob fit --ckpt_path RUN` goes on with a run that was interrupted.
A configuration names classes to import: treat one from a stranger as you would a program.
"""


HELP_ALL = (["--help", "all"], ["-h", "all"])
"""How a command line ends that asks for every key."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        args: the command line without the program's name; by default the process's own.

    Raises:
        SystemExit: with status 2 after a mistake in the request, or where what was printed could
            not be written; one line says which.
    """
    args = list(sys.argv[1:] if args is None else args)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that lacks a sign shows another
            stream.reconfigure(errors="replace")
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = cast(TextIO, Lasting(sys.stdout))
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = cast(TextIO, Lasting(sys.stderr))
    try:
        _run(args)
    except SystemExit as end:
        if not end.code:
            _check_printed()
        raise
    _check_printed()


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
    elif args[0] == "--version":
        print(f"prunerob {__version__}")
    elif args[0] in LIGHTNING and {"-h", "--help"} & set(args) and args[-2:] not in HELP_ALL:
        print(short_help(args[0]))
    else:
        try:
            if not _has_working_directory():
                raise UserError("the working directory was removed; change to another")
            if any("\0" in arg for arg in args):
                raise UserError("the command line holds a null character")
            if args[0] not in MODULES:
                raise UserError(f"{args[0]}: no such command; there are {', '.join(MODULES)}")
            if args[0] in LIGHTNING and args[-2:] in HELP_ALL:
                args = args[:-1]
            args = with_files(args)
            import_module(MODULES[args[0]]).run(args)
        except KeyboardInterrupt:
            sys.stderr.write("prunerob: interrupted\n")
            raise SystemExit(130) from None
        except (UserError, OSError) as error:
            sys.stderr.write(f"prunerob: error: {one_line(error)}\n")
            raise SystemExit(2) from None


def _open_streams() -> None:
    """Where a stream was closed, as by `>&-`, what is written goes nowhere.

    A file that is opened later would take its number otherwise, and all that is printed.
    """
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)  # inherited by processes that are started
            if nowhere != number:
                os.close(nowhere)
            else:
                os.set_inheritable(number, True)
        setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _check_printed() -> None:
    """See that all that was printed has reached its place.

    Raises:
        SystemExit: it has not, as on a full disk.
    """
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is not None:
        sys.stderr.write(f"prunerob: error: standard output: {failure.strerror}\n")
        raise SystemExit(2)


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


class Lasting:
    """A stream whose reader may leave, as `head` does: what comes after goes nowhere.

    So it does where the stream cannot be written, as on a full disk: that ends no training.

    Args:
        stream: of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        """Why something could not be written, where the reader has not left."""

    def write(self, text: str) -> int:
        """Write, if someone reads."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._forget(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, if someone reads."""
        try:
            self._stream.flush()
        except OSError as error:
            self._forget(error)

    def _forget(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's."""
        return getattr(self._stream, name)


def one_line(error: Exception) -> str:
    """An error's text in one line; a system error names its file first."""
    if isinstance(error, OSError) and error.filename is not None:
        name = error.filename  # bytes, of TensorBoard's
        name = os.fsdecode(name) if isinstance(name, bytes) else name
        return " ".join(f"{name}: {error.strerror}".split())
    return " ".join(str(error).split())
