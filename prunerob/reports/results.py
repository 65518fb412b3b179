"""Finished and tested runs, read back and put in order: what every table and figure is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from prunerob.errors import UserError
from prunerob.review import Suite, eps, kind, review, sign_test
from prunerob.robustness import WORST_CASE, Robustness
from prunerob.runs import Run

METHODS = {
    "weight_magnitude": "weight",
    "filter_l1": "filter",
    "random_weights": "random weight",
    "random_filters": "random filter",
}
"""Names of criteria for people, by the function's name."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to train and prune, whatever the seed: a row of the table.

    Args:
        recipe: how the dense network was trained.
        method: how it was pruned; "" for the dense network.
        amount: the share pruned, as asked for, in [0, 1); 0 with a method is the control.
        is_scratch: trained from fresh weights under the masks of the pruned network.
    """

    recipe: str
    method: str = ""
    amount: float = 0.0
    is_scratch: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether it was not pruned and not gone on with."""
        return not self.method

    @property
    def is_control(self) -> bool:
        """Whether it was gone on with as pruned ones are, with empty masks."""
        return self.method == CONTROL

    @property
    def pruned(self) -> str:
        """What was pruned, in words."""
        if self.is_dense:
            return "0"
        if self.is_control:
            return "0, control"
        share = f"{self.method} {100 * self.amount:g} %"
        return f"{share}, from scratch" if self.is_scratch else share


