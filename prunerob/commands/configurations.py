"""Configurations as they are read: what is no configuration is refused before it can do harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from prunerob.data import ImageDataModule
from prunerob.errors import UserError
from prunerob.pruning import Pruning
from prunerob.runs.configuration import find_object
from prunerob.runs.plain import read_yaml
from prunerob.training.classifier import Classifier

GROUPS = ("trainer", "data", "model", "model.adversarial_training", "model.fine_tuning", "pruning")
"""Keys that hold settings; jsonargparse takes any value for some of them."""

WRITER_SETTINGS = {
    "purge_step": ("a whole number", True),
    "max_queue": ("a whole number", False),
    "flush_secs": ("a number of seconds below 1e9", False),
    "filename_suffix": ("a text", False),
}
"""What TensorBoard's writer takes, and whether null stands for its default; it checks none."""

COUNTS = tuple(
    f"trainer.{name}"
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval")
)
"""Keys of numbers that Lightning divides by."""


def check_file(file: Path) -> None:
    """Look through a configuration before jsonargparse takes it apart.

    Raises:
        UserError: it is no YAML, or has a single value in place of a group of settings, for which
            jsonargparse would take the defaults, or a setting without a name.
    """
    config = read_yaml(file) if file.is_file() else None
    _check_names(config, "")
    for group in GROUPS:
        value = config
        for key in group.split("."):
            value = value.get(key, {}) if isinstance(value, Mapping) else {}
        if not isinstance(value, str):  # a file to read them from
            _check_group(value, group)
    data = config.get("data") if isinstance(config, Mapping) else None
    for settings in (data, data.get("init_args") if isinstance(data, Mapping) else None):
        if isinstance(settings, Mapping) and "seed" in settings:
            raise _own_seed()


