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
from torch import Tensor

from prunerob.attacks import FGSM, PGD, Attack, BlackBox
from prunerob.attacks.suite import are_alike, attack_class
from prunerob.errors import UserError
from prunerob.pruning.masks import Layer
from prunerob.robustness.diagnostics import (
    SIGNIFICANT,
    Suite,
    eps,
    kind,
    overfits_to_one_step,
    review,
    sign_test,
    t_test,
)
from prunerob.robustness.table import WORST_CASE, Robustness
from prunerob.runs.folder import NOT_TRAINING, Run, differences

METHODS = {
    "weight_magnitude": "weight",
    "filter_l1": "filter",
    "random_weights": "random weight",
    "random_filters": "random filter",
}
"""Names of criteria for people, by the function's name."""

CONTROL = "control"
NATURAL = "natural"
BLACK_BOX = "black box"


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
    def dense(self) -> Point:
        """The network that it was pruned from."""
        return Point(recipe=self.recipe)

    @property
    def control(self) -> Point:
        """The control of the same recipe."""
        return Point(recipe=self.recipe, method=CONTROL)

    @property
    def pruned(self) -> str:
        """What was pruned, in words."""
        if self.is_dense:
            return "0"
        if self.is_control:
            return "0, control"
        share = f"{self.method} {100 * self.amount:g} %"
        return f"{share}, from scratch" if self.is_scratch else share


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network and its test.

    Args:
        run: where it is from.
        config: the run's configuration, in plain values.
        point: how it was made.
        seed: of its run.
        shares: what is pruned, in [0, 1], by reading (see `prunerob.pruning.masks`).
        layers: those of the network, before and after pruning; none where nothing was pruned.
        robustness: the test.
        suite: its attacks.
        worst_case_suite: its attacks that count in the worst case alone.
        validation: images classified right, and images, on validation images: "clean", "robust"
            and, of the probe for catastrophic overfitting, "one_step" and "many_steps".
        unit: what was pruned, "filters" or "weights"; None where nothing was.
        about: machine and versions of the test.
    """

    run: Run
    config: Mapping[str, Any]
    point: Point
    seed: int
    shares: Mapping[str, float]
    layers: Sequence[Layer]
    robustness: Robustness
    suite: Suite
    worst_case_suite: Suite
    validation: Mapping[str, tuple[int, int]]
    unit: str | None
    about: Mapping[str, Any]

    def warnings(self) -> list[str]:
        """What a reviewer would object to, and what was not looked for."""
        found = review(self.robustness, self.suite, one_step_eps=self.one_step_eps)
        one_step = self.validation.get("one_step")
        many = "many_steps" if "many_steps" in self.validation else "robust"
        robust = self.validation.get(many) if self._is_probed_by(many) else None
        told = any(warning.startswith("catastrophic") for warning in found)
        if one_step and robust and not told and overfits_to_one_step(robust[0], one_step[0]):
            found.append(
                f"catastrophic overfitting: of {robust[1]:,} validation images {one_step[0]:,} are "
                f"right under the training's one step and {robust[0]:,} under PGD"
            )
        if self.robustness.scrutiny is None:
            found.append("whether PGD has converged and gradients are 0 was not looked for")
        found += [
            f"{layer.name} nearly vanished: {layer.channels_after} of {layer.channels_before} "
            f"channels and {layer.parameters_after:,} of {layer.parameters_before:,} parameters "
            "are left"
            for layer in self.layers
            if layer.has_nearly_vanished
        ]
        return found

    @property
    def one_step_eps(self) -> float | None:
        """The radius of the training's single step, in pixel units; None of other training."""
        attack = self.config["model"]["adversarial_training"]["attack"]
        steps = attack.get("init_args", {}).get("steps")
        is_fgsm, is_pgd = (issubclass(attack_class(attack), kind) for kind in (FGSM, PGD))
        return eps(attack) if is_fgsm or (is_pgd and steps == 1) else None

    def _is_probed_by(self, name: str) -> bool:
        """Whether validation accuracies are under the radius of the training's single step."""
        attack = self.config["model"]["validation_attack"]
        return name == "many_steps" or eps(attack) == self.one_step_eps

    @property
    def dense_epochs(self) -> int:
        """Epochs of training before anything was pruned: 0 if the untrained network was."""
        epoch: int | None = self.config["pruning"]["epoch"]
        epochs: int = self.config["trainer"]["max_epochs"] if epoch is None else epoch
        return epochs

    def columns(self) -> dict[str, list[str]]:
        """The table's columns, with the attacks of the test that stand in each.

        Black-box attacks that differ in their seed alone are one column.
        """
        columns: dict[str, list[str]] = {NATURAL: ["clean"]}
        black_boxes: dict[str, str] = {}
        for name, attack in self.suite.items():
            heading = name
            if issubclass(attack_class(attack), BlackBox):
                others = len(black_boxes)
                heading = black_boxes.setdefault(
                    json.dumps(_seedless(attack), sort_keys=True),
                    BLACK_BOX + (f" ({others + 1})" if others else ""),
                )
            columns.setdefault(heading, []).append(name)
        columns[WORST_CASE] = [WORST_CASE]
        return columns

    def is_tested_as(self, other: Result, column: str) -> bool:
        """Whether the same attacks stand behind a column of both."""
        if column == NATURAL:
            return True
        if column == WORST_CASE:
            return are_alike(self.suite, other.suite) and are_alike(
                self.worst_case_suite, other.worst_case_suite
            )
        mine, theirs = (
            {str(i): _seedless(r.suite[name]) for i, name in enumerate(r.columns()[column])}
            for r in (self, other)
        )
        return are_alike(mine, theirs)

    def accuracies(self, column: str) -> list[float]:
        """Accuracy under each attack of a column, in [0, 1]; empty without such a column."""
        rows = {row.attack: row.accuracy for row in self.robustness.rows}
        return [rows[name] for name in self.columns().get(column, [])]


