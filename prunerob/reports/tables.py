"""Tables of results: in the paper's layout, of differences, and of operating points."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from statistics import mean

from prunerob.reports.networks import Point
from prunerob.reports.results import Difference, Results
from prunerob.robustness.cells import to_cell
from prunerob.statistics import mean_and_spread, wilson_interval

NOTHING = "–"


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
        text = "\n".join(
            "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines
        )
        return f"{text}\n\n{self.note}\n" if self.note else f"{text}\n"

    def to_latex(self) -> str:
        """For a paper; needs the package booktabs."""
        columns = "l" * 2 + "r" * (len(self.headings) - 2)
        lines = [f"% {self.title}. {self.note}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [" & ".join(map(_latex, self.headings)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "%&#_{}$"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "≈": r"$\approx$",
    NOTHING: "--",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def accuracy_table(results: Results) -> Table:
    """The paper's layout: a row for each network, a column for each attack, in percent."""
    rows = []
    for point, seeds in results.by_point.items():
        cells = [percent(results.accuracies(point, column)) for column in results.columns]
        left = f"{100 * (1 - results.share(point)):.1f}"
        rows.append([point.recipe, point.name, left, *cells, str(len(seeds))])
    headings = ["training", "network", "left", *results.columns, "seeds"]
    note = f"{accuracy_note(results)} Left: share of the parameters that remain."
    return Table("Accuracy", headings, rows, note)


def accuracy_note(results: Results) -> str:
    """What is to be known about the accuracies: images, seeds, intervals, selection."""
    first = results.all[0]
    images = len(first.robustness.index)
    boxes = {
        int(result.robustness.attacked(names[0]).sum())
        for result in results.all
        if (names := result.columns().get("black box"))
    }
    samples = {
        (column, int(result.robustness.attacked(names[0]).sum()))
        for result in results.all
        for column, names in result.columns().items()
        if any(n in result.suite.attacks and result.suite.attacks[n].sample for n in names)
    }
    samples_note = "".join(
        f" {column} is tried on {tried:,} of them, ± {_widest(tried):.1f}."
        for column, tried in sorted(samples)
        if tried < images
    )
    boxes_note = f" (black box: over seeds and substitutes, {_list(boxes)} images)" if boxes else ""
    held_out = {r.config["data"]["init_args"].get("validation_size") for r in results.all}
    return (
        f"Accuracy in percent on {images:,} {results.all[0].tested_on} images, mean ± standard "
        f"deviation over seeds{boxes_note}. The 95 % interval of one accuracy on as many images is "
        f"at most ± {_widest(images):.1f}.{samples_note} Last epoch: no checkpoint was chosen; "
        f"{_list(held_out)} training images are held out for validation."
    )


