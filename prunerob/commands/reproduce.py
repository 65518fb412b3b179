"""`prunerob reproduce`: run what a table of the paper needs, and hold it against the paper."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from statistics import mean

from rich.console import Console

from prunerob.commands.arguments import Arguments, integers
from prunerob.errors import UserError
from prunerob.reports.paper import TABLES, PaperTable, Recipe, Row
from prunerob.reports.results import Point, Results
from prunerob.reports.tables import Table, accuracy_note, percent
from prunerob.runs.folder import NOT_TRAINING, differences, write_whole

DESCRIPTION = """\
Run the sweep behind a table or figure of the paper, and print its numbers beside ours.

    prunerob reproduce table1
    prunerob reproduce table2 --seed 0,1,2 --jobs 2
    prunerob reproduce figure1
    prunerob reproduce table3 --recipe '*fast' --data prunerob.data.ImageFolder --data.folder FOLDER

Interrupted, it goes on when the same command is given again; tables and figures share their runs.
Further options are settings of the configurations, as in `prunerob fit`.
"""

APART = 2.0
"""Percentage points from which on a cell is marked."""


def run(args: Sequence[str]) -> None:
    """Reproduce a table or a figure.

    Args:
        args: the command line without the program's name.

    Raises:
        UserError: the request is mistaken.
        SystemExit: with status 1 if a run failed, after the report on the others.
    """
    from prunerob.commands.report import add_tolerance
    from prunerob.commands.sweep import add_options_of_running, make_sweep, run_sweeps

    parser = Arguments("reproduce", DESCRIPTION)
    parser.usage = f"prunerob reproduce {'|'.join(TABLES)} [options]"
    parser.add_argument("--seed", type=integers, default=[0], help="seeds (default 0)")
    parser.add_argument(
        "--recipe",
        action="append",
        help="only the ways of training of this name, which may hold *; may be given several times "
        "(default all of the table)",
    )
    parser.add_argument(
        "--scratch", action="store_true", help="also train the pruned networks from scratch"
    )
    parser.add_argument(
        "--folder", default="reproduce", help="where the runs go (default reproduce)"
    )
    parser.add_argument(
        "--configs",
        default="configs",
        help="folder of prunerob's configurations (default configs, in a checkout of prunerob)",
    )
    add_tolerance(parser)
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing; report on what is finished"
    )
    add_options_of_running(parser)
    rest = list(args)[1:]
    what = rest.pop(0) if rest and not rest[0].startswith("-") else None
    said, settings = parser.parse_known_args(rest)
    if what is None or what not in TABLES:
        problem = "nothing to reproduce" if what is None else f"{what} is not known"
        raise UserError(f"{problem}; there are {', '.join(TABLES)}")
    if said.report_only and settings:
        raise UserError(f"{settings[0]} is a setting of runs, and --report-only runs nothing")
    for word in settings:
        if word.removeprefix("--").startswith(("pruning.reading", "pruning.residual")):
            raise UserError(f"{word}: the table says what its amounts mean; use `prunerob sweep`")
    paper, folder = _only(TABLES[what], said.recipe), Path(said.folder)
    for recipe in paper.recipes:
        if not (config := Path(said.configs) / recipe.config).is_file():
            raise UserError(
                f"--configs: there is no {config}; name the configs folder of a checkout of "
                "prunerob"
            )

    failed = False
    if not said.report_only:
        sweeps = []
        for recipe in paper.recipes:
            options = {
                "config": Path(said.configs) / recipe.config,
                "criterion": ["weight"],
                "amount": paper.amounts_of(recipe.training),
                "seed": said.seed,
                "folder": folder / recipe.folder,
                "scratch": said.scratch,
                "settings": [*recipe.settings, *settings],
            }
            sweeps.append(make_sweep(options))
        failed = bool(run_sweeps(sweeps, vars(said)))
    report(what, paper, folder, configs=Path(said.configs), tolerance=said.tolerance)
    if failed:
        raise SystemExit(1)


def _only(paper: PaperTable, patterns: Sequence[str] | None) -> PaperTable:
    """A table with those of its recipes that are asked for.

    Raises:
        UserError: a pattern fits none.
    """
    for pattern in patterns or ():
        if not any(fnmatchcase(recipe.name, pattern) for recipe in paper.recipes):
            known = "; ".join(recipe.name for recipe in paper.recipes)
            raise UserError(f"--recipe: {pattern!r} is none of: {known}")
    wanted = [
        recipe
        for recipe in paper.recipes
        if patterns is None or any(fnmatchcase(recipe.name, pattern) for pattern in patterns)
    ]
    return replace(paper, recipes=wanted)


def report(what: str, paper: PaperTable, folder: Path, *, configs: Path, tolerance: float) -> None:
    """Report on the finished runs of a table or figure, beside the paper's numbers.

    Args:
        what: its name.
        paper: the table or figure.
        folder: where its runs are.
        configs: folder of prunerob's configurations; what was run otherwise is told.
        tolerance: of the operating points, in percentage points.

    Raises:
        UserError: there are no runs, or they do not go together.
    """
    from prunerob.commands.report import show, write
    from prunerob.reports.results import read_results

    names = {str(folder / recipe.folder): recipe.name for recipe in paper.recipes}
    places = [place for place in names if Path(place).is_dir()]
    if not places:
        raise UserError(f"--folder: {folder} holds no runs of {what}")
    results = _of(paper, read_results(places, partial=True, recipes=names))
    target = folder / what
    compared = comparison(paper, results)
    if apart := departures(paper, results, configs):
        told = f"Not as the recipe has it: {'; '.join(apart)}. {compared.note}"
        compared = replace(compared, note=told)
    also = [compared] if compared.rows else []
    files = write(results, target, tolerance=tolerance, title=paper.title, also=also)
    console = Console()
    if also:
        show(compared, console)
        write_whole(target / "comparison.md", compared.to_markdown())
        write_whole(target / "comparison.csv", comparison_csv(paper, results))
        files += [target / "comparison.md", target / "comparison.csv"]
    console.print(f"Written: {len(files)} files in {target}", highlight=False, soft_wrap=True)


OF_A_BRANCH = (
    *("epoch", "amount", "criterion", "reading", "residual", "masks_from"),
    "narrow",  # the same up to rounding
)
"""Pruning settings that a sweep or a table chooses, and those that change nothing."""


def departures(paper: PaperTable, results: Results, configs: Path) -> list[str]:
    """Settings of the runs that are not those of their recipes, in words.

    Args:
        paper: the table, with its recipes.
        results: their runs.
        configs: folder of the recipes' configurations.
    """
    from prunerob.commands.lightning import resolve

    told: dict[tuple[str, str], int] = {}
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
            found = [
                (name, wanted, is_so)
                for name, wanted, is_so in differences(expected, config)
                if not name.startswith(tuple(free))
            ]
            found += differences(expected["model"]["attacks"], result.suite, "model.attacks")
            for name, wanted, is_so in (
                ("epochs", epochs[point.is_dense], config["trainer"]["max_epochs"]),
                ("epochs before pruning", epochs[True], result.dense_epochs),
            ):
                if wanted != is_so and not point.is_scratch:
                    found.append((name, wanted, is_so))
            for name, wanted, is_so in found:
                key = (recipe.name, f"{name} {is_so}, not {wanted}")
                told[key] = told.get(key, 0) + 1
    return [f"{name}, {what} ({n} networks)" for (name, what), n in told.items()]


def _of(paper: PaperTable, results: Results) -> Results:
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
        for criterion, amounts in paper.amounts_of(recipe.training).items()
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
    found: list[tuple[Row, Recipe, Point | None]] = []
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
            found += [(row, recipe, point) for point in points or [None]]
    return found


def comparison(paper: PaperTable, results: Results) -> Table:
    """Our accuracies and the paper's, cell by cell; those apart are marked."""
    rows = []
    for row, recipe, point in pairs(paper, results):
        cells = []
        for column, theirs in zip(paper.columns, row.accuracies, strict=True):
            values = results.accuracies(point, column) if point else []
            apart = values and abs(100 * mean(values) - theirs) > APART
            cells.append(f"{percent(values)} / {theirs:.1f}{' *' if apart else ''}")
        share = f"{row.method} {100 * row.amount:g} %" if row.method else "0"
        pruned = point.pruned if point else f"{share}, not run"
        seeds = str(len(results.by_point[point])) if point else "0"
        rows.append([recipe.name, pruned, *cells, seeds])
    note = (
        f"Ours / the paper's. *: more than {APART:g} points apart, either way. "
        f"{accuracy_note(results)}"
    )
    return Table(
        f"{paper.title}, ours / the paper's",
        ["training", "pruned", *paper.columns, "seeds"],
        rows,
        note,
    )


def comparison_csv(paper: PaperTable, results: Results) -> str:
    """The comparison for programs: a line for each cell, in percent."""
    file = StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["training", "pruned", "column", "ours", "paper", "difference", "seeds"])
    for row, recipe, point in pairs(paper, results):
        for column, theirs in zip(paper.columns, row.accuracies, strict=True):
            values = results.accuracies(point, column) if point else []
            if point and values:
                ours = 100 * mean(values)
                seeds = " ".join(map(str, results.by_point[point]))
                cells = (f"{ours:.2f}", theirs, f"{ours - theirs:.2f}", seeds)
                table.writerow([recipe.name, point.pruned, column, *cells])
    return file.getvalue()