def _seedless(attack: Mapping[str, Any]) -> dict[str, Any]:
    """An attack's class and settings but for the seed, to compare."""
    settings = {k: v for k, v in attack.get("init_args", {}).items() if k != "seed"}
    return {"class_path": attack["class_path"], "init_args": settings}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of one network minus that of another, on the same images.

    Args:
        points: in percentage points, mean over seeds; of one seed, over black-box substitutes.
        spread: standard deviation of the same, in percentage points; None of a single value.
        values: number of values that the mean is of.
        p_images: of the exact sign test on the images, each counted once with all its values: of
            a single one it is McNemar's. It is about these very networks.
        p_values: of the t test on the values, whether others would differ too; None of a single.
    """

    points: float
    spread: float | None
    values: int
    p_images: float
    p_values: float | None

    @property
    def p(self) -> float:
        """The larger of the two."""
        return max(self.p_images, self.p_values or 0.0)

    @property
    def is_noise(self) -> bool:
        """Whether chance would do: of the images, or of the seeds or substitutes."""
        return self.p >= SIGNIFICANT


class Results:
    """Results by point and seed.

    Args:
        results: of one data set, no two of the same point and seed; one or more.
        left_out: runs that are not finished or tested, in words.

    Raises:
        UserError: data sets, test images or settings are mixed, or a network is there twice.
    """

    def __init__(self, results: Sequence[Result], left_out: Sequence[str] = ()) -> None:
        self.left_out = list(left_out)
        self.by_point: dict[Point, dict[int, Result]] = {}
        for result in sorted(results, key=_order):
            seeds = self.by_point.setdefault(result.point, {})
            other = seeds.setdefault(result.seed, result)
            if other is not result and not _is_same_network(other, result):
                raise UserError(
                    f"{result.run.folder} and {other.run.folder} are the same: "
                    f"{result.point.recipe}, {result.point.pruned}, seed {result.seed}; report one"
                )
        self.columns = list(dict.fromkeys(name for r in self.all for name in r.columns()))
        self.columns.append(self.columns.pop(self.columns.index(WORST_CASE)))
        self._refuse_mixed_tests()
        self._refuse_mixed_settings()

    def _refuse_mixed_tests(self) -> None:
        first = self.all[0]
        behind: dict[str, Result] = {}
        for result in self.all:
            if not torch.equal(result.robustness.index, first.robustness.index):
                raise UserError(
                    f"{first.run.folder} and {result.run.folder} were tested on different "
                    "images; test them alike"
                )
            for column in result.columns():
                other = behind.setdefault(column, result)
                if column != WORST_CASE and not result.is_tested_as(other, column):
                    raise UserError(
                        f"{column} of {result.run.folder} and of {other.run.folder} are different "
                        "attacks; test them alike"
                    )

    def _refuse_mixed_settings(self) -> None:
        """Seeds of one point, and all of one recipe, must differ in nothing else."""
        for recipe in self.recipes:
            of_it = [result for result in self.all if result.point.recipe == recipe]
            trained = [r for r in of_it if r.dense_epochs]
            for result in trained[1:]:
                if result.dense_epochs != trained[0].dense_epochs:
                    raise UserError(
                        f"the dense network of {result.run.folder} was trained for "
                        f"{result.dense_epochs} epochs, that of {trained[0].run.folder} for "
                        f"{trained[0].dense_epochs}: report them apart"
                    )
            for result in of_it[1:]:
                first = next(iter(self.by_point[result.point].values()))
                _refuse_differences(of_it[0], result, FREE)
                if result.point.is_control:
                    _refuse_differences(first, result, FREE_OF_A_CONTROL)
                elif not result.point.is_dense:
                    _refuse_differences(first, result, FREE_OF_A_POINT)
                if not first.is_tested_as(result, WORST_CASE):
                    raise UserError(
                        f"{first.run.folder} and {result.run.folder} stand in one row and were "
                        "tested with different attacks; test them alike"
                    )

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

    def pruned(self, recipe: str, method: str) -> list[Point]:
        """The networks of one recipe pruned in one way, without those from scratch."""
        return [
            point
            for point in self.by_point
            if (point.recipe, point.method, point.is_scratch) == (recipe, method, False)
        ]

    def accuracies(self, point: Point, column: str) -> list[float]:
        """All that was measured, in [0, 1]: by seed and, of black boxes, by substitute."""
        seeds = self.by_point.get(point, {})
        return [value for result in seeds.values() for value in result.accuracies(column)]

    def share(self, point: Point, reading: str = "parameters") -> float:
        """Share pruned by one reading, in [0, 1], mean over seeds."""
        return mean(result.shares[reading] for result in self.by_point[point].values())

    def validation(self, point: Point, base: Point, name: str) -> tuple[float, float] | None:
        """Accuracies of two networks on validation images.

        Args:
            point: the one.
            base: the other.
            name: "clean" or "robust".

        Returns:
            both in [0, 1], means over the seeds that both have; None where there is none, or one
            of them was not measured on as many images.
        """
        mine, theirs = self.by_point.get(point, {}), self.by_point.get(base, {})
        pairs = []
        for seed in mine.keys() & theirs.keys():
            a, b = (r.validation.get(name) for r in (mine[seed], theirs[seed]))
            if a is None or b is None or a[1] != b[1]:
                return None
            pairs.append((a[0] / a[1], b[0] / b[1]))
        if not pairs:
            return None
        one, other = zip(*pairs, strict=True)
        return mean(one), mean(other)

    def difference(self, point: Point, base: Point, column: str) -> Difference | None:
        """Accuracy minus that of another point, over the seeds that both have."""
        mine, theirs = self.by_point.get(point, {}), self.by_point.get(base, {})
        if not self.is_comparable(point, base):
            return None
        by_seed: list[list[float]] = []
        gain: Tensor | int = 0  # of each image
        for seed in sorted(mine.keys() & theirs.keys()) if point != base else ():
            a, b = mine[seed], theirs[seed]
            if not (column in a.columns() and column in b.columns()):
                continue
            if not a.is_tested_as(b, column):
                continue
            pairs = zip(a.accuracies(column), b.accuracies(column), strict=True)
            by_seed.append([x - y for x, y in pairs])
            names = zip(a.columns()[column], b.columns()[column], strict=True)
            for name, other in names:
                both = a.robustness.attacked(name) & b.robustness.attacked(other)
                right, theirs_right = a.robustness.correct(name), b.robustness.correct(other)
                gain = gain + (right.int() - theirs_right.int()) * both
        if isinstance(gain, int):
            return None
        # Substitutes of one network are no seeds: they are averaged first where there are seeds.
        values = by_seed[0] if len(by_seed) == 1 else [mean(found) for found in by_seed]
        points, spread = mean_and_spread(values)
        return Difference(
            points=100 * points,
            spread=None if spread is None else 100 * spread,
            values=len(values),
            p_images=sign_test(int((gain > 0).sum()), int((gain < 0).sum())),
            p_values=t_test(values, resolution=1 / len(gain)),
        )

    def is_comparable(self, point: Point, base: Point) -> bool:
        """Whether two networks of a recipe differ by what was pruned alone.

        A network that was fine-tuned for longer than the control, or otherwise, is not to be
        compared with it.
        """
        if point.is_dense or not base.is_control or not {point, base} <= self.by_point.keys():
            return True
        one, other = (next(iter(self.by_point[p].values())).config for p in (point, base))
        keys = ["trainer.max_epochs"] + ["model.fine_tuning"] * (not point.is_scratch)
        return not any(name.startswith(tuple(keys)) for name, _, _ in differences(one, other))

    def column_of(self, attack: type[Attack]) -> str | None:
        """The column of FGSM or PGD that most networks have, of those the one of largest eps.

        Of several it is the first of the suite: PGD as the paper has it, before stronger ones.
        """
        counts: dict[tuple[float, str], int] = {}
        for result in self.all:
            for name, a in result.suite.items():
                if issubclass(attack_class(a), attack):
                    key = (eps(a) or 0.0, name)
                    counts[key] = counts.get(key, 0) + 1
        return max(counts, key=lambda key: (counts[key], key[0]))[1] if counts else None


FREE_OF_A_POINT = (*NOT_TRAINING, "model.validation_attack", "pruning.masks_from", "pruning.narrow")
"""Beginnings of keys in which the seeds of one row may differ."""

FREE_OF_A_CONTROL = (
    *FREE_OF_A_POINT,
    "pruning.criterion",
    "pruning.reading",
    "pruning.residual",
)
"""Empty masks are the same by any criterion."""

FREE = (*FREE_OF_A_POINT, "model.fine_tuning", "pruning", "trainer.max_epochs")
"""Beginnings of keys in which the networks of one recipe may differ."""


def _refuse_differences(a: Result, b: Result, free: tuple[str, ...]) -> None:
    """Refuse two runs whose configurations differ in what matters.

    Raises:
        UserError: they do.
    """
    for name, mine, theirs in differences(a.config, b.config):
        if not name.startswith(free):
            raise UserError(
                f"{a.run.folder} has {name} {mine}, but {b.run.folder} {theirs}: they cannot stand "
                "in one row or beside each other; report them apart"
            )


def _is_same_network(a: Result, b: Result) -> bool:
    """Whether two results are of one dense network, tested in two runs that began with it."""
    mine, theirs = a.robustness.predictions, b.robustness.predictions
    shared = mine.keys() & theirs.keys()
    return a.point.is_dense and all(torch.equal(mine[name], theirs[name]) for name in shared)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None of a single value."""
    return mean(values), stdev(values) if len(values) > 1 else None