CONTROL = "control"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network and its test.

    Args:
        run: where it is from.
        point: how it was made.
        seed: of its run.
        shares: what is pruned, in [0, 1], by reading (see `prunerob.pruning.masks`).
        robustness: the test.
        suite: its attacks.
        validation: accuracies on validation images, in [0, 1]: "clean" and "robust".
        is_one_step: whether training was against FGSM.
        about: machine and versions of the test.
    """

    run: Run
    point: Point
    seed: int
    shares: Mapping[str, float]
    robustness: Robustness
    suite: Suite
    validation: Mapping[str, float]
    is_one_step: bool
    about: Mapping[str, Any]

    def warnings(self) -> list[str]:
        """What a reviewer would object to."""
        return review(self.robustness, self.suite, one_step_training=self.is_one_step)

    def columns(self) -> dict[str, list[str]]:
        """The table's columns, with the attacks of the test that stand in each.

        Black-box attacks that differ in their seed alone are one column.
        """
        columns: dict[str, list[str]] = {"natural": ["clean"]}
        black_boxes: dict[str, str] = {}
        for name, attack in self.suite.items():
            heading = name
            if kind(attack) == "BlackBox":
                settings = {k: v for k, v in attack["init_args"].items() if k != "seed"}
                others = len(black_boxes)
                heading = black_boxes.setdefault(
                    json.dumps(settings), "black box" + (f" ({others + 1})" if others else "")
                )
            columns.setdefault(heading, []).append(name)
        columns[WORST_CASE] = [WORST_CASE]
        return columns

    def accuracies(self, column: str) -> list[float]:
        """Accuracy under each attack of a column, in [0, 1]; empty without such a column."""
        rows = {row.attack: row.accuracy for row in self.robustness.rows}
        return [rows[name] for name in self.columns().get(column, [])]


@dataclass(frozen=True)
class Difference:
    """Accuracy of one network minus that of another, on the same images.

    Args:
        points: in percentage points, mean over seeds.
        spread: standard deviation over seeds, in percentage points; None of a single one.
        p: of the exact paired test, all seeds together.
    """

    points: float
    spread: float | None
    p: float


class Results:
    """Results by point and seed.

    Args:
        results: of one data set, no two of the same point and seed.

    Raises:
        UserError: data sets or test images are mixed, or a network is there twice.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self.by_point: dict[Point, dict[int, Result]] = {}
        for result in sorted(results, key=_order):
            seeds = self.by_point.setdefault(result.point, {})
            if result.seed in seeds:
                raise UserError(
                    f"{result.run.folder} and {seeds[result.seed].run.folder} are the same: "
                    f"{result.point.recipe}, {result.point.pruned}, seed {result.seed}; report one"
                )
            seeds[result.seed] = result
        index = results[0].robustness.index
        for result in results:
            if not torch.equal(result.robustness.index, index):
                raise UserError(
                    f"{results[0].run.folder} and {result.run.folder} were tested on different "
                    "images; test them alike"
                )
        self.columns = list(dict.fromkeys(name for r in results for name in r.columns()))
        self.columns.append(self.columns.pop(self.columns.index(WORST_CASE)))

    @property
    def all(self) -> list[Result]:
        """Every result, in the order of the points."""
        return [result for seeds in self.by_point.values() for result in seeds.values()]

    @property
    def recipes(self) -> list[str]:
        """The ways of training."""
        return list(dict.fromkeys(point.recipe for point in self.by_point))

    @property
    def methods(self) -> list[str]:
        """The ways of pruning."""
        names = (p.method for p in self.by_point if not (p.is_dense or p.is_control))
        return list(dict.fromkeys(names))

    def accuracies(self, point: Point, column: str) -> list[float]:
        """All that was measured, in [0, 1]: by seed and, of black boxes, by substitute."""
        return [v for result in self.by_point[point].values() for v in result.accuracies(column)]

    def share(self, point: Point, reading: str = "parameters") -> float:
        """Share pruned by one reading, in [0, 1], mean over seeds."""
        return mean(result.shares[reading] for result in self.by_point[point].values())

    def validation(self, point: Point, name: str) -> float | None:
        """Accuracy on validation images, in [0, 1], mean over seeds; None if one lacks it."""
        values = [result.validation.get(name) for result in self.by_point[point].values()]
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(values) else None

    def difference(self, point: Point, base: Point, column: str) -> Difference | None:
        """Accuracy minus that of another point, over the seeds that both have."""
        if base not in self.by_point or point == base:
            return None
        mine, theirs = self.by_point[point], self.by_point[base]
        by_seed, for_mine, for_theirs = [], 0, 0
        for seed in mine.keys() & theirs.keys():
            a, b = mine[seed], theirs[seed]
            pairs = list(
                zip(a.columns().get(column, []), b.columns().get(column, []), strict=False)
            )
            if not pairs:
                continue
            by_seed.append(mean(a.accuracies(column)) - mean(b.accuracies(column)))
            for x, y in pairs:
                right, other = a.robustness.correct(x), b.robustness.correct(y)
                both = a.robustness.attacked(x) & b.robustness.attacked(y)
                for_mine += int((right & ~other & both).sum())
                for_theirs += int((other & ~right & both).sum())
        if not by_seed:
            return None
        points, spread = mean_and_spread(by_seed)
        return Difference(
            100 * points,
            None if spread is None else 100 * spread,
            sign_test(for_mine, for_theirs),
        )

    def column_of(self, attack: str, *, strongest: bool = True) -> str | None:
        """The column of FGSM or PGD with the largest eps; None without one."""
        found = [
            (eps(a) or 0.0, name)
            for result in self.all
            for name, a in result.suite.items()
            if kind(a) == attack
        ]
        return (max if strongest else min)(found)[1] if found else None


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None of a single value."""
    return mean(values), stdev(values) if len(values) > 1 else None


def read_results(places: Sequence[str], *, partial: bool = False) -> Results:
    """Read all runs in and below some folders.

    Args:
        places: folders of runs, of sweeps, or of anything with runs in it.
        partial: leave out runs that are not finished or tested, instead of refusing.

    Raises:
        UserError: there are none, or some are not finished or not tested, or they do not go
            together.
    """
    runs = list(dict.fromkeys(run for place in places for run in _find_runs(Path(place))))
    found: list[Result] = []
    data: dict[str, Path] = {}
    for run in runs:
        if problem := _unfinished(run):
            if partial:
                continue
            raise UserError(f"{run.folder} {problem}; --partial reports on the others")
        config = yaml.safe_load(run.config.read_text())
        data.setdefault(_data_set(config), run.folder)
        if len(data) > 1:
            (a, one), (b, other) = data.items()
            raise UserError(f"{one} is about {a}, {other} about {b}: report one data set at a time")
        found += _read_run(run, config)
    if not found:
        raise UserError(f"no run in {', '.join(places)} is finished and tested")
    return Results(_tell_recipes_apart(found))


def _find_runs(folder: Path) -> list[Run]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    runs = [Run(config.parent) for config in sorted(folder.rglob("config.yaml"))]
    runs = [run for run in runs if (run.folder / "checkpoints").is_dir() or run.summary.is_file()]
    if not runs:
        raise UserError(f"{folder} holds no run of prunerob fit")
    return runs


def _unfinished(run: Run) -> str | None:
    if not run.summary.is_file():
        return f"has not finished: go on with `prunerob fit --ckpt_path {run.folder}`"
    if not (run.folder / "robustness.json").is_file():
        return f"is not tested: `prunerob test --ckpt_path {run.folder}`"
    return None


def _read_run(run: Run, config: Mapping[str, Any]) -> Iterable[Result]:
    """The network of a run; and, if it was tested, the one before pruning."""
    summary = json.loads(run.summary.read_text())
    pruning = _read_json(run.folder / "pruning.json")
    recipe = training(config)
    none = {"filters": 0.0, "weights": 0.0, "parameters": 0.0}
    stems = {"robustness": (_point(recipe, pruning), summary.get("validation", {}))}
    if pruning and (run.folder / "robustness_before_pruning.json").is_file():
        stems["robustness_before_pruning"] = (
            Point(recipe=recipe),
            pruning["validation"].get("before", {}),
        )
    for stem, (point, validation) in stems.items():
        robustness, about = Robustness.read(run.folder / stem)
        if "suite" not in about:
            raise UserError(
                f"{run.folder / stem}.json is of an earlier version: test again with `prunerob "
                f"test --ckpt_path {run.folder}`"
            )
        yield Result(
            run=run,
            point=point,
            seed=config["seed_everything"],
            shares=none if point.is_dense or not pruning else pruning["shares"],
            robustness=robustness,
            suite=about["suite"]["attacks"],
            validation={
                name: value["accuracy"]
                for name, value in validation.items()
                if isinstance(value, dict)
            },
            is_one_step=recipe.startswith("FGSM"),
            about=about,
        )


def training(config: Mapping[str, Any]) -> str:
    """How a configuration trains, in the paper's words."""
    attack = config["model"]["adversarial_training"]["attack"]
    name = kind(attack)
    if name == "NoAttack":
        return "standard"
    predicted = attack.get("init_args", {}).get("label") == "predicted"
    return f"{name}, predicted labels" if predicted else name


