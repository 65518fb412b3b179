"""`prunerob report`: from finished runs to tables, figures and a page."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from rich import table as rich_table
from rich.console import Console
from rich.markup import escape

from prunerob.commands.arguments import Arguments
from prunerob.reports.results import Results
from prunerob.reports.tables import Table
from prunerob.runs.folder import write_whole

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
    said = parser.parse_args(list(args)[1:])
    from prunerob.reports.results import read_results

    results = read_results(said.runs, partial=said.partial)
    folder = Path(said.output or (Path(said.runs[0]) if len(said.runs) == 1 else Path()) / "report")
    files = write(results, folder, tolerance=said.tolerance, title=said.title)
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


def write(
    results: Results,
    folder: Path,
    *,
    tolerance: float = 0.5,
    title: str,
    also: Sequence[Table] = (),
) -> list[Path]:
    """Print the tables and the warnings, and write everything.

    Args:
        results: what to report on.
        folder: where to write.
        tolerance: of the operating points, in percentage points.
        title: of the page.
        also: more tables for the page, in front of the others.

    Returns:
        the files.
    """
    from prunerob.reports import figures, tables
    from prunerob.reports.page import page
    from prunerob.robustness.files import check_writable

    check_writable(folder)
    accuracy = tables.accuracy_table(results)
    others = {
        "minus_dense": tables.difference_table(results, "dense"),
        "minus_control": tables.difference_table(results, "control"),
        "minus_pruned": tables.difference_table(results, "pruned"),
        "operating_points": tables.operating_points(results, tolerance=tolerance),
        "filters_left": tables.filters_table(results),
        "substitutes": tables.black_box_table(results),
    }
    others = {name: table for name, table in others.items() if table.rows}
    warnings = tables.warnings(results)
    console = Console()
    for table in (accuracy, *others.values()):
        show(table, console)
    for warning in warnings:
        console.print(f"[yellow]Warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    for run in results.left_out:
        console.print(f"[yellow]Left out:[/] {escape(run)}", highlight=False, soft_wrap=True)

    texts = {"accuracy.csv": tables.to_csv(results)}
    for name, table in {"accuracy": accuracy, **others}.items():
        texts[f"{name}.md"] = table.to_markdown()
        texts[f"{name}.tex"] = table.to_latex()
    texts["warnings.txt"] = "".join(f"{warning}\n" for warning in warnings)
    drawn = {}
    if others.get("minus_dense") and results.methods:
        drawn["difference"] = figures.difference_figure(results)
    drawn["trade_off"] = figures.trade_off_figure(results)
    captions = {
        "difference": "What pruning takes away: accuracy minus the dense network's",
        "trade_off": "Robust against natural accuracy; the area is the share of parameters left",
    }
    shown = {captions[name]: figure for name, figure in drawn.items()}
    texts["report.html"] = page(
        title, results, [*also, accuracy, *others.values()], shown, warnings
    )
    files = []
    for name, text in texts.items():
        write_whole(folder / name, text)
        files.append(folder / name)
    for name, figure in drawn.items():
        files += figures.save(figure, folder / name)
    return files


def show(table: Table, console: Console) -> None:
    """Print a table, as wide as it needs to be where nobody has a terminal to be filled."""
    if not console.is_terminal:
        console = Console(width=200)
    shown = rich_table.Table(
        title=escape(table.title), caption=escape(table.note), caption_justify="left"
    )
    for i, heading in enumerate(table.headings):
        shown.add_column(escape(heading), justify="left" if i < 2 else "right")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
