"""Branches: the ways in which a sweep prunes each dense network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from prunerob.errors import UserError
from prunerob.pruning.criteria import CRITERIA, path_of
from prunerob.pruning.masks import Reading, Residual


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One way to prune a dense network.

    Args:
        criterion: a short name of `CRITERIA`, or the import path of a function.
        amount: share to prune, in [0, 1); 0 is the control, whatever the criterion.
        reading: which share that is, for filters; None for the configuration's.
        residual: what becomes of filters that write to a residual stream; None likewise.
        scratch: hold its masks on fresh weights from the first epoch on.
        schedule: "one_shot", "gradual:3" with its epochs, or "iterative:5:2" with the epochs
            of a round and their number; None for the configuration's.
        objective: of fine-tuning, as "trades", "trades:3" with its first setting, or an import
            path; None for the configuration's. Each has a control of its own.
    """

    criterion: str
    amount: float
    reading: str | None = None
    residual: str | None = None
    scratch: bool = False
    schedule: str | None = None
    objective: str | None = None

    @property
    def name(self) -> str:
        """The name of its runs' folders."""
        objective = self.objective and self.objective.rsplit(".", 1)[-1].replace(":", "-")
        if self.amount == 0:
            return f"control-{objective}" if objective else "control"
        criterion = self.criterion.rsplit(".", 1)[-1]
        schedule = self.schedule and self.schedule.replace(":", "-")
        parts = [criterion, self.reading, self.residual, schedule, objective, str(self.amount)]
        return "-".join(part for part in [*parts, "scratch" if self.scratch else None] if part)

    def settings(self) -> list[str]:
        """The options of `fit` for it."""
        settings = ["--pruning.amount", str(self.amount)]
        settings += ["--pruning.criterion", path_of(self.criterion)]
        settings += ["--pruning.reading", self.reading] if self.reading else []
        settings += ["--pruning.residual", self.residual] if self.residual else []
        if self.schedule:
            kind, *numbers = self.schedule.split(":")
            settings += ["--pruning.schedule", SCHEDULES[kind]]
            for name, value in zip(("epochs", "rounds"), numbers, strict=False):
                settings += [f"--pruning.schedule.{name}", value]
        if self.objective:
            key, (path, name, value) = "--model.fine_tuning.objective", self._objective()
            settings += [key, path, *([f"{key}.{name}", value] if value else [])]
        return settings

    def _objective(self) -> tuple[str, str, str]:
        """Its import path, its first setting's name, and that setting as text if it has one."""
        kind, _, value = (self.objective or "").partition(":")
        return *OBJECTIVES.get(kind, (kind, "")), value


OBJECTIVES = {
    "cross_entropy": ("prunerob.training.objectives.CrossEntropy", ""),
    "trades": ("prunerob.training.objectives.TRADES", "beta"),
    "mart": ("prunerob.training.objectives.MART", "beta"),
    "ard": ("prunerob.training.objectives.ARD", "alpha"),
    "rslad": ("prunerob.training.objectives.RSLAD", "share"),
}
"""Import paths of objectives and their first settings, by their short names."""


SCHEDULES = {
    "one_shot": "prunerob.pruning.OneShot",
    "gradual": "prunerob.pruning.Gradual",
    "iterative": "prunerob.pruning.Iterative",
}
"""Import paths of schedules of pruning, by their short names."""


SCHEDULE = re.compile(r"one_shot|gradual:[1-9]\d*|iterative:[1-9]\d*:[1-9]\d*")
"""How sweeps write schedules."""


