"""`prunerob report`: from finished runs to tables, figures and a page."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from prunerob.commands.arguments import Arguments
from prunerob.errors import UserError

DESCRIPTION = """\
Make tables, figures and a page about finished and tested runs.

    prunerob report sweeps/mnist_pgd
    prunerob report sweeps/mnist_standard sweeps/mnist_pgd --output report

Writes the tables accuracy (.csv, .md, .tex), minus_dense, minus_control, minus_pruned (networks
from scratch), operating_points, filters_left and substitutes (.md, .tex), as far as there is
something in them, the figures difference and trade_off (.png, .svg), warnings.txt, and report.html,
one file to open or send.
"""


def run(args: Sequence[str]) -> None:
    """Report on runs.

    Args:
        args: the command line without the program's name.

    Raises:
        UserError: there is nothing to report on, or it does not go together.
    """
    parser = Arguments("report", DESCRIPTION)
    parser.add_argument("runs", nargs="+", help="folders of runs or sweeps")
    parser.add_argument(
        "--output", help="where to write (default: report, in the folder if there is only one)"
    )
    add_tolerance(parser)
    parser.add_argument("--title", default="Robustness of pruned networks")
    parser.add_argument(
        "--partial", action="store_true", help="leave out runs that are not finished and tested"
    )
    options = parser.parse_args(list(args)[1:])

    if not all(name.strip() for name in options.runs):  # as of a shell's variable that is not set
        raise UserError("runs: an empty name is no folder")

    from rich.console import Console

    from prunerob.reports.reading import read_results
    from prunerob.reports.writing import write

    results = read_results(options.runs, partial=options.partial)
    beside = Path(options.runs[0]) if len(options.runs) == 1 else Path()
    folder = Path(options.output or beside / "report")
    files = write(results, folder, tolerance=options.tolerance, title=options.title)
    Console().print("Written: " + ", ".join(map(str, files)), highlight=False, soft_wrap=True)


def add_tolerance(parser: Arguments) -> None:
    """The option that says what the operating points may lose."""
    parser.add_argument(
        "--tolerance",
        type=_points,
        default=0.5,
        help="points of accuracy on validation images that the operating points may lose "
        "(default 0.5)",
    )


def _points(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise ArgumentTypeError(f"{text} lies outside [0, 100] points")
    return value


_points.__name__ = "number"  # argparse says what a value is not