def _widest(images: int) -> float:
    """Half of the widest interval of an accuracy on so many images, in percentage points."""
    low, high = wilson_interval(images // 2, images)
    return 50 * (high - low)


def _list(numbers: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(numbers))


def difference_table(results: Results, against: str) -> Table:
    """Accuracies minus those of another network, in percentage points.

    A difference that chance would explain has a mark.

    Args:
        results: all of them.
        against: "dense"; "control"; or "pruned", of networks from scratch.
    """
    name, base_of = BASES[against]
    rows = []
    for point in results.by_point:
        differences = [
            results.difference(point, base_of(point), column) for column in results.columns
        ]
        if any(differences):
            rows.append([point.recipe, point.name, *map(_told, differences)])
    note = (
        "Percentage points, mean ± standard deviation over seeds (of a single seed, over black-box "
        "substitutes). ≈: chance would do (p ≥ 0.05), by the exact sign test on the images "
        "(McNemar's, of one seed) or the t test over seeds (of a single seed, over substitutes), "
        "which with two seeds lets little through; not corrected for the number of tests. With one "
        "seed, the rest is about these networks; others would differ."
    )
    return Table(f"Minus {name}", ["training", "network", *results.columns], rows, note)


BASES: dict[str, tuple[str, Callable[[Point], Point]]] = {
    "dense": ("dense", lambda point: point.dense),
    "control": ("the control, dense and gone on with for as long", lambda point: point.control),
    "pruned": (
        "the pruned network whose masks it has",
        lambda point: replace(point, is_scratch=False),
    ),
}
"""Whom a network is compared with, in words, and the point of that."""


def _told(difference: Difference | None) -> str:
    if difference is None:
        return NOTHING
    text = f"{difference.points:+.1f}".replace("-", "−")
    if difference.spread is not None:
        text += f" ± {difference.spread:.1f}"
    return f"{text} ≈" if difference.is_noise else text


def operating_points(results: Results, *, tolerance: float) -> Table:
    """The two points of the paper, picked on validation images.

    High compression is the smallest network whose natural accuracy is within a tolerance of the
    dense one's; high robustness the smallest whose robust accuracy is, too.

    Args:
        results: all of them.
        tolerance: in percentage points.
    """
    robust = results.robust_column() or results.many_steps_column()
    rows, images = [], set()
    for recipe in results.recipes:
        for method in results.methods:
            of_it = results.pruned(recipe, method)
            for name, wanted in OPERATING_POINTS.items() if of_it else ():
                measured = [p for p in of_it if all(_validated(results, p, n) for n in wanted)]
                good = [p for p in measured if _is_within(results, p, wanted, tolerance / 100)]
                is_robust = "robust" in wanted
                honest = [p for p in good if not (is_robust and results.is_masked(p))]
                lost = is_robust and all(_is_guessing(results, p) for p in measured)
                if lost or not honest:
                    verdict = "masked" if good else "none is"
                    verdict = "dense has none" if lost else verdict
                    verdict = verdict if measured else "not measured"
                    rows.append([recipe, method, name, verdict, *[NOTHING] * 5])
                    continue
                point = max(honest, key=results.share)
                pairs = [_validated(results, point, which) for which in ("clean", "robust")]
                rows.append(
                    [
                        *(recipe, method, name, f"{100 * point.amount:g} %"),
                        f"{100 * (1 - results.share(point)):.1f}",
                        *(f"{100 * p[0]:.1f} ({100 * p[1]:.1f})" if p else NOTHING for p in pairs),
                        percent(results.accuracies(point, "natural")),
                        percent(results.accuracies(point, robust)) if robust else NOTHING,
                    ]
                )
                any_seed = next(iter(results.by_point[point].values()))
                images |= {any_seed.validation[name][1] for name in wanted}
    headings = ["training", "method", "point", "pruned", "left", "validation natural (dense)"]
    headings += ["validation robust (dense)", "test natural", f"test {robust or 'robust'}"]
    chosen_on = f", {_list(images)} of them" if images else ""
    note = (
        f"Picked on validation images alone{chosen_on}, among the amounts that were run: the "
        f"smallest network within {tolerance:g} points of dense in natural accuracy (high "
        "compression), and in robust accuracy too (high robustness). A choice among noisy values "
        "favours luck: "
        "expect a little less. Validation robust is under the attack of validation, which networks "
        "that hide their gradients mislead: judge by AutoAttack on test images. Dense has none: "
        "its robust accuracy is no better than guessing, so that keeping it means nothing. Masked: "
        "all that would be picked hide their gradients from the attack of validation, as its probe "
        "or, in the test, Square has seen. Not measured: the dense network was not tested, or not "
        "validated on as many images."
    )
    return Table("Operating points", headings, rows, note)


OPERATING_POINTS = {"high compression": ("clean",), "high robustness": ("clean", "robust")}
"""The paper's two points, and the validation accuracies that must be kept."""


def _validated(results: Results, point: Point, name: str) -> tuple[float, float] | None:
    return results.validation(point, point.dense, name)


def _is_guessing(results: Results, point: Point) -> bool:
    """Whether the dense network of a pruned one is right no more often than a guess, attacked."""
    pair = _validated(results, point, "robust")
    classes = 1 + int(next(iter(results.by_point[point].values())).robustness.label.max())
    return pair is not None and pair[1] <= 1 / classes


def _is_within(results: Results, point: Point, wanted: Sequence[str], tolerance: float) -> bool:
    pairs = [_validated(results, point, name) for name in wanted]
    # Counts of images are exact; their quotients are not.
    return all(pair is not None and pair[0] >= pair[1] - tolerance - 1e-9 for pair in pairs)


def filters_table(results: Results) -> Table:
    """Where filters were pruned: how many each layer has left."""
    rows = []
    for result in results.all:
        left = [
            layer
            for layer in result.layers
            if layer.channels_after < layer.channels_before and not layer.is_normalisation
        ]
        if left and result.unit == "filters":
            narrowest = min(left, key=lambda layer: layer.channels_after / layer.channels_before)
            rows.append(
                [
                    *(result.point.recipe, result.point.name, str(result.seed)),
                    ", ".join(
                        f"{layer.name} {layer.channels_after} of {layer.channels_before}"
                        for layer in left
                    ),
                    f"{100 * narrowest.channels_after / narrowest.channels_before:.0f} %",
                ]
            )
    note = (
        "Layers that lost filters. Without shortcuts, all that a network sees passes through its "
        "narrowest layer; pruning.keep_per_layer sets a floor."
    )
    headings = ["training", "network", "seed", "filters left", "narrowest"]
    return Table("Filters left, layer by layer", headings, rows, note)


def black_box_table(results: Results) -> Table:
    """What the black boxes learned, mean over seeds and substitutes."""
    rows = []
    for point, seeds in results.by_point.items():
        learned = [
            row.learned
            for result in seeds.values()
            for row in result.robustness.rows
            if "substitute accuracy" in row.learned
        ]
        if learned:
            shares = ("substitute accuracy", "substitute agreement")
            cells = [percent([values[name] for values in learned]) for name in shares]
            queries = f"{mean(values['queries'] for values in learned):,.0f}"
            rows.append([point.recipe, point.name, *cells, queries, str(len(learned))])
    note = "In percent, mean ± standard deviation, on the images that the attacker does not hold."
    headings = ["training", "network", "accuracy", "agreement with the network", "queries"]
    return Table("Substitutes of the black box", [*headings, "substitutes"], rows, note)


CSV_COLUMNS = (
    "training",
    "method",
    "amount",
    "from_scratch",
    *("filters", "weights", "parameters"),  # shares pruned
    "column",
    "mean",
    "std",
    *("low", "high"),  # of a single accuracy: 95 %, Wilson
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
        for column in results.columns:
            values = results.accuracies(point, column)
            if not values:
                continue
            center, spread = mean_and_spread(values)
            images = results.images(point, column)
            interval = wilson_interval(round(center * images), images) if spread is None else ()
            differences: list[str] = []
            for base in (point.dense, point.control):
                difference = results.difference(point, base, column)
                differences += (
                    [f"{difference.points / 100:.6f}", f"{difference.p:.3g}"]
                    if difference
                    else ["", ""]
                )
            known = (
                to_cell(point.recipe),
                to_cell(point.method or "dense"),
                point.amount,
                int(point.is_scratch),
            )
            deviation = "" if spread is None else f"{spread:.6f}"
            bounds = [f"{bound:.6f}" for bound in interval] or ["", ""]
            measured = (to_cell(column), f"{center:.6f}", deviation, *bounds, len(values))
            cells = (*known, *shares, *measured, " ".join(map(str, seeds)), images, *differences)
            table.writerow(dict(zip(CSV_COLUMNS, cells, strict=True)))
    return file.getvalue()


def warnings(results: Results) -> list[str]:
    """What a careful reviewer would object to: run by run, then differences inside the noise."""
    objections = [
        f"{result.point.recipe}, {result.point.name}, seed {result.seed}: {warning}"
        for result in results.all
        for warning in result.warnings()
    ]
    for point in results.by_point:
        noise = [
            column
            for column in results.columns
            if (difference := results.difference(point, point.dense, column))
            and difference.is_noise
        ]
        if noise:
            objections.append(
                f"{point.recipe}, {point.name}: not to be distinguished from dense by "
                f"{', '.join(noise)}"
            )
        if not results.is_comparable(point, point.control):
            objections.append(
                f"{point.recipe}, {point.name}: not compared with the control, whose "
                "fine-tuning had other settings or another number of epochs"
            )
    return objections


def percent(values: Sequence[float]) -> str:
    """Mean ± standard deviation in percent; a dash for nothing."""
    if not values:
        return NOTHING
    center, spread = mean_and_spread(values)
    text = f"{100 * center:.1f}"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"
