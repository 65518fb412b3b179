"""Tables of results: in the paper's layout, of differences, and of operating points."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from prunerob.reports.results import CONTROL, Difference, Point, Results, mean_and_spread
from prunerob.review import SIGNIFICANT


@dataclass(frozen=True)
class Table:
    """Words in rows and columns.

    Args:
        title: what it shows.
        headings: one for each column.
        rows: cells, as many as headings.
        note: what is to be known to read it.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def to_markdown(self) -> str:
        """For a page."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"{text}\n\n{self.note}\n" if self.note else f"{text}\n"

    def to_latex(self) -> str:
        """For a paper; needs the package booktabs."""
        columns = "l" * 2 + "r" * (len(self.headings) - 2)
        lines = [f"% {self.title}. {self.note}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [" & ".join(map(_latex, self.headings)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex(text: str) -> str:
    for sign, command in (
        ("%", r"\%"),
        ("±", r"$\pm$"),
        ("−", "$-$"),
        ("_", r"\_"),
        ("≈", r"$\approx$"),
    ):
        text = text.replace(sign, command)
    return text


def accuracy_table(results: Results) -> Table:
    """The paper's layout: a row for each network, a column for each attack, in percent."""
    rows = []
    for point, seeds in results.by_point.items():
        cells = [percent(results.accuracies(point, column)) for column in results.columns]
        left = f"{100 * (1 - results.share(point)):.1f}"
        rows.append([point.recipe, point.pruned, left, *cells, str(len(seeds))])
    images = len(results.all[0].robustness.index)
    note = (
        f"Accuracy in percent on {images:,} test images, mean ± standard deviation over seeds"
        f"{_black_box_note(results)}. Left: share of the parameters that remain, in percent."
    )
    headings = ["training", "pruned", "left", *results.columns, "seeds"]
    return Table("Accuracy", headings, rows, note)


def _black_box_note(results: Results) -> str:
    for result in results.all:
        names = result.columns().get("black box")
        if names:
            n = int(result.robustness.attacked(names[0]).sum())
            return f" (black box: over seeds and substitutes, on {n:,} images)"
    return ""


def difference_table(results: Results, *, control: bool) -> Table:
    """Accuracies minus those of the dense network, or of the control, in percentage points.

    A difference that the paired test does not tell from chance has a mark.
    """
    name = "the control (dense, gone on with for as long)" if control else "dense"
    rows = []
    for point in results.by_point:
        if point.is_dense or (control and point.is_control):
            continue
        base = Point(recipe=point.recipe, method=CONTROL if control else "")
        found = [results.difference(point, base, column) for column in results.columns]
        if any(found):
            rows.append([point.recipe, point.pruned, *map(_told, found)])
    note = (
        "Percentage points, mean ± standard deviation over seeds. ≈: not told from chance by the "
        "exact paired test on the same images (McNemar, p ≥ 0.05, seeds taken together, not "
        "corrected for the number of tests)."
    )
    return Table(f"Minus {name}", ["training", "pruned", *results.columns], rows, note)


def _told(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    text = f"{difference.points:+.1f}".replace("-", "−")
    if difference.spread is not None:
        text += f" ± {difference.spread:.1f}"
    return text if difference.p < SIGNIFICANT else f"{text} ≈"


def operating_points(results: Results, *, tolerance: float) -> Table:
    """The two points of the paper, picked on validation images.

    High compression is the smallest network whose natural accuracy is within a tolerance of the
    dense one's; high robustness the smallest whose robust accuracy is, too.

    Args:
        results: all of them.
        tolerance: in percentage points.
    """
    robust = results.column_of("PGD")
    rows = []
    for recipe in results.recipes:
        for method in results.methods:
            of_it = [
                p
                for p in results.by_point
                if (p.recipe, p.method, p.is_scratch) == (recipe, method, False)
            ]
            if not of_it:
                continue
            for name, wanted in (
                ("high compression", ("clean",)),
                ("high robustness", ("clean", "robust")),
            ):
                point = _smallest(results, of_it, wanted, tolerance / 100)
                if point is None:
                    rows.append([recipe, method, name, "none", *["–"] * 5])
                    continue
                validation = [results.validation(point, which) for which in ("clean", "robust")]
                rows.append(
                    [recipe, method, name, f"{100 * point.amount:g} %"]
                    + [f"{100 * (1 - results.share(point)):.1f}"]
                    + ["–" if v is None else f"{100 * v:.1f}" for v in validation]
                    + [percent(results.accuracies(point, "natural"))]
                    + [percent(results.accuracies(point, robust)) if robust else "–"]
                )
    headings = ["training", "method", "point", "pruned", "left"]
    headings += ["validation natural", "validation robust", "test natural", f"test {robust}"]
    note = (
        "Picked on validation images alone, among the amounts that were run: the smallest network "
        f"within {tolerance:g} points of dense in natural accuracy (high compression), and in "
        "robust accuracy too (high robustness). The choice among noisy values favours luck: expect "
        "a little less."
    )
    return Table("Operating points", headings, rows, note)


def _smallest(
    results: Results, points: Sequence[Point], wanted: Sequence[str], tolerance: float
) -> Point | None:
    dense = Point(recipe=points[0].recipe)
    if dense not in results.by_point:
        return None
    good = []
    for point in points:
        pairs = [(results.validation(point, n), results.validation(dense, n)) for n in wanted]
        if all(a is not None and b is not None and a >= b - tolerance for a, b in pairs):
            good.append(point)
    return max(good, key=results.share, default=None)


CSV_COLUMNS = (
    "training",
    "method",
    "amount",
    "from_scratch",
    *("filters", "weights", "parameters"),  # shares pruned
    "column",
    "mean",
    "std",
    "values",
    "seeds",
    "images",
    *("minus_dense", "p_dense", "minus_control", "p_control"),
)


def to_csv(results: Results) -> str:
    """Everything, a line for each network and column, for programs; accuracies in [0, 1]."""
    file = StringIO()
    table = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    for point, seeds in results.by_point.items():
        shares = [f"{results.share(point, r):.6f}" for r in ("filters", "weights", "parameters")]
        first = next(iter(seeds.values()))
        for column in results.columns:
            values = results.accuracies(point, column)
            if not values:
                continue
            center, spread = mean_and_spread(values)
            name = first.columns()[column][0]
            images = int(first.robustness.attacked(name).sum())
            differences: list[str] = []
            for base in (Point(recipe=point.recipe), Point(recipe=point.recipe, method=CONTROL)):
                found = results.difference(point, base, column)
                differences += (
                    [f"{found.points / 100:.6f}", f"{found.p:.3g}"] if found else ["", ""]
                )
            known = (point.recipe, point.method or "dense", point.amount, int(point.is_scratch))
            told = "" if spread is None else f"{spread:.6f}"
            measured = (column, f"{center:.6f}", told, len(values), " ".join(map(str, seeds)))
            cells = (*known, *shares, *measured, images, *differences)
            table.writerow(dict(zip(CSV_COLUMNS, cells, strict=True)))
    return file.getvalue()


def warnings(results: Results) -> list[str]:
    """What a careful reviewer would object to, run by run."""
    return [
        f"{result.point.recipe}, pruned {result.point.pruned}, seed {result.seed}: {warning}"
        for result in results.all
        for warning in result.warnings()
    ]


def percent(values: Sequence[float]) -> str:
    """Mean ± standard deviation in percent; a dash for nothing."""
    if not values:
        return "–"
    center, spread = mean_and_spread(values)
    text = f"{100 * center:.1f}"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"
