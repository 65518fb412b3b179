"""One HTML page with everything in it: to open, print or send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from matplotlib.figure import Figure

from prunerob.reports.results import Results
from prunerob.reports.tables import Table

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #222; } tr:last-child td { border-bottom: 1px solid #222; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
.scroll { overflow-x: auto; } .note { color: #555; font-size: .9em; }
svg { max-width: 100%; height: auto; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } }
"""


def page(
    title: str,
    results: Results,
    tables: Sequence[Table],
    figures: Mapping[str, Figure],
    warnings: Sequence[str],
) -> str:
    """Put tables, figures, warnings and where they are from on one page.

    Args:
        title: of the page.
        results: what it is about.
        tables: to show, in this order.
        figures: to show below them, by what they say.
        warnings: of a reviewer.

    Returns:
        HTML that needs no other file.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [_table(tables[0])] if tables else []
    parts.append("<h2>What a reviewer would object to</h2>")
    objections = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    parts.append(f"<ul>{objections}</ul>" if warnings else "<p>Nothing that was looked for.</p>")
    if results.left_out:
        left_out = "".join(f"<li>{escape(run)}</li>" for run in results.left_out)
        parts.append(f"<p>Left out:</p><ul>{left_out}</ul>")
    for caption, figure in figures.items():
        parts.append(f"<h2>{escape(caption)}</h2>\n{_inline(figure)}")
    parts += [_table(table) for table in tables[1:]]
    parts.append(f"<h2>Runs</h2>{_runs(results)}")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.headings)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="scroll"><table><tr>{head}</tr>\n{rows}'
        f'</table></div>\n<p class="note">{escape(table.note)}</p>'
    )


def _inline(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue().decode()
    return svg[svg.index("<svg") :]


def _runs(results: Results) -> str:
    """What each row is from: with what, where and by which seed."""
    rows = [
        [
            result.point.recipe,
            result.point.pruned,
            str(result.seed),
            f"{result.run.folder.parent.name}/{result.run.folder.name}",
            str(result.about.get("hardware", "")),
            f"prunerob {result.about.get('prunerob')}, torch {result.about.get('torch')}",
        ]
        for result in results.all
    ]
    headings = ["training", "pruned", "seed", "run", "tested on", "versions"]
    return _table(Table("", headings, rows)).replace("<h2></h2>\n", "")
