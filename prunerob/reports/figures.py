"""Figures: what pruning takes away, and what robustness costs.

Told apart by marker and line as well as by colour; the colours are those of Okabe and Ito, which
the colour-blind tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunerob.reports.networks import CONTROL, NATURAL, Point
from prunerob.reports.results import Results
from prunerob.robustness.curve import SecurityCurve
from prunerob.statistics import mean_and_spread, wilson_interval

BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
STYLES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", ":"), (BLACK, "D", "-"))
COLOURS = (BLACK, BLUE, ORANGE, GREEN, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")

mpl.rcParams["svg.hashsalt"] = "prunerob"  # the same figure is the same file
mpl.rcParams["font.size"] = 9
mpl.rcParams["text.parse_math"] = False  # a folder may well be called $a$


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and as SVG; returns the files."""
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    figure.savefig(files[0], dpi=200)
    figure.savefig(files[1], metadata={"Date": None})
    return files


def difference_figure(results: Results) -> Figure:
    """Accuracy minus the dense network's against the share pruned: Figure 1 of the paper.

    A panel for each training and method; natural images, FGSM and PGD at their largest eps, and
    AutoAttack. Error bars are standard deviations over seeds and, of a single one, the 95 %
    interval over images; the hollow marks at 0 are the control.
    """
    trainings, methods = results.recipes, results.methods
    columns = ["natural", results.one_step_column(), results.many_steps_column()]
    columns.append(results.robust_column())
    figure = Figure(
        figsize=(max(8, 1 + 3 * len(trainings)), 0.8 + 2.3 * len(methods)), layout="constrained"
    )
    grid = figure.subplots(len(methods), len(trainings), squeeze=False, sharex=True, sharey="col")
    for i, method in enumerate(methods):
        for j, recipe in enumerate(trainings):
            axes = grid[i][j]
            for (colour, marker, line), column in zip(STYLES, columns, strict=True):
                if column is not None:
                    _difference_curve(axes, results, recipe, method, column, colour, marker, line)
            axes.axhline(0, color="grey", linewidth=0.6)
            axes.grid(alpha=0.25)
            axes.set_title(f"{recipe}\n{method}", fontsize=8)
            if i + 1 == len(methods):
                axes.set_xlabel("share pruned, %")
            if j == 0:
                axes.set_ylabel("accuracy − dense, points")
    _legend(figure, grid.ravel(), columns=2 * len(trainings))
    return figure


def _difference_curve(
    axes: Axes,
    results: Results,
    recipe: str,
    method: str,
    column: str,
    colour: str,
    marker: str,
    line: str,
) -> None:
    shares, heights, spreads = [0.0], [0.0], [0.0]
    for point in sorted(results.pruned(recipe, method), key=lambda point: point.amount):
        difference = results.difference(point, point.dense, column)
        if difference is not None:
            shares.append(100 * point.amount)
            heights.append(difference.points)
            spreads.append(difference.margin if difference.spread is None else difference.spread)
    if len(shares) == 1:
        return
    axes.errorbar(
        shares,
        heights,
        yerr=spreads,
        capsize=2,
        label=column,
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=4,
    )
    dense = Point(recipe=recipe)
    beside = results.difference(dense.control, dense, column)
    if beside is not None:
        axes.plot(
            0,
            beside.points,
            color=colour,
            marker=marker,
            fillstyle="none",
            linestyle="",
            markersize=6,
            label="control (hollow)" if column == "natural" else None,
        )


def trade_off_figure(results: Results) -> Figure:
    """Robust against natural accuracy; the area of a mark is the share of parameters left.

    Bars are standard deviations over seeds and, of a single one, the 95 % interval over images.
    """
    robust = results.robust_column() or results.many_steps_column() or results.columns[-1]
    columns, trainings = (NATURAL, robust), results.recipes
    figure = Figure(figsize=(max(8, 1 + 3 * len(trainings)), 3.8), layout="constrained")
    grid = figure.subplots(1, len(trainings), squeeze=False)
    for axes, recipe in zip(grid[0], trainings, strict=True):
        kinds: list[tuple[str, Sequence[Point]]] = [("dense", [Point(recipe=recipe)])]
        kinds.append((CONTROL, [Point(recipe=recipe, method=CONTROL)]))
        kinds += [(method, results.pruned(recipe, method)) for method in results.methods]
        for i, (name, points) in enumerate(kinds):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            known = [point for point in points if results.accuracies(point, robust)]
            at = [
                [100 * mean(results.accuracies(point, column)) for point in known]
                for column in columns
            ]
            sizes = [20 + 180 * (1 - results.share(point)) for point in known]
            if known:
                bars = [[_bar(results, point, column) for point in known] for column in columns]
                axes.errorbar(
                    *at, xerr=bars[0], yerr=bars[1], fmt="none", ecolor=colour, alpha=0.5, lw=0.8
                )
                axes.scatter(
                    *at, s=sizes, color=colour, marker=marker, alpha=0.65, linewidths=0, label=name
                )
            for x, y, point in zip(*at, known, strict=True):
                if point.amount:
                    axes.annotate(
                        f"{100 * point.amount:g}",
                        (x, y),
                        xytext=(4, 4),
                        textcoords="offset points",
                        fontsize=7,
                    )
        axes.set_title(recipe, fontsize=9)
        axes.set_xlabel("natural accuracy, %")
        axes.grid(alpha=0.25)
        axes.margins(0.15)
    grid[0][0].set_ylabel(f"accuracy under {robust}, %")
    _legend(figure, grid[0], columns=2 * len(trainings))
    return figure


def curve_figure(curves: Mapping[str, SecurityCurve], radius: float) -> Figure:
    """Accuracy against eps, of several networks, with the 95 % interval over images.

    Args:
        curves: by network.
        radius: at which they are tested.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (name, curve), (colour, marker, line) in zip(curves.items(), STYLES, strict=False):
        heights = [100 * right / curve.images for right in curve.right]
        bounds = [wilson_interval(right, curve.images) for right in curve.right]
        low, high = ([100 * b for b in side] for side in zip(*bounds, strict=True))
        axes.plot(curve.radii, heights, color=colour, marker=marker, linestyle=line, label=name)
        axes.fill_between(curve.radii, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axvline(radius, color="grey", linewidth=0.8, linestyle=":", label="eps of the test")
    axes.set(xlabel="eps", ylabel="accuracy, %", ylim=(0, 102), xlim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def _bar(results: Results, point: Point, column: str) -> float:
    """Half of an error bar, in percentage points."""
    center, spread = mean_and_spread(results.accuracies(point, column))
    if spread is not None:
        return 100 * spread
    images = results.images(point, column)
    low, high = wilson_interval(round(center * images), images)
    return 50 * (high - low)


def _legend(figure: Figure, panels: Iterable[Axes], *, columns: int) -> None:
    """One legend below all panels, for what is in any of them."""
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(max(1, len(handles)), columns),
        markerscale=0.8,
        frameon=False,
    )
