"""One HTML page with everything in it: to open, print or send."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from prunerob.reports.results import Results
from prunerob.reports.tables import Table

HEADINGS = ("training", "network", "seed", "run", "tested on", "versions")


def page(
    title: str,
    results: Results,
    folder: Path,
    *,
    headlines: Sequence[str],
    tables: Sequence[Table],
    figures: Mapping[str, Figure],
    warnings: Sequence[str],
) -> str:
    """Put tables, figures, warnings and where they are from on one page.

    Args:
        title: of the page.
        results: what it is about.
        folder: of the page, from which it links to the runs.
        headlines: the result in sentences.
        tables: to show, in this order.
        figures: to show below them, by what they say.
        warnings: of a reviewer.

    Returns:
        HTML that needs no other file; links lead to rows of the table of runs, and to the runs.
    """
    templates = Environment(
        loader=PackageLoader("prunerob.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(
        title=title,
        headlines=headlines,
        tables=tables,
        figures={caption: Markup(_svg(figure)) for caption, figure in figures.items()},
        warnings=warnings,
        left_out=results.left_out,
        runs=_runs(results),
        hrefs=[_href(result.run.folder, folder) for result in results.all],
        ids=_ids(results),
    )


def _svg(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue().decode()
    return svg[svg.index("<svg") :]


def _runs(results: Results) -> Table:
    """What each row is from: with what, where and by which seed."""
    rows = [
        [
            result.point.recipe,
            result.point.name,
            str(result.seed),
            f"{result.run.folder.parent.name}/{result.run.folder.name}",
            str(result.about.get("hardware", "")),
            f"prunerob {result.about.get('prunerob')}, torch {result.about.get('torch')}",
        ]
        for result in results.all
    ]
    return Table("Runs", HEADINGS, rows)


def _ids(results: Results) -> dict[tuple[str, str], int]:
    """The row in the table of runs of the first run of each training and network."""
    ids: dict[tuple[str, str], int] = {}
    for i, result in enumerate(results.all):
        ids.setdefault((result.point.recipe, result.point.name), i)
    return ids


def _href(run: Path, folder: Path) -> str:
    """A run's folder, as a link from the page's."""
    try:
        place = os.path.relpath(run, folder)
    except ValueError:  # on another drive
        return run.absolute().as_uri()
    return quote(Path(place).as_posix(), errors="surrogateescape")