def _point(recipe: str, pruning: Mapping[str, Any] | None) -> Point:
    if not pruning:
        return Point(recipe=recipe)
    if pruning["amount"] == 0:
        return Point(recipe=recipe, method=CONTROL)
    function = pruning["criterion"].rsplit(".", 1)[-1]
    method = METHODS.get(function, function)
    if "filter" in function:
        method += f" ({pruning['reading']})"
    return Point(
        recipe=recipe,
        method=method,
        amount=pruning["amount"],
        is_scratch=pruning["epoch"] == 0 and pruning.get("masks_from") is not None,
    )


def _data_set(config: Mapping[str, Any]) -> str:
    data = config["data"]
    name = kind(data)
    return f"{name} {folder}" if (folder := data.get("init_args", {}).get("folder")) else name


def _tell_recipes_apart(results: Sequence[Result]) -> list[Result]:
    """Give recipes that are trained in the same way, but lie in different folders, their names."""
    groups: dict[str, set[Path]] = {}
    for result in results:
        groups.setdefault(result.point.recipe, set()).add(_group(result.run))
    told = []
    for result in results:
        recipe = result.point.recipe
        if len(groups[recipe]) > 1:
            recipe = f"{recipe} ({_group(result.run).name})"
        told.append(replace(result, point=replace(result.point, recipe=recipe)))
    return told


def _group(run: Run) -> Path:
    """The folder of a sweep, or of the versions of one experiment."""
    parent = run.folder.absolute().parent
    return parent.parent if parent.name.removeprefix("seed").isdigit() else parent


def _order(result: Result) -> tuple[object, ...]:
    """Training as in the paper, dense first, then by method and less and less pruned."""
    point = result.point
    trainings = ("standard", "FGSM", "PGD")
    first = next((i for i, t in enumerate(trainings) if point.recipe.startswith(t)), 9)
    kinds = 0 if point.is_dense else 1 if point.is_control else 2
    method = (not point.method.startswith("weight"), point.method)
    return first, point.recipe, kinds, method, -point.amount, point.is_scratch, result.seed


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None
