"""`prunerob reproduce`: run what a table of the paper needs, and hold it against the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from prunerob.commands.arguments import Arguments, integers
from prunerob.commands.report import add_tolerance
from prunerob.commands.sweep import add_options_of_running
from prunerob.errors import UserError
from prunerob.reports.paper import TABLES, PaperTable

DESCRIPTION = """\
Run the sweep behind a table or figure of the paper, and print its numbers beside ours.

    prunerob reproduce table1
    prunerob reproduce table2 --seed 0,1,2 --jobs 2
    prunerob reproduce figure1
    prunerob reproduce table3 --recipe '*fast' --data prunerob.data.ImageFolder --data.folder FOLDER

Interrupted, it goes on when the same command is given again; tables and figures share their runs.
Further options are settings of the configurations, as in `prunerob fit`.
"""


def run(args: Sequence[str]) -> None:
    """Reproduce a table or a figure.

    Args:
        args: the command line without the program's name.

    Raises:
        UserError: the request is mistaken.
        SystemExit: with status 1 if a run failed, after the report on the others.
    """
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
    options, settings = parser.parse_known_args(rest)
    if what is None or what not in TABLES:
        problem = "nothing to reproduce" if what is None else f"{what} is not known"
        raise UserError(f"{problem}; there are {', '.join(TABLES)}")
    if options.report_only and settings:
        raise UserError(f"{settings[0]} is a setting of runs, and --report-only runs nothing")
    for word in settings:
        if word.removeprefix("--").startswith(("pruning.reading", "pruning.residual")):
            raise UserError(f"{word}: the table says what its amounts mean; use `prunerob sweep`")
    paper, folder = _only(TABLES[what], options.recipe), Path(options.folder)
    for recipe in paper.recipes:
        if not (config := Path(options.configs) / recipe.config).is_file():
            raise UserError(
                f"--configs: there is no {config}; name the configs folder of a checkout of "
                "prunerob"
            )

    failed = False
    if not options.report_only:
        from prunerob.commands.reading import resolve
        from prunerob.sweeps.make import make_sweep, run_sweeps

        sweeps = []
        for recipe in paper.recipes:
            sweep = {
                "config": Path(options.configs) / recipe.config,
                "criterion": ["weight"],
                "amount": paper.amounts_of(recipe),
                "seed": options.seed,
                "folder": folder / recipe.folder,
                "scratch": options.scratch,
                "settings": [*recipe.settings, *settings],
            }
            sweeps.append(make_sweep(sweep, resolve=resolve))
        failed = bool(run_sweeps(sweeps, vars(options)))
    report(what, paper, folder, configs=Path(options.configs), tolerance=options.tolerance)
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
        configs: folder of prunerob's configurations; what was run otherwise is noted.
        tolerance: of the operating points, in percentage points.

    Raises:
        UserError: there are no runs, or they do not go together.
    """
    from rich.console import Console

    from prunerob.commands.reading import resolve
    from prunerob.reports.comparison import comparison, comparison_csv, departures, only_of
    from prunerob.reports.reading import read_results
    from prunerob.reports.writing import show, write
    from prunerob.runs.folder import write_whole

    names = {str(folder / recipe.folder): recipe.name for recipe in paper.recipes}
    places = [place for place in names if Path(place).is_dir()]
    if not places:
        raise UserError(f"--folder: {folder} holds no runs of {what}")
    results = only_of(paper, read_results(places, partial=True, recipes=names))
    target = folder / what
    compared = comparison(paper, results)
    if apart := departures(paper, results, configs, resolve=resolve):
        note = f"Not as the recipe has it: {'; '.join(apart)}. {compared.note}"
        compared = replace(compared, note=note)
    also = [compared] if compared.rows else []
    files = write(results, target, tolerance=tolerance, title=paper.title, also=also)
    console = Console()
    if also:
        show(compared, console)
        write_whole(target / "comparison.md", compared.to_markdown())
        write_whole(target / "comparison.csv", comparison_csv(paper, results))
        files += [target / "comparison.md", target / "comparison.csv"]
    console.print(f"Written: {len(files)} files in {target}", highlight=False, soft_wrap=True)
