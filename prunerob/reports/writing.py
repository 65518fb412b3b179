"""A report: tables, figures and a page, shown and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import table as rich_table
from rich.console import Console
from rich.markup import escape

from prunerob.reports import figures, tables
from prunerob.reports.headline import headlines
from prunerob.reports.page import page
from prunerob.reports.results import Results
from prunerob.reports.tables import Table
from prunerob.runs.folder import check_writable, write_whole


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
    sentences = headlines(results)
    console = Console()
    for sentence in sentences:
        console.print(escape(sentence), highlight=False, soft_wrap=True)
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
        title,
        results,
        folder,
        headlines=sentences,
        tables=[*also, accuracy, *others.values()],
        figures=shown,
        warnings=warnings,
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