def with_schedules(branches: Sequence[Branch], schedules: Sequence[str]) -> list[Branch]:
    """Every branch with every schedule; a single control.

    Args:
        branches: ways to prune.
        schedules: "one_shot", "gradual:3" with its epochs, or "iterative:5:2" with rounds.

    Raises:
        UserError: one is neither, or there twice.
    """
    refuse_repeated("schedule", schedules)
    for schedule in schedules:
        if not SCHEDULE.fullmatch(schedule):
            raise UserError(
                f"schedule: {schedule} is unknown; there are one_shot, gradual with its epochs as "
                "in gradual:3, and iterative with those of a round and the number of rounds as in "
                "iterative:5:2"
            )
    made: list[Branch] = []
    for schedule in schedules:
        for branch in branches:
            add_branch(replace(branch, schedule=schedule), made)
    return made


def with_objectives(branches: Sequence[Branch], objectives: Sequence[str]) -> list[Branch]:
    """Every branch with every objective of fine-tuning, controls too.

    Args:
        branches: ways to prune.
        objectives: short names of `OBJECTIVES`, as "rslad", or "trades:3" with a first setting, and
            import paths.

    Raises:
        UserError: one is unknown, or there twice.
    """
    refuse_repeated("objective", objectives)
    for objective in objectives:
        kind, colon, value = objective.partition(":")
        if kind not in OBJECTIVES and "." not in kind:
            raise UserError(
                f"objective: {kind} is unknown; there are {', '.join(OBJECTIVES)}, as in rslad, or "
                "trades:3 with beta, and import paths"
            )
        if colon and not (
            OBJECTIVES.get(kind, ("", ""))[1] and re.fullmatch(r"\d+(\.\d+)?", value)
        ):
            raise UserError(f"objective: {objective}: {value!r} is no setting of {kind}")
    made: list[Branch] = []
    for objective in objectives:
        for branch in branches:
            add_branch(replace(branch, objective=objective), made)
    return made


def make_branches(criteria: Sequence[str], amounts: Sequence[float]) -> list[Branch]:
    """Every criterion with every amount; a single control where an amount is 0.

    Args:
        criteria: names of criteria; `filter:parameters` is one with its reading, and
            `filter:weights:silence` also says what becomes of residual streams.
        amounts: shares to prune, in [0, 1).

    Raises:
        UserError: an amount lies outside, something is there twice, or a name is unknown.
    """
    refuse_repeated("amount", amounts)
    refuse_repeated("criterion", criteria)
    branches: list[Branch] = []
    for text in criteria:
        criterion, _, rest = text.partition(":")
        reading, _, residual = rest.partition(":")
        if criterion not in CRITERIA and "." not in criterion:
            known = ", ".join(CRITERIA)
            raise UserError(
                f"criterion: {criterion} is unknown; there are {known}, and import paths"
            )
        if text.endswith(":") or (reading and reading not in get_args(Reading)):
            raise UserError(
                f"criterion: {text}: the readings are {', '.join(get_args(Reading))}; what becomes "
                "of residual streams comes third, as in filter:weights:silence"
            )
        if residual and residual not in get_args(Residual):
            raise UserError(
                f"criterion: {text}: residual streams have one of {', '.join(get_args(Residual))}"
            )
        for amount in amounts:
            if not 0 <= amount < 1:
                raise UserError(f"amount: {amount} lies outside [0, 1)")
            branch = Branch(
                criterion=criterion,
                amount=amount,
                reading=reading or None,
                residual=residual or None,
            )
            add_branch(branch, branches)
    return branches


def add_branch(branch: Branch, branches: list[Branch]) -> None:
    """Add a branch that is not there yet: every criterion has the same control.

    Raises:
        UserError: another has its name, and would have its folder.
    """
    for other in branches:
        if other.name == branch.name and not branch.amount == other.amount == 0:
            raise UserError(f"criterion: two would have the folder {branch.name}; rename one")
    if branch.name not in [other.name for other in branches]:
        branches.append(branch)


def refuse_repeated(name: str, values: Sequence[object]) -> None:
    """Refuse a list that is empty or says something twice.

    Raises:
        UserError: it does.
    """
    if not values:
        raise UserError(f"{name}: the list is empty")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise UserError(f"{name}: {value} is there twice")
