"""Sweeps: many prunings of few dense networks, run once each, interrupted and gone on with.

A sweep's folder holds a folder for each seed, and in it a run's folder (see `prunerob.runs.folder`)
for each network:

- dense, trained up to the prune epoch and not pruned;
- control, gone on with from dense as the pruned ones are, but with empty masks;
- weight-0.94, filter-0.75, filter-parameters-0.75, filter-weights-silence-0.75: pruned from dense
  and fine-tuned;
- weight-0.94-scratch: with the masks of weight-0.94, from fresh weights.

There is no other record: a run is finished when its files are there.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prunerob.attacks.suite import is_same_test
from prunerob.errors import UserError
from prunerob.runs.folder import NOT_TRAINING, Run, differences

CRITERIA = {
    "weight": "prunerob.pruning.weight_magnitude",
    "filter": "prunerob.pruning.filter_l1",
    "random_weight": "prunerob.pruning.random_weights",
    "random_filter": "prunerob.pruning.random_filters",
}
"""Short names of criteria; any function can be named by its import path."""

READINGS = ("filters", "weights", "parameters")

RESIDUALS = ("keep", "silence", "remove")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One way to prune a dense network.

    Args:
        criterion: a short name of `CRITERIA`, or the import path of a function.
        amount: share to prune, in [0, 1); 0 is the control, whatever the criterion.
        reading: which share that is, for filters; None for the configuration's.
        residual: what becomes of filters that write to a residual stream; None likewise.
        scratch: hold its masks on fresh weights from the first epoch on.
    """

    criterion: str
    amount: float
    reading: str | None = None
    residual: str | None = None
    scratch: bool = False

    @property
    def name(self) -> str:
        """The name of its runs' folders."""
        if self.amount == 0:
            return "control"
        criterion = self.criterion.rsplit(".", 1)[-1]
        parts = [criterion, self.reading, self.residual, str(self.amount)]
        return "-".join(part for part in [*parts, "scratch" if self.scratch else None] if part)

    def settings(self) -> list[str]:
        """What `fit` is told about it."""
        settings = ["--pruning.amount", str(self.amount)]
        settings += ["--pruning.criterion", CRITERIA.get(self.criterion, self.criterion)]
        settings += ["--pruning.reading", self.reading] if self.reading else []
        return settings + (["--pruning.residual", self.residual] if self.residual else [])


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
        if reading and reading not in READINGS:
            raise UserError(
                f"criterion: {text}: the readings are {', '.join(READINGS)}; what becomes of "
                "residual streams comes third, as in filter:weights:silence"
            )
        if residual and residual not in RESIDUALS:
            raise UserError(
                f"criterion: {text}: residual streams have one of {', '.join(RESIDUALS)}"
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


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run.

    Args:
        config: configuration for `prunerob fit`; its pruning.epoch ends the dense training.
        folder: where the runs go.
        branches: ways to prune each dense network.
        seeds: of dense networks and all that is made of them.
        settings: keys and values to set in the configuration, as on a command line.
        plain: the configuration with those settings, in plain values.
    """

    config: Path
    folder: Path
    branches: Sequence[Branch]
    seeds: Sequence[int]
    settings: Sequence[str] = ()
    plain: Mapping[str, Any] = field(default_factory=dict)

    def jobs(self) -> list[Job]:
        """All runs, each after the one that it builds on."""
        epoch, epochs = self.plain["pruning"]["epoch"], self.plain["trainer"]["max_epochs"]
        if not epoch or epochs is None or epochs <= epoch:
            raise UserError(
                f"pruning.epoch of {self.config}: {epoch} of {epochs} epochs; a sweep needs epochs "
                "before it, for the dense network, and after it, for fine-tuning"
            )
        jobs: list[Job] = []
        for seed in self.seeds:
            dense = self._job(seed, "dense", [], max_epochs=epoch, prune_epoch=None)
            pruned = {}
            for branch in self.branches:
                if not branch.scratch:
                    pruned[branch.name] = self._job(
                        seed,
                        branch.name,
                        branch.settings(),
                        max_epochs=epochs,
                        prune_epoch=epoch,
                        branch=branch,
                        after=dense,
                    )
            jobs += [dense, *pruned.values()]
            for branch in self.branches:
                if branch.scratch:
                    source = pruned[branch.name.removesuffix("-scratch")]
                    settings = ["--pruning.masks_from", str(source.run.folder)]
                    # One phase of training, so that of training alone.
                    settings += ["--model.fine_tuning.optimizer", "null"]
                    settings += ["--model.fine_tuning.schedule", "null"]
                    job = self._job(
                        seed,
                        branch.name,
                        [*branch.settings(), *settings],
                        max_epochs=epochs,
                        prune_epoch=0,
                        branch=branch,
                        after=source,
                    )
                    jobs.append(job)
        return jobs

    def _job(
        self,
        seed: int,
        name: str,
        settings: Sequence[str],
        *,
        max_epochs: int,
        prune_epoch: int | None,
        branch: Branch | None = None,
        after: Job | None = None,
    ) -> Job:
        common = ["--config", str(self.config), *self.settings, "--seed_everything", str(seed)]
        phases = ["--trainer.max_epochs", str(max_epochs)]
        phases += ["--pruning.epoch", "null" if prune_epoch is None else str(prune_epoch)]
        folder = self.folder / f"seed{seed}"
        logger = "--trainer.logger.init_args"
        place = [f"{logger}.save_dir", str(self.folder), f"{logger}.name", folder.name]
        place += [f"{logger}.version", name]
        return Job(
            run=Run(folder / name),
            seed=seed,
            after=after,
            fit=[*common, *settings, *phases, *place],
            test=[*common, *settings, *phases, "--ckpt_path", str(folder / name)],
            plain=self.plain,
            max_epochs=max_epochs,
            prune_epoch=prune_epoch,
            branch=branch,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One run, from nothing to its table.

    Args:
        run: its folder.
        seed: its seed.
        after: the run that it builds on, if any.
        fit: the command line of `fit` that begins it.
        test: the command line of `test`.
        plain: the sweep's configuration, in plain values.
        max_epochs: its own setting of it.
        prune_epoch: its own setting of `pruning.epoch`.
        branch: how it is pruned; None of a dense network.
    """

    run: Run
    seed: int
    after: Job | None
    fit: Sequence[str]
    test: Sequence[str]
    plain: Mapping[str, Any]
    max_epochs: int
    prune_epoch: int | None
    branch: Branch | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.run.folder.name}, seed {self.seed}"

    @property
    def sweep(self) -> Path:
        """The folder of its sweep."""
        return self.run.folder.parent.parent

    @property
    def dense(self) -> Job | None:
        """The dense network that it goes on from; None if it begins with fresh weights."""
        return self.after if self.after and self.after.branch is None else None

    @property
    def epochs(self) -> int:
        """How many it trains for itself."""
        return self.max_epochs - (self.dense.max_epochs if self.dense else 0)

    @property
    def log(self) -> Path:
        """What its commands print."""
        return self.run.folder / "log.txt"

    @property
    def is_trained(self) -> bool:
        """Whether its training has finished."""
        return self.run.summary.is_file() and self.run.checkpoint().is_file()

    @property
    def seconds(self) -> float:
        """How long the run and those that it went on from took to train, as its summary says.

        Raises:
            UserError: the summary is damaged.
        """
        try:
            return float(json.loads(self.run.summary.read_text())["seconds"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.run.summary} is damaged; remove it, and the run goes on from its checkpoint"
            ) from None

    @property
    def is_tested(self) -> bool:
        """Whether its last checkpoint was put to the attacks of the configuration, as they are."""
        file = self.run.folder / "robustness.json"
        if not file.is_file() or not self.is_trained:
            return False
        try:
            found = json.loads(file.read_text())
            tested = found["rows"][0]["images"]
        except (ValueError, KeyError, TypeError, IndexError):
            return False
        model, size = self.plain["model"], self.plain["data"]["init_args"].get("test_size")
        return bool(
            is_same_test(found.get("suite", {}), model)
            and found.get("test_size") == size
            and found.get("test_images", tested) == tested  # not a part, to see whether it runs
            and bool(found.get("scrutiny")) == bool(model["scrutinized_images"])
        )

    def commands(self) -> list[list[str]]:
        """What is left to run: `fit`, gone on with where it began, and `test`."""
        commands = []
        if not self.is_trained:
            command = ["fit", *self.fit]
            if self.dense:
                command += ["--ckpt_path", str(self.dense.run.checkpoint())]
            if self.run.checkpoint().is_file() and self.run.config.is_file():
                command = ["fit", "--ckpt_path", str(self.run.folder)]
            commands.append(command)
        if not self.is_tested:
            commands.append(["test", *self.test])
        return commands

    def clear(self) -> None:
        """Remove what a run left that was stopped before its first checkpoint."""
        if self.run.config.is_file() and not self.run.checkpoint().is_file():
            shutil.rmtree(self.run.folder)

    def check(self) -> None:
        """See that what lies in the folder was made with the settings of this sweep.

        Raises:
            UserError: it was not; its results would stand under a wrong name.
        """
        if not (self.run.config.is_file() and self.run.checkpoint().is_file()):
            if self.run.summary.is_file():
                raise UserError(
                    f"{self.run.folder} has finished, but its checkpoint is gone; put it back, or "
                    "remove the folder to train it again"
                )
            return  # it stopped before it had anything to go on with
        try:
            record = yaml.safe_load(self.run.config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{self.run.config} is damaged; remove {self.run.folder}")
        if self.run.summary.is_file():
            _ = self.seconds  # before anything runs
        expected = copy.deepcopy(dict(self.plain))
        expected["trainer"]["max_epochs"] = self.max_epochs
        pruning = expected["pruning"]
        pruning["epoch"] = self.prune_epoch
        if self.branch is None or not self.branch.amount:
            for name in ("criterion", "reading", "residual"):
                pruning.pop(name)
        if self.branch is None:
            pruning.pop("amount")
        else:
            pruning["amount"] = self.branch.amount
            if self.branch.amount:
                pruning["criterion"] = CRITERIA.get(self.branch.criterion, self.branch.criterion)
                pruning["reading"] = self.branch.reading or pruning["reading"]
                pruning["residual"] = self.branch.residual or pruning["residual"]
        for name, old, new in differences(record, expected):
            free = not self.dense and name.startswith("model.fine_tuning")
            if not free and not name.startswith((*NOT_TRAINING, "pruning.masks_from")):
                raise UserError(
                    f"{self.run.folder} was made with {name} {old}, but this sweep has {new}; "
                    "name another --folder"
                )