def read_results(
    places: Sequence[str], *, partial: bool = False, recipes: Mapping[str, str] | None = None
) -> Results:
    """Read all runs in and below some folders.

    Args:
        places: folders of runs, of sweeps, or of anything with runs in it.
        partial: leave out runs that are not finished or tested, instead of refusing.
        recipes: what to call the recipe of all runs of a place; by default it is called by the
            attack of its training.

    Raises:
        UserError: there are none, or some are not finished or not tested, or they do not go
            together.
    """
    found: list[Result] = []
    left_out: list[str] = []
    data: dict[str, Path] = {}
    seen: set[Path] = set()
    for place in places:
        for run in _find_runs(Path(place), partial=partial):
            if run.folder.absolute() in seen:
                continue
            seen.add(run.folder.absolute())
            if problem := _unfinished(run):
                if not partial:
                    raise UserError(f"{run.folder} {problem}; --partial reports on the other runs")
                left_out.append(f"{run.folder} {problem}")
                continue
            try:
                config = yaml.safe_load(run.config.read_text())
                data.setdefault(_data_set(config), run.folder)
                found += _read_run(run, config, (recipes or {}).get(place))
            except UserError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
                raise UserError(f"{run.folder}: its files are damaged ({error!r})") from None
            if len(data) > 1:
                (a, one), (b, other) = data.items()
                raise UserError(
                    f"{one} is about {a}, {other} about {b}: report one data set at a time"
                )
    if not found:
        raise UserError(f"no run in {', '.join(places)} is finished and tested")
    return Results(found if recipes else _tell_recipes_apart(found), left_out)


