"""Finished and tested runs, read back from their folders."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from prunerob.attacks.reading import read_attack
from prunerob.attacks.suite import Suite
from prunerob.errors import UserError
from prunerob.pruning.counts import Layer
from prunerob.pruning.criteria import CRITERIA
from prunerob.pruning.schedules import Gradual, Iterative, OneShot
from prunerob.pruning.scores import name_of
from prunerob.reports.networks import CONTROL, Point, Result
from prunerob.reports.results import Results
from prunerob.robustness.table import Robustness
from prunerob.runs.folder import Run
from prunerob.runs.plain import read_yaml


def _function(criterion: str) -> str:
    """The name of a criterion's function or class, with its settings, from its import path."""
    path, bracket, settings = criterion.partition("(")
    return path.rsplit(".", 1)[-1] + bracket + settings


METHODS = {
    _function(name_of(c)).partition("(")[0]: name.replace("_", " ") for name, c in CRITERIA.items()
}
"""What criteria are called, by the name of their function or class."""

SETTINGS = {
    kind.__name__: {f.name: f.default for f in fields(kind)}
    for kind in (*map(type, CRITERIA.values()), OneShot, Gradual, Iterative)
    if is_dataclass(kind)
}
"""Settings, with their defaults, of criteria and schedules that have some."""


def _in_words(record: str) -> str:
    """A criterion or a schedule as it is recorded, with those settings that are no defaults."""
    text = _function(record)
    name = text.partition("(")[0]
    called = METHODS.get(name, name)
    if name not in SETTINGS:
        return called + text.removeprefix(name)
    try:
        call = ast.parse(text, mode="eval").body
        found = {k.arg: ast.literal_eval(k.value) for k in getattr(call, "keywords", ())}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    known = SETTINGS[name]
    told = [f"{key} {value}" for key, value in found.items() if known.get(str(key)) != value]
    called = called.lower() if name not in METHODS else called
    return f"{called} ({', '.join(told)})" if told else called


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
    results: list[Result] = []
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
                config: Any = read_yaml(run.config)
                data.setdefault(_data_set(config), run.folder)
                results += _read_run(run, config, (recipes or {}).get(place))
            except UserError:
                raise
            except OSError:
                raise
            except Exception as error:  # a damaged file can fail in any way
                reason = " ".join(repr(error).split())[:200]
                raise UserError(f"{run.folder}: its files are damaged ({reason})") from None
            if len(data) > 1:
                (a, one), (b, other) = data.items()
                raise UserError(
                    f"{one} is about {a}, {other} about {b}: report one data set at a time"
                )
    if not results:
        raise UserError(f"no run in {', '.join(places)} is finished and tested")
    return Results(results if recipes else _tell_recipes_apart(results), left_out)


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
        record = read_yaml(config)
    except (OSError, UserError):
        return False
    return isinstance(record, dict) and {"model", "pruning", "trainer"} <= record.keys()


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
    if pruning:
        _check_counts(pruning)
    model = config["model"]
    trained = training(config)
    _ = config["pruning"]["epoch"], config["trainer"]["max_epochs"]  # whose lack is damage
    objective, is_given = _objective(model["fine_tuning"]), model["weights"] is not None
    point = _point(recipe or trained, pruning, objective, is_given=is_given)
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
            suite=Suite.read(about["suite"]),
            training=read_attack(model["adversarial_training"]["attack"]),
            validation_attack=read_attack(model["validation_attack"]),
            validation={
                name: (round(value["accuracy"] * value["images"]), value["images"])
                for name, value in validated.items()
                if isinstance(value, dict)
            },
            unit=None if of_it.is_dense or not pruning else pruning["unit"],
            about=about,
        )


