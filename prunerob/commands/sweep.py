"""`prunerob sweep`: from a command line or a file to the runs."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from prunerob.commands.arguments import Arguments, integers, numbers, words
from prunerob.errors import UserError
from prunerob.sweeps.executor import Executor
from prunerob.sweeps.plan import Branch, Job, Sweep, add_branch, make_branches, refuse_repeated

DESCRIPTION = """\
Train each dense network once, prune it in many ways, fine-tune, test.

    prunerob sweep --config configs/mnist_pgd.yaml --criterion weight,filter \\
        --amount 0,0.5,0.8,0.9,0.94,0.98 --seed 0,1,2

or the same from a file, `prunerob sweep FILE`:

    config: configs/mnist_pgd.yaml
    criterion: [weight, filter]
    amount: [0, 0.5, 0.8, 0.9, 0.94, 0.98]   # or by criterion: {weight: [0.94], filter: [0.4]}
    seed: [0, 1, 2]
    settings: {trainer.accelerator: cpu}

Interrupted, it goes on where it stopped when the same command is given again; what is finished is
not run again, and more amounts, criteria and seeds can be added. Further options are settings of
the configuration, as in `prunerob fit`: --model.optimizer.init_args.lr 0.002
"""


def run(args: Sequence[str]) -> None:
    """Run a sweep.

    Args:
        args: the command line without the program's name.

    Raises:
        UserError: the request is mistaken.
        SystemExit: with status 1 if a run failed; the others are finished.
    """
    parser = Arguments("sweep", DESCRIPTION)
    parser.add_argument("--config", help="configuration of the runs, as for fit")
    parser.add_argument(
        "--criterion",
        type=words,
        help="weight, filter, random_weight, random_filter or import paths; filter:parameters "
        "names the reading of the amount, filter:weights:silence also pruning.residual (default "
        "weight)",
    )
    parser.add_argument("--amount", type=numbers, help="shares to prune; 0 is the control")
    parser.add_argument("--seed", type=integers, help="seeds (default 0)")
    parser.add_argument(
        "--scratch",
        action="store_true",
        default=None,
        help="also train each pruned network from scratch: fresh weights, the same masks, as many "
        "epochs as training and fine-tuning together",
    )
    add_options_of_running(parser)
    parser.add_argument("--folder", help="where the runs go (default sweeps/CONFIG)")
    rest = list(args)[1:]
    # Not a positional argument, which argparse would find in the value of a setting, too.
    file = rest.pop(0) if rest and not rest[0].startswith("-") else None
    said, settings = parser.parse_known_args(rest)
    options = _read(file, said, settings)

    if run_sweeps([make_sweep(options)], options):
        raise SystemExit(1)


RUNNING = ("executor", "jobs", "threads", "ray_address", "gpus")
"""The options that say how to run, not what."""


def add_options_of_running(parser: Arguments) -> None:
    """Add the options of `RUNNING`."""
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        help="local: processes of this machine (default); ray: tasks of Ray, on this machine or a "
        "cluster whose machines share the working directory and the runs' folder",
    )
    parser.add_argument(
        "--jobs", type=int, help="runs side by side (default: local 1, ray as many as have room)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="CPU threads of each run (default: local the cores, shared out; ray 1)",
    )
    parser.add_argument(
        "--ray-address",
        help="of a cluster, HOST:6379 or auto (default: RAY_ADDRESS, or a Ray of this machine that "
        "ends with the sweep)",
    )
    parser.add_argument(
        "--gpus",
        type=float,
        help="with ray, the share of a GPU that each run gets, 0 or 0.01 to 1 (default 1 if there "
        "are any)",
    )


def run_sweeps(sweeps: Sequence[Sweep], options: Mapping[str, Any]) -> dict[Job, str]:
    """Run sweeps, all their jobs in one queue.

    Args:
        sweeps: what to run.
        options: how, by the names of `RUNNING`; each may be None.

    Returns:
        the runs that failed, with the reason.
    """
    from prunerob.sweeps.queue import run_jobs

    executor = _make_executor(sweeps, **{name: options[name] for name in RUNNING})
    _prepare_data(sweeps)
    return run_jobs([job for sweep in sweeps for job in sweep.jobs()], executor)


def _make_executor(
    sweeps: Sequence[Sweep],
    *,
    executor: str | None,
    jobs: int | None,
    threads: int | None,
    ray_address: str | None,
    gpus: float | None,
) -> Executor:
    """The executor of that name, which need not exist yet.

    Raises:
        UserError: the options do not go together.
    """
    if (jobs is not None and jobs < 1) or (threads is not None and threads < 1):
        raise UserError("--jobs and --threads are 1 or more")
    if executor == "ray":
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


def make_sweep(options: Mapping[str, Any]) -> Sweep:
    """A sweep from its options.

    Args:
        options: config, criterion, amount, seed, folder, scratch and settings, checked here.

    Raises:
        UserError: one of them is missing or wrong.
    """
    config = Path(options["config"])
    if not config.is_file():
        raise UserError(f"--config: there is no file {config}")
    seeds = options["seed"]
    refuse_repeated("seed", seeds)
    branches = _branches(options["criterion"], options["amount"])
    if options["scratch"]:
        branches += [replace(branch, scratch=True) for branch in branches if branch.amount]
    for setting in settings_of_sweeps(options["settings"]):
        raise UserError(f"{setting} is what a sweep sets itself; see `prunerob sweep --help`")
    folder = Path(options["folder"] or Path("sweeps") / config.stem)
    settings = list(options["settings"])

    from prunerob.commands.lightning import resolve

    plain = resolve(["--config", str(config), *settings])
    limit = plain["trainer"].get("limit_test_batches")
    # A limit of 1.0 is all batches; 1 is one batch.
    limited = limit is not None and not (limit == 1 and isinstance(limit, float))
    trial = bool(plain["trainer"].get("fast_dev_run"))
    for name, found in (("limit_test_batches", limited), ("fast_dev_run", trial)):
        if found:
            raise UserError(f"trainer.{name}: a sweep tests in full; set data.init_args.test_size")
    if plain["trainer"]["devices"] not in (1, "1"):
        raise UserError("trainer.devices: each run of a sweep takes one; --jobs runs several")
    # What would be refused after the dense networks are trained is refused now.
    for seed in seeds:
        resolve(["--config", str(config), *settings, "--seed_everything", str(seed)])
    seen: dict[object, Branch] = {}
    for branch in branches:
        pruning = _check_amount(resolve(["--config", str(config), *settings, *branch.settings()]))
        other = seen.setdefault((pruning, branch.amount, branch.scratch), branch)
        if other is not branch:
            raise UserError(f"criterion: {other.name} and {branch.name} are the same pruning")
    return Sweep(
        config=config, folder=folder, branches=branches, seeds=seeds, settings=settings, plain=plain
    )


def _check_amount(plain: Mapping[str, Any]) -> object:
    """See that so much can be pruned of the network, as far as that hangs on its shapes.

    Returns:
        what tells this way of pruning from others.

    Raises:
        UserError: it cannot.
    """
    from prunerob.pruning.criteria import name_of
    from prunerob.pruning.masks import check_scores, make_masks, scores_filters, without

    pruning = plain["pruning"]
    try:
        network = instantiate(plain["model"]["network"])
        criterion = _import(pruning["criterion"])
        scores = criterion(network, 0)
    except UserError:
        raise
    except Exception:  # what only the configuration's own parser can build, the run will check
        return json.dumps(pruning, sort_keys=True)
    name, scores = name_of(criterion), without(scores, pruning["exclude"])
    check_scores(network, scores)
    if not scores_filters(scores) and not pruning["keep_per_layer"]:
        return name  # any share of weights can go; sorting millions of them takes a second
    settings = ("reading", "residual", "keep_per_layer", "keep_multiple_of")
    make_masks(
        network,
        scores,
        pruning["amount"],
        **{name: pruning[name] for name in settings},
    )
    is_about_filters = scores_filters(scores)
    return name, *((pruning["reading"], pruning["residual"]) if is_about_filters else ())


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


def instantiate(spec: Mapping[str, Any]) -> Any:
    """What a class_path with its init_args stands for."""
    settings = {
        key: instantiate(value) if isinstance(value, Mapping) and "class_path" in value else value
        for key, value in (spec.get("init_args") or {}).items()
    }
    return _import(spec["class_path"])(**settings)


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def settings_of_sweeps(settings: Sequence[str]) -> list[str]:
    """Those of some settings that each run of a sweep has for itself."""
    pruning = ("pruning.amount", "pruning.criterion", "pruning.masks_from")
    own = ("seed_everything", "ckpt_path", "trainer.logger", *pruning)
    return [word for word in settings if word.removeprefix("--").startswith(own)]


def _branches(criteria: Sequence[str], amounts: Any) -> list[Branch]:
    if not isinstance(amounts, Mapping):
        return make_branches(criteria, amounts)
    branches: list[Branch] = []
    for criterion, of_it in amounts.items():
        for branch in make_branches([str(criterion)], of_it):
            add_branch(branch, branches)
    return branches


def _read(file: str | None, said: Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """The options of the command line over those of the file over the defaults."""
    options: dict[str, Any] = {
        "config": None,
        "criterion": ["weight"],
        "amount": None,
        "seed": [0],
        "folder": None,
        "scratch": False,
        **dict.fromkeys(RUNNING),
        "settings": [],
    }
    if file is not None:
        options.update(_read_file(Path(file), options.keys()))
    given = {name: value for name, value in vars(said).items() if name in options}
    options.update({name: value for name, value in given.items() if value is not None})
    if isinstance(options["amount"], Mapping) and said.criterion is not None:
        raise UserError("--criterion: the amounts of the file name the criteria themselves")
    options["settings"] = [*options["settings"], *settings]
    for name in ("config", "amount"):
        if options[name] is None:
            raise UserError(f"--{name} is missing; see `prunerob sweep --help`")
    return options


KINDS: Mapping[str, tuple[Any, str]] = {
    "config": (str, "a path"),
    "folder": (str, "a path"),
    "jobs": (int, "a whole number"),
    "threads": (int, "a whole number"),
    "ray_address": (str, "an address, as HOST:6379"),
    "gpus": (int | float, "a number"),
}
"""Options of a file that are single values."""


def _read_file(file: Path, names: Any) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"there is no file {file}; see `prunerob sweep --help`")
    try:
        options = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML file ({error})") from None
    if not isinstance(options, dict):
        raise UserError(f"{file} is no sweep: it has no keys")
    if unknown := sorted(map(str, options.keys() - names)):
        raise UserError(f"{file}: {unknown[0]} is unknown; there are {', '.join(names)}")
    for name, (kind, told) in KINDS.items():
        value = options.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(f"{file}: {name} is {told}")
    if options.get("executor") not in (None, "local", "ray"):
        raise UserError(f"{file}: executor is local or ray")
    if not isinstance(options.get("scratch", False), bool):
        raise UserError(f"{file}: scratch is true or false")
    for name, kind in (("criterion", str), ("seed", int)):
        value = options.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, kind) for v in value):
            raise UserError(f"{file}: {name} is a list of {kind.__name__}")
    amounts = options.get("amount", [])
    if isinstance(amounts, dict) and ("criterion" in options or not amounts):
        raise UserError(f"{file}: amount names the criteria itself, one or more; drop criterion")
    lists = list(amounts.values()) if isinstance(amounts, dict) else [amounts]
    for amount in lists:
        if not isinstance(amount, list) or not all(isinstance(v, int | float) for v in amount):
            raise UserError(f"{file}: amount is a list of numbers, or one for each criterion")
    settings = options.get("settings", {})
    if not isinstance(settings, dict):
        raise UserError(f"{file}: settings are keys of the configuration with their values")
    options["settings"] = [
        word
        for key, value in settings.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    return options