def _check_names(value: object, above: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "" and above != "model.attacks.":  # names of attacks are told with theirs
                raise UserError(f"{above.rstrip('.') or 'configuration'}: a setting has no name")
            _check_names(inner, f"{above}{name}.")


def check_seed(args: Sequence[str]) -> None:
    """See that a command line gives the data no seed of its own, which would have no effect.

    Args:
        args: of a command.

    Raises:
        UserError: it does.
    """
    if {"--data.seed", "--data.init_args.seed"} & {word.split("=")[0] for word in args}:
        raise _own_seed()


def _own_seed() -> UserError:
    return UserError("data.seed: follows the run's seed; set seed_everything")


def _check_groups(config: Namespace) -> None:
    """See that every group of settings is one.

    Raises:
        UserError: one is null or another single value.
    """
    for group in GROUPS:
        _check_group(config.get(group), group)
    path = config.data.get("class_path")
    if not path or find_object(path) is ImageDataModule:  # what jsonargparse takes for {}
        raise UserError("data: names no class; set data.class_path, as to prunerob.data.MNIST")


def _check_group(value: object, group: str) -> None:
    if value is None:
        raise UserError(f"{group}: is null; leave it out to take its defaults")
    if not isinstance(value, Namespace | Mapping):
        raise UserError(f"{group}: {value!r:.40} is no mapping of settings")


def check_values(config: Namespace, command: str = "fit") -> None:
    """See that groups of settings are groups, and nothing is null that needs a value.

    jsonargparse takes null for either. Every number must be finite, and above 0 if Lightning
    divides by it.

    Args:
        config: of a command.
        command: that it is for.

    Raises:
        UserError: something is.
    """
    _check_groups(config)
    if config.get("seed_everything") is None:
        raise UserError("seed_everything: is null; leave it out to take its default")
    trainer = config.get("trainer")
    if command == "fit" and trainer.max_epochs is None and not trainer.fast_dev_run:
        raise UserError("trainer.max_epochs: is not set; phases are counted in epochs")
    for key in COUNTS:
        value = config.get(key)
        if isinstance(value, int) and value < 1:
            raise UserError(f"{key}: {value} is below 1")
    clip = config.get("trainer.gradient_clip_val")
    if isinstance(clip, int | float) and clip < 0:  # Lightning would not clip, and not say so
        raise UserError(f"trainer.gradient_clip_val: {clip} is below 0")
    if config.get("trainer.limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches: 0 leaves nothing to train on")
    _check_loggers(config.get("trainer.logger"))
    for group, kind in (
        ("trainer", Trainer),
        ("data", None),
        ("model", Classifier),
        ("pruning", Pruning),
    ):
        _check_values(config.get(group), kind, group)


def _check_loggers(loggers: object) -> None:
    """See that a run's folder gets a name that a terminal can show.

    A TensorBoardLogger's `**kwargs` must be of the types that its writer works with.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace):
            continue
        for group in ("init_args", "dict_kwargs"):
            settings = logger.get(group)
            settings = vars(settings) if isinstance(settings, Namespace) else settings or {}
            for name, value in settings.items():
                key = f"trainer.logger.{group}.{name}"
                if name in WRITER_SETTINGS and not _fits(value, *WRITER_SETTINGS[name]):
                    raise UserError(f"{key}: {value!r:.40} is not {WRITER_SETTINGS[name][0]}")
                if group == "init_args" and isinstance(value, str):
                    _check_place(value, key)


def _fits(value: object, kind: str, admits_null: bool) -> bool:
    if value is None or kind == "a text":
        return admits_null if value is None else isinstance(value, str)
    is_number = isinstance(value, int if kind == "a whole number" else int | float)
    return is_number and not isinstance(value, bool) and 0 <= cast(float, value) < 1e9


def _check_place(value: str, key: str) -> None:
    if "://" in value:
        raise UserError(f"{key}: {value:.80} is no folder here")
    if not value.isprintable():
        raise UserError(f"{key}: {value!r:.80} holds what no terminal can show, as a line break")


def check_strategy(trainer: Trainer) -> None:
    """See that a Trainer's strategy is one that prunerob works with.

    Raises:
        UserError: it is not.
    """
    strategy = trainer.strategy
    several = isinstance(strategy, DDPStrategy) and strategy._start_method == "popen"
    if not (several or isinstance(strategy, SingleDeviceStrategy)):
        raise UserError(
            f"trainer.strategy: {type(strategy).__name__} is not for prunerob; several devices "
            "run with ddp"
        )


def _check_values(value: object, kind: object, key: str) -> None:
    """The same for the settings of a class, and for what they hold.

    Args:
        value: the settings; or a class_path with its init_args; or several of those.
        kind: the class, if the value does not name one.
        key: where they stand.
    """
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, part in items:
            if isinstance(part, Namespace):
                _check_values(part, None, f"{key}.{name}")
        return
    if not isinstance(value, Namespace):
        return
    if "class_path" in value:
        if value.class_path in ("typing.Union", "torch.nn.Module"):  # jsonargparse's, for {}
            raise UserError(f"{key}: names no class; set {key}.class_path")
        kind, value = find_object(value.class_path), value.get("init_args")
        key = f"{key}.init_args"
    if not isinstance(value, Namespace):
        return
    hints: Mapping[str, Any] = {}
    parameters: Mapping[str, Parameter] = {}
    try:
        hints = get_type_hints(cast(Any, kind).__init__)
        parameters = signature(cast(Any, kind)).parameters
    except Exception:  # a class of the user's may have hints that nothing resolves
        pass
    for name, part in vars(value).items():
        if part is None and name in hints and name in parameters:
            if not _admits_null(hints[name]) and parameters[name].default is not None:
                raise UserError(f"{key}.{name}: is null; leave it out to take its default")
        elif isinstance(part, float) and math.isnan(part):
            raise UserError(f"{key}.{name}: is not a number (nan)")
        elif isinstance(part, float) and math.isinf(part):
            raise UserError(f"{key}.{name}: is infinite")
        else:
            _check_values(part, hints.get(name), f"{key}.{name}")


def _admits_null(hint: object) -> bool:
    """Whether None is of a type."""
    if get_origin(hint) in (Union, UnionType):
        return any(_admits_null(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return None in get_args(hint)
    return hint in (Any, object, NoneType)
