"""`prunerob sweep`: from a command line or a file to the runs."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunerob.commands.arguments import Arguments, integers, numbers, words
from prunerob.errors import UserError
from prunerob.runs.plain import read_yaml

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
        help="weight, lamp, taylor, hydra, harp, random_weight, filter, filter_taylor, "
        "filter_hydra, filter_harp, random_filter or import paths; "
        "filter:parameters names the reading of the amount, filter:weights:silence also "
        "pruning.residual (default weight)",
    )
    parser.add_argument("--amount", type=numbers, help="shares to prune; 0 is the control")
    parser.add_argument(
        "--schedule",
        type=words,
        help="one_shot, gradual with its epochs as in gradual:3, or iterative with the epochs of a "
        "round and the number of rounds as in iterative:5:2 (default: the configuration's)",
    )
    parser.add_argument(
        "--objective",
        type=words,
        help="of fine-tuning: cross_entropy, trades, mart, ard or rslad, with its first setting as "
        "in trades:3, or the import path of your own; each has a control of its own (default: the "
        "configuration's)",
    )
    parser.add_argument("--seed", type=integers, help="seeds (default 0)")
    parser.add_argument(
        "--scratch",
        action="store_true",
        default=None,
        help="also train each pruned network from scratch: fresh weights, the same masks, as many "
        "epochs as training and fine-tuning together",
    )
    parser.add_argument(
        "--skip-unreachable",
        action="store_true",
        default=None,
        help="leave out amounts that cannot be pruned, as more filters than may go, and say so",
    )
    add_options_of_running(parser)
    parser.add_argument("--folder", help="where the runs go (default sweeps/CONFIG)")
    rest = list(args)[1:]
    # Not a positional argument, which argparse would find in the value of a setting, too.
    file = rest.pop(0) if rest and not rest[0].startswith("-") else None
    arguments, settings = parser.parse_known_args(rest)
    options = _read(file, arguments, settings)

    from prunerob.commands.reading import resolve
    from prunerob.sweeps.make import make_sweep, run_sweeps

    if run_sweeps([make_sweep(options, resolve=resolve)], options):
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


def _read(file: str | None, arguments: Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """The options of the command line over those of the file over the defaults."""
    options: dict[str, Any] = {
        "config": None,
        "criterion": ["weight"],
        "amount": None,
        "schedule": None,
        "objective": None,
        "seed": [0],
        "folder": None,
        "scratch": False,
        "skip_unreachable": False,
        **dict.fromkeys(RUNNING),
        "settings": [],
    }
    if file is not None:
        options.update(_read_file(Path(file), options.keys()))
    given = {name: value for name, value in vars(arguments).items() if name in options}
    options.update({name: value for name, value in given.items() if value is not None})
    if isinstance(options["amount"], Mapping) and arguments.criterion is not None:
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
    options = read_yaml(file)
    if not isinstance(options, dict):
        raise UserError(f"{file} is no sweep: it has no keys")
    if unknown := sorted(map(str, options.keys() - names)):
        raise UserError(f"{file}: {unknown[0]} is unknown; there are {', '.join(names)}")
    for name, (kind, what) in KINDS.items():
        value = options.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(f"{file}: {name} is {what}")
    if options.get("executor") not in (None, "local", "ray"):
        raise UserError(f"{file}: executor is local or ray")
    for name in ("scratch", "skip_unreachable"):
        if not isinstance(options.get(name, False), bool):
            raise UserError(f"{file}: {name} is true or false")
    for name, kind in (("criterion", str), ("schedule", str), ("objective", str), ("seed", int)):
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