def _check_counts(pruning: Mapping[str, Any]) -> None:
    """See that the counts of a record of pruning are numbers.

    Raises:
        ValueError: one is not.
    """
    for name in NOTHING:
        if not 0 <= pruning["shares"][name] <= 1:
            raise ValueError(f"the share of {name} lies outside [0, 1]")
    for layer in pruning["layers"]:
        for name, value in layer.items():
            if name != "name" and (type(value) is not int or value < name.endswith("before")):
                raise ValueError(f"{name} of a layer is {value!r:.40}, no count")


NOTHING = {"filters": 0.0, "weights": 0.0, "parameters": 0.0}


def training(config: Mapping[str, Any]) -> str:
    """How a configuration trains, in the paper's words."""
    attack = read_attack(config["model"]["adversarial_training"]["attack"])
    if not attack.perturbs:
        return "standard"
    predicted = getattr(attack, "label", "true") == "predicted"
    name = f"{attack.name}, predicted labels" if predicted else attack.name
    objective = _objective(config["model"]["adversarial_training"])
    return name if objective in ("", "CrossEntropy") else f"{name}, {objective}"


AS_BEFORE = ("attacked", "probabilities")
"""A setting of `TRADES` that older runs do not have, at what it was for them."""


def _objective(settings: object) -> str:
    """What the objective in settings is called, with its own settings; "" where there is none."""
    record = settings.get("objective") if isinstance(settings, Mapping) else None
    if not isinstance(record, Mapping):
        return ""
    parts = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in (record.get("init_args") or {}).items()
        if (key, value) != AS_BEFORE
    ]
    name = _function(str(record["class_path"]))
    return f"{name} ({', '.join(parts)})" if parts else name


def _point(
    recipe: str, pruning: Mapping[str, Any] | None, objective: str, *, is_given: bool
) -> Point:
    if not pruning:
        return Point(recipe=recipe)
    masks_from = pruning["masks_from"]
    is_scratch = pruning["epoch"] == 0 and masks_from is not None
    if pruning["amount"] == 0 and masks_from is None:
        return Point(recipe=recipe, method=CONTROL, objective=objective)
    method = _in_words(pruning["criterion"])
    words = {"weight": "weights", "filter": "filters"}.get(method, method) + ", {share} %"
    more = ""
    if pruning["unit"] == "filters":
        reading, residual = pruning["reading"], pruning["residual"]
        method += f" ({reading}{'' if residual == 'keep' else f', {residual}'})"
        words += "" if reading == "filters" else f" of {reading}"
        words += "" if residual == "keep" else f", streams {residual}d"
    if (budget := pruning.get("budget", "global")) != "global":
        more += ", amounts by layer" if isinstance(budget, dict) else f", {budget}"
    if not (schedule := _in_words(pruning.get("schedule", "OneShot()"))).startswith("oneshot"):
        more += f", {schedule}"
    if not is_scratch:
        more += " before training" if pruning["epoch"] == 0 and not is_given else ""
        more += " by masks of another run" if masks_from is not None else ""
        more += f", {objective}" if objective else ""
    return Point(
        recipe=recipe,
        method=method + more,
        objective="" if is_scratch else objective,
        amount=pruning["amount"],
        is_scratch=is_scratch,
        words=words + more.replace("{", "{{").replace("}", "}}"),
    )


def _data_set(config: Mapping[str, Any]) -> str:
    data = config["data"]
    name = str(data["class_path"]).rpartition(".")[2]
    return f"{name} {folder}" if (folder := data.get("init_args", {}).get("folder")) else name


def _tell_recipes_apart(results: Sequence[Result]) -> list[Result]:
    """Give recipes that are trained in the same way, but lie in different folders, their names."""
    groups: dict[str, list[Path]] = {}
    for result in results:
        folders = groups.setdefault(result.point.recipe, [])
        if _group(result.run) not in folders:
            folders.append(_group(result.run))
    named = []
    for result in results:
        recipe, folder = result.point.recipe, _group(result.run)
        folders = groups[recipe]
        if len(folders) > 1:
            recipe += f" ({_shortest(folder, folders)})"
        named.append(replace(result, point=replace(result.point, recipe=recipe)))
    return named


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


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None
