"""From the options of a sweep to the sweep, and to its end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunerob.errors import UnreachableAmount, UserError
from prunerob.pruning.checks import check_time
from prunerob.pruning.criteria import path_of
from prunerob.pruning.cut import Cut
from prunerob.pruning.scores import name_of, scores_filters
from prunerob.runs.configuration import Resolve, instantiate
from prunerob.sweeps.branches import (
    Branch,
    add_branch,
    make_branches,
    refuse_repeated,
    with_objectives,
    with_schedules,
)
from prunerob.sweeps.executor import Executor
from prunerob.sweeps.job import Job
from prunerob.sweeps.plan import Sweep
from prunerob.sweeps.queue import run_jobs
from prunerob.sweeps.signals import ending_in_order


def make_sweep(options: Mapping[str, Any], *, resolve: Resolve) -> Sweep:
    """A sweep from its options.

    Args:
        options: config, criterion, amount, schedule, objective, seed, folder, scratch,
            skip_unreachable and settings, checked here.
        resolve: gives the whole configuration that the options of a command line stand for.

    Raises:
        UserError: one of them is missing or wrong.
    """
    config = Path(options["config"])
    if not config.is_file():
        raise UserError(f"--config: there is no file {config}")
    seeds = options["seed"]
    refuse_repeated("seed", seeds)
    branches = _branches(options["criterion"], options["amount"])
    if options.get("schedule") is not None:
        branches = with_schedules(branches, options["schedule"])
    if options.get("objective") is not None:
        if options["scratch"]:
            raise UserError(
                "objective: is of fine-tuning, and what is trained from scratch has none; leave "
                "out --scratch"
            )
        branches = with_objectives(branches, options["objective"])
    if options["scratch"]:
        branches += [replace(branch, scratch=True) for branch in branches if branch.amount]
    for setting in settings_of_sweeps(options["settings"]):
        raise UserError(f"{setting} is what a sweep sets itself; see `prunerob sweep --help`")
    if options["folder"] == "":  # as of a shell's variable that is not set
        raise UserError("folder: an empty name is no folder")
    folder = Path(options["folder"] or Path("sweeps") / config.stem)
    settings = list(options["settings"])
    plain = resolve(["--config", str(config), *settings])
    _refuse_idle_criterion(settings, branches, plain)
    limit = plain["trainer"].get("limit_test_batches")
    # A limit of 1.0 is all batches; 1 is one batch.
    limited = limit is not None and not (limit == 1 and isinstance(limit, float))
    trial = bool(plain["trainer"].get("fast_dev_run"))
    for name, is_set in (("limit_test_batches", limited), ("fast_dev_run", trial)):
        if is_set:
            raise UserError(f"trainer.{name}: a sweep tests in full; set data.init_args.test_size")
    if plain["trainer"]["devices"] not in (1, "1"):
        raise UserError("trainer.devices: each run of a sweep takes one; --jobs runs several")
    # What would be refused after the dense networks are trained is refused now.
    for seed in seeds:
        resolve(["--config", str(config), *settings, "--seed_everything", str(seed)])
    seen: dict[object, Branch] = {}
    kept: list[Branch] = []
    pruned: dict[str, Mapping[str, Any]] = {}
    for branch in branches:
        options_of_it = ["--config", str(config), *settings, *branch.settings()]
        try:
            pruned[branch.name] = resolve(options_of_it, builds=True)
            pruning = _check_branch(pruned[branch.name])
        except UnreachableAmount as error:
            if not options.get("skip_unreachable"):
                raise UserError(
                    f"{branch.name}: {error}; or go on without it by --skip-unreachable"
                ) from None
            sys.stdout.write(f"{branch.name}: left out, {error}\n")
            continue
        kept.append(branch)
        key = (pruning, branch.schedule, branch.objective, branch.amount, branch.scratch)
        other = seen.setdefault(key, branch)
        if other is not branch:
            raise UserError(f"criterion: {other.name} and {branch.name} are the same pruning")
    if not kept:
        raise UserError("amount: none can be reached")
    return Sweep(
        config=config,
        folder=folder,
        branches=kept,
        seeds=seeds,
        settings=settings,
        plain=plain,
        pruned=pruned,
    )


def _refuse_idle_criterion(
    settings: Sequence[str], branches: Sequence[Branch], plain: Mapping[str, Any]
) -> None:
    """Refuse a criterion among the settings that is none of the sweep's own.

    Raises:
        UserError: it is none, and would prune nothing.
    """
    if any(word.removeprefix("--").startswith("pruning.criterion") for word in settings):
        record = plain["pruning"]["criterion"]
        path = record if isinstance(record, str) else record["class_path"]
        paths = sorted({path_of(branch.criterion) for branch in branches})
        if path not in paths:
            raise UserError(
                f"pruning.criterion: {path} would prune nothing, this sweep has "
                f"{', '.join(paths)}; a sweep's criteria are named by --criterion, and their "
                "settings here"
            )


def _check_branch(plain: Mapping[str, Any]) -> object:
    """See that so much can be pruned of the network, as far as that hangs on its shapes.

    Returns:
        what tells this way of pruning from others.

    Raises:
        UserError: it cannot.
    """
    pruning = plain["pruning"]
    try:
        network = instantiate(plain["model"]["network"])
        cut = Cut.read(pruning)
        cut.scores(network)
        schedule = instantiate(pruning["schedule"])
    except UserError:
        raise
    except Exception:  # what only the configuration's own parser can build, the run will check
        return json.dumps(pruning, sort_keys=True)
    scores, name = cut.check(network), name_of(cut.criterion)
    epochs, epoch = plain["trainer"]["max_epochs"], pruning["epoch"]
    if epoch is not None and epochs is not None and epoch < epochs and cut.amount:
        check_time(epochs, epoch, schedule, cut.amount)
    return (name, cut.reading, cut.residual) if scores_filters(scores) else name


def _branches(criteria: Sequence[str], amounts: Any) -> list[Branch]:
    if not isinstance(amounts, Mapping):
        return make_branches(criteria, amounts)
    branches: list[Branch] = []
    for criterion, of_it in amounts.items():
        for branch in make_branches([str(criterion)], of_it):
            add_branch(branch, branches)
    return branches


def settings_of_sweeps(settings: Sequence[str]) -> list[str]:
    """Those of some settings that each run of a sweep has for itself."""
    pruning = ("pruning.amount", "pruning.masks_from")
    own = ("seed_everything", "ckpt_path", "trainer.logger", *pruning)
    return [word for word in settings if word.removeprefix("--").startswith(own)]


def run_sweeps(sweeps: Sequence[Sweep], options: Mapping[str, Any]) -> dict[Job, str]:
    """Run sweeps, all their jobs in one queue.

    Args:
        sweeps: what to run.
        options: how: executor, jobs, threads, ray_address and gpus; each may be None.

    Returns:
        the runs that failed, with the reason.
    """
    executor = _make_executor(sweeps, options)
    with ending_in_order():
        _prepare_data(sweeps)
        return run_jobs([job for sweep in sweeps for job in sweep.jobs()], executor)


def _make_executor(sweeps: Sequence[Sweep], options: Mapping[str, Any]) -> Executor:
    """The executor of that name, which need not exist yet.

    Raises:
        UserError: the options do not go together.
    """
    jobs, threads = options["jobs"], options["threads"]
    ray_address, gpus = options["ray_address"], options["gpus"]
    if (jobs is not None and jobs < 1) or (threads is not None and threads < 1):
        raise UserError("--jobs and --threads are 1 or more")
    if options["executor"] == "ray":
        from prunerob.sweeps.cluster import RayTasks

        accelerators = {sweep.plain["trainer"]["accelerator"] for sweep in sweeps}
        if gpus and not 0.01 <= gpus <= 1:
            raise UserError(f"--gpus: {gpus:g} is not 0 or 0.01 to 1; a run takes one device")
        if gpus == 0 and accelerators & {"gpu", "cuda"}:
            raise UserError("--gpus: 0, but trainer.accelerator asks for one")
        address = ray_address or os.environ.get("RAY_ADDRESS")
        return RayTasks(
            address=None if address == "local" else address,
            at_once=jobs,
            threads=threads or 1,
            gpus=gpus,
            accelerators=accelerators,
        )
    for name, value in (("--ray-address", ray_address), ("--gpus", gpus)):
        if value is not None:
            raise UserError(f"{name} is for --executor ray")

    from prunerob.sweeps.processes import Processes, cores

    at_once = jobs or 1
    return Processes(at_once=at_once, threads=threads or max(1, cores() // at_once))


def _prepare_data(sweeps: Sequence[Sweep]) -> None:
    """Have the images ready once, before runs side by side would fetch them.

    Raises:
        UserError: they cannot be had.
    """
    done = []
    for sweep in sweeps:
        data = sweep.plain["data"]
        if data not in done:
            try:
                module = instantiate(data)
            except (ValueError, TypeError) as error:
                raise UserError(f"data: {error}") from None
            module.prepare_data()
            done.append(data)
