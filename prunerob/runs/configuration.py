"""Configurations in plain values: what tells two apart, and the objects that one stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol


class Resolve(Protocol):
    """From the options of a command line to the whole configuration, in plain values."""

    def __call__(self, args: Sequence[str], *, builds: bool = False) -> dict[str, Any]:
        """See `prunerob.commands.reading.resolve`."""


NOT_TRAINING = (
    "ckpt_path",
    "data.init_args.eval_batch_size",
    "data.init_args.test_on",
    "data.init_args.test_size",
    "model.attacks",
    "model.scrutinized_images",
    "model.worst_case_attacks",
    "seed_everything",
    "trainer.accelerator",
    "trainer.callbacks",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.enable",
    "trainer.logger",
)
"""Beginnings of keys that say where a run goes and how it is tested, not what is trained."""


def differences(old: object, new: object, name: str = "") -> list[tuple[str, object, object]]:
    """Where two configurations differ in keys that both have.

    Args:
        old: a configuration in plain values.
        new: another.
        name: of the key that they lie under.

    Returns:
        keys, with the value of either; sorted by key.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() & new.keys())
            for difference in differences(old[key], new[key], f"{name}.{key}" if name else str(key))
        ]
    return [] if old == new else [(name, old, new)]


def find_object(path: str) -> Any:
    """What an import path of a configuration stands for; imports its module."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def instantiate(record: Mapping[str, Any]) -> Any:
    """What a class_path with its init_args stands for; imports its module."""
    settings = {
        key: instantiate(value) if isinstance(value, Mapping) and "class_path" in value else value
        for key, value in (record.get("init_args") or {}).items()
    } | dict(record.get("dict_kwargs") or {})
    return find_object(record["class_path"])(**settings)