def _find_runs(folder: Path, *, partial: bool) -> list[Run]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    configs = sorted(folder.rglob("config.yaml"))
    runs = [Run(config.parent) for config in configs if _is_of_a_run(config)]
    if not runs and not partial:
        raise UserError(f"{folder} holds no run of prunerob fit")
    return runs


def _is_of_a_run(config: Path) -> bool:
    """Whether a config.yaml is a run's record: other tools write files of that name, too."""
    run = Run(config.parent)
    if run.summary.is_file() or run.checkpoint().parent.is_dir():
        return True
    try:
        found = yaml.safe_load(config.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and {"model", "pruning", "trainer"} <= found.keys()


def _unfinished(run: Run) -> str | None:
    if not run.summary.is_file():
        return f"has not finished: go on with `prunerob fit --ckpt_path {run.folder}`"
    if not (run.folder / "robustness.json").is_file():
        return f"is not tested: `prunerob test --ckpt_path {run.folder}`"
    if not (run.folder / "robustness_images.csv").is_file():
        return f"lacks robustness_images.csv: `prunerob test --ckpt_path {run.folder}` again"
    return None


def _read_run(run: Run, config: Mapping[str, Any], recipe: str | None) -> Iterable[Result]:
    """The network of a run; and, if it was tested, the one before pruning."""
    pruning = _read_json(run.folder / "pruning.json")
    trained = training(config)
    point = _point(recipe or trained, pruning)
    validation = json.loads(run.summary.read_text()).get("validation", {})
    stems = {"robustness": (point, validation)}
    if pruning and (run.folder / "robustness_before_pruning.json").is_file():
        before = pruning["validation"].get("before", {})
        stems["robustness_before_pruning"] = (point.dense, before)
    for stem, (of_it, validated) in stems.items():
        robustness, about = Robustness.read(run.folder / stem)
        if len(robustness.index) < about.get("test_images", 0):
            raise UserError(
                f"{run.folder} was tested on a part of its test images; `prunerob test --ckpt_path "
                f"{run.folder}` again"
            )
        if "suite" not in about:
            checkpoint = "last" if stem == "robustness" else "before_pruning"
            raise UserError(
                f"{run.folder / stem}.json is of an earlier version: test again with `prunerob "
                f"test --ckpt_path {run.checkpoint(checkpoint)}`"
            )
        yield Result(
            run=run,
            config=config,
            point=of_it,
            seed=config["seed_everything"],
            shares=NOTHING if of_it.is_dense or not pruning else pruning["shares"],
            layers=[]
            if of_it.is_dense or not pruning
            else [Layer(**layer) for layer in pruning["layers"]],
            robustness=robustness,
            suite=about["suite"]["attacks"],
            worst_case_suite=about["suite"]["worst_case_attacks"],
            validation={
                name: (round(value["accuracy"] * value["images"]), value["images"])
                for name, value in validated.items()
                if isinstance(value, dict)
            },
            unit=None if of_it.is_dense or not pruning else _unit(pruning),
            about=about,
        )


NOTHING = {"filters": 0.0, "weights": 0.0, "parameters": 0.0}


def training(config: Mapping[str, Any]) -> str:
    """How a configuration trains, in the paper's words."""
    attack = config["model"]["adversarial_training"]["attack"]
    name = kind(attack)
    if name == "NoAttack":
        return "standard"
    predicted = attack.get("init_args", {}).get("label") == "predicted"
    return f"{name}, predicted labels" if predicted else name


def _unit(pruning: Mapping[str, Any]) -> str:
    """What was pruned; of an earlier version, as its criterion is called."""
    function = pruning["criterion"].partition("(")[0].rsplit(".", 1)[-1]
    return pruning.get("unit") or ("filters" if "filter" in function else "weights")


def _point(recipe: str, pruning: Mapping[str, Any] | None) -> Point:
    if not pruning:
        return Point(recipe=recipe)
    masks_from = pruning.get("masks_from")
    is_scratch = pruning["epoch"] == 0 and masks_from is not None
    if pruning["amount"] == 0 and masks_from is None:
        return Point(recipe=recipe, method=CONTROL)
    path, bracket, settings = pruning["criterion"].partition("(")
    function = path.rsplit(".", 1)[-1] + bracket + settings
    method = METHODS.get(function, function)
    if _unit(pruning) == "filters":
        residual = pruning.get("residual", "keep")
        method += f" ({pruning['reading']}{'' if residual == 'keep' else f', {residual}'})"
    if not is_scratch:
        method += " before training" if pruning["epoch"] == 0 else ""
        method += " by masks of another run" if masks_from is not None else ""
    return Point(recipe=recipe, method=method, amount=pruning["amount"], is_scratch=is_scratch)


def _data_set(config: Mapping[str, Any]) -> str:
    data = config["data"]
    name = kind(data)
    return f"{name} {folder}" if (folder := data.get("init_args", {}).get("folder")) else name


def _tell_recipes_apart(results: Sequence[Result]) -> list[Result]:
    """Give recipes that are trained in the same way, but lie in different folders, their names."""
    groups: dict[str, list[Path]] = {}
    for result in results:
        folders = groups.setdefault(result.point.recipe, [])
        if _group(result.run) not in folders:
            folders.append(_group(result.run))
    told = []
    for result in results:
        recipe, folder = result.point.recipe, _group(result.run)
        folders = groups[recipe]
        if len(folders) > 1:
            recipe += f" ({_shortest(folder, folders)})"
        told.append(replace(result, point=replace(result.point, recipe=recipe)))
    return told


def _shortest(folder: Path, folders: Sequence[Path]) -> str:
    """As much of a folder's path, from its end, as tells it from the others."""
    parts = folder.parts
    for n in range(1, len(parts)):
        if sum(other.parts[-n:] == parts[-n:] for other in folders) == 1:
            return "/".join(parts[-n:])
    return str(folder)


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
