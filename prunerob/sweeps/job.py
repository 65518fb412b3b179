"""A job: one run of a sweep, from nothing to its table."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunerob.attacks.suite import Suite
from prunerob.errors import UserError
from prunerob.runs.configuration import NOT_TRAINING, differences
from prunerob.runs.folder import Run
from prunerob.runs.plain import read_yaml
from prunerob.sweeps.branches import Branch


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One run, from nothing to its table.

    Args:
        run: its folder.
        seed: its seed.
        after: the run that it builds on, if any.
        fit: the command line of `fit` that begins it.
        test: the command line of `test`.
        plain: its configuration, but for what follows, in plain values.
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
        """Whether its training has finished, and its network is there."""
        return self.run.summary.is_file() and self.run.checkpoint().is_file()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: its table is there, if not its checkpoints any more."""
        return self.run.summary.is_file() and self.is_tested

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
        if not file.is_file():
            return False
        try:
            record = json.loads(file.read_text())
            tested = record["rows"][0]["images"]
            suite = Suite.read(record["suite"])
        except (UserError, ValueError, KeyError, TypeError, IndexError):
            return False
        model, data = self.plain["model"], self.plain["data"]["init_args"]
        return bool(
            suite == Suite.read(model)
            and record.get("test_size") == data.get("test_size")
            and record.get("test_on", "test") == data.get("test_on", "test")
            and record.get("test_images", tested) == tested  # not a part, to see whether it runs
            and bool(record.get("scrutiny")) == bool(model["scrutinized_images"])
        )

    def commands(self) -> list[list[str]]:
        """What is left to run: `fit`, gone on with where it began, and `test`."""
        commands: list[list[str]] = []
        if self.is_finished:
            return commands
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
        is_finished = self.run.config.is_file() and self.is_finished
        if not (self.run.config.is_file() and self.run.checkpoint().is_file()) and not is_finished:
            if self.run.summary.is_file():
                raise UserError(
                    f"{self.run.folder} has finished, but its checkpoint is gone; put it back, or "
                    "remove the folder to train it again"
                )
            return  # it stopped before it had anything to go on with
        try:
            record = read_yaml(self.run.config)
        except UserError:
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{self.run.config} is damaged; remove {self.run.folder}")
        if self.run.summary.is_file():
            _ = self.seconds  # before anything runs
        expected = copy.deepcopy(dict(self.plain))
        expected["trainer"]["max_epochs"] = self.max_epochs
        if self.branch and self.branch.scratch:
            expected["model"]["weights"] = None
        pruning = expected["pruning"]
        pruning["epoch"] = self.prune_epoch
        if self.branch is None or not self.branch.amount:
            for name in ("criterion", "reading", "residual", "schedule"):
                pruning.pop(name)
        if self.branch is None:
            pruning.pop("amount")
        if self.branch is None or self.branch.scratch:  # one phase, of training
            expected["model"].pop("fine_tuning")
        for name, old, new in differences(record, expected):
            if not name.startswith((*NOT_TRAINING, "pruning.masks_from")):
                raise UserError(
                    f"{self.run.folder} was made with {name} {old}, but this sweep has {new}; "
                    "name another --folder"
                )
