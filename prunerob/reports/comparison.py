"""Our results beside the paper's, cell by cell."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from statistics import mean

from prunerob.errors import UserError
from prunerob.reports.networks import Point
from prunerob.reports.paper import PaperTable, Recipe, Row
from prunerob.reports.results import Results
from prunerob.reports.tables import Table, accuracy_note, percent
from prunerob.runs.configuration import NOT_TRAINING, Resolve, differences

APART = 2.0
"""Percentage points from which on a cell is marked."""


OF_A_BRANCH = (
    *("epoch", "amount", "criterion", "reading", "residual", "masks_from"),
    "narrow",  # the same up to rounding
)
"""Pruning settings that a sweep or a table chooses, and those that change nothing."""


def departures(
    paper: PaperTable, results: Results, configs: Path, *, resolve: Resolve
) -> list[str]:
    """Settings of the runs that are not those of their recipes, in words.

    Args:
        paper: the table, with its recipes.
        results: their runs.
        configs: folder of the recipes' configurations.
        resolve: gives the whole configuration that the options of a command line stand for.
    """
    counts: dict[tuple[str, str], int] = {}
    for recipe in paper.recipes:
        of_it = [result for result in results.all if result.point.recipe == recipe.name]
        if not of_it:
            continue
        expected = resolve(["--config", str(configs / recipe.config), *recipe.settings])
        epochs = {True: expected["pruning"]["epoch"], False: expected["trainer"]["max_epochs"]}
        for result in of_it:
            config, point = result.config, result.point
            # What a sweep sets itself, or a table asks for.
            free = [*NOT_TRAINING, "trainer.max_epochs", "data.init_args.folder"]
            free += [f"pruning.{name}" for name in OF_A_BRANCH]
            if point.is_dense or point.is_scratch:
                free.append("model.fine_tuning")
            apart = [
                (name, wanted, is_so)
                for name, wanted, is_so in differences(expected, config)
                if not name.startswith(tuple(free))
            ]
            apart += differences(
                expected["model"]["attacks"], result.about["suite"]["attacks"], "model.attacks"
            )
            for name, wanted, is_so in (
                ("epochs", epochs[point.is_dense], config["trainer"]["max_epochs"]),
                ("epochs before pruning", epochs[True], result.dense_epochs),
            ):
                if wanted != is_so and not point.is_scratch:
                    apart.append((name, wanted, is_so))
            for name, wanted, is_so in apart:
                key = (recipe.name, f"{name} {is_so}, not {wanted}")
                counts[key] = counts.get(key, 0) + 1
    return [f"{name}, {what} ({n} networks)" for (name, what), n in counts.items()]


def only_of(paper: PaperTable, results: Results) -> Results:
    """The results that belong to a table, without those that others of the folder need."""
    wanted = _points(paper)
    kept = [
        result
        for result in results.all
        if result.point.amount == 0
        or (result.point.recipe, result.point.method, result.point.amount) in wanted
    ]
    if not kept:
        raise UserError("--folder: none of its runs is of this table")
    return Results(kept, results.left_out)


def _points(paper: PaperTable) -> set[tuple[str, str, float]]:
    """What a table prunes: recipe, method as reports call it, and amount."""
    return {
        (recipe.name, method, amount)
        for recipe in paper.recipes
        for criterion, amounts in paper.amounts_of(recipe).items()
        for amount in amounts
        for method in ([criterion] if criterion == "weight" else ["filter", _told(criterion)])
    }


def _told(criterion: str) -> str:
    """What reports that know several readings call a criterion of a sweep that prunes filters."""
    return f"filter ({(criterion.partition(':')[2] or 'weights').replace(':', ', ')})"


def _method(point: Point) -> str:
    """The paper's word for a way of pruning: ours without the reading."""
    return point.method.split(" (")[0]


def pairs(paper: PaperTable, results: Results) -> list[tuple[Row, Recipe, Point | None]]:
    """Each row of the paper with every network of ours that may be meant by it.

    A row for which nothing has run has none.
    """
    matches: list[tuple[Row, Recipe, Point | None]] = []
    for recipe in paper.recipes:
        for row in paper.rows:
            if row.training != recipe.training:
                continue
            points: list[Point | None] = [
                point
                for point in results.by_point
                if (point.recipe, _method(point), point.amount)
                == (recipe.name, row.method, row.amount)
                and not point.is_scratch
            ]
            matches += [(row, recipe, point) for point in points or [None]]
    return matches


def comparison(paper: PaperTable, results: Results) -> Table:
    """Our accuracies and the paper's, cell by cell; those apart are marked."""
    rows = []
    for row, recipe, point in pairs(paper, results):
        cells = []
        for column, theirs in zip(paper.columns, row.accuracies, strict=True):
            values = results.accuracies(point, column) if point else []
            apart = values and abs(100 * mean(values) - theirs) > APART
            cells.append(f"{percent(values)} / {theirs:.1f}{' *' if apart else ''}")
        share = f"{row.method}s, {100 * row.amount:g} %" if row.method else "dense"
        pruned = point.name if point else f"{share}, not run"
        seeds = str(len(results.by_point[point])) if point else "0"
        rows.append([recipe.name, pruned, *cells, seeds])
    note = (
        f"Ours / the paper's. *: more than {APART:g} points apart, either way. "
        f"{accuracy_note(results)}"
    )
    return Table(
        f"{paper.title}, ours / the paper's",
        ["training", "network", *paper.columns, "seeds"],
        rows,
        note,
    )


def comparison_csv(paper: PaperTable, results: Results) -> str:
    """The comparison for programs: a line for each cell, in percent."""
    file = StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["training", "network", "column", "ours", "paper", "difference", "seeds"])
    for row, recipe, point in pairs(paper, results):
        for column, theirs in zip(paper.columns, row.accuracies, strict=True):
            values = results.accuracies(point, column) if point else []
            if point and values:
                ours = 100 * mean(values)
                seeds = " ".join(map(str, results.by_point[point]))
                cells = (f"{ours:.2f}", theirs, f"{ours - theirs:.2f}", seeds)
                table.writerow([recipe.name, point.name, column, *cells])
    return file.getvalue()
