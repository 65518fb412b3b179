"""Sweeps: many prunings of few dense networks, run once each, interrupted and gone on with.

A sweep's folder holds a folder for each seed, and in it a run's folder (see `prunerob.runs.folder`)
for each network:

- dense, trained up to the prune epoch and not pruned;
- control, gone on with from dense as the pruned ones are, but with empty masks;
- weight-0.94, filter-0.75, filter-parameters-0.75, filter-weights-silence-0.75: pruned from dense
  and fine-tuned;
- weight-gradual-3-0.94: pruned on the way through three epochs of fine-tuning;
- control-rslad, weight-rslad-0.94: fine-tuned with an objective of its own;
- weight-0.94-scratch: with the masks of weight-0.94, from fresh weights.

Where pruning.epoch is 0, model.weights are the dense network: nothing is trained before pruning,
and there is no run called dense.

There is no other record: a run is finished when its files are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunerob.errors import UserError
from prunerob.runs.folder import Run
from prunerob.sweeps.branches import Branch
from prunerob.sweeps.job import Job


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
        pruned: that of each branch, by its name.
    """

    config: Path
    folder: Path
    branches: Sequence[Branch]
    seeds: Sequence[int]
    settings: Sequence[str] = ()
    plain: Mapping[str, Any] = field(default_factory=dict)
    pruned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def jobs(self) -> list[Job]:
        """All runs, each after the one that it builds on."""
        epoch, epochs = self.plain["pruning"]["epoch"], self.plain["trainer"]["max_epochs"]
        given = epoch == 0 and self.plain["model"]["weights"] is not None
        if epoch is None or epochs is None or epochs <= epoch or (epoch == 0 and not given):
            raise UserError(
                f"pruning.epoch of {self.config}: {epoch} of {epochs} epochs; a sweep needs epochs "
                "before it, for the dense network (or 0 and model.weights, which are one), and "
                "after it, for fine-tuning"
            )
        jobs: list[Job] = []
        for seed in self.seeds:
            dense = None
            if not given:
                dense = self._job(seed, "dense", [], max_epochs=epoch, prune_epoch=None)
                jobs.append(dense)
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
            jobs += pruned.values()
            for branch in self.branches:
                if branch.scratch:
                    source = pruned[branch.name.removesuffix("-scratch")]
                    settings = ["--pruning.masks_from", str(source.run.folder)]
                    # One phase of training, so that of training alone.
                    settings += ["--model.fine_tuning.optimizer", "null"]
                    settings += ["--model.fine_tuning.schedule", "null"]
                    settings += ["--model.weights", "null"]
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
            plain=self.pruned[branch.name] if branch else self.plain,
            max_epochs=max_epochs,
            prune_epoch=prune_epoch,
            branch=branch,
        )
