"""Command lines of `fit` that are read, not run: what a sweep plans with and checks beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from prunerob.commands.configurations import check_file
from prunerob.commands.lightning import CommandLine, Held
from prunerob.commands.mistakes import refusing
from prunerob.training.checks import check_training
from prunerob.training.classifier import Classifier
from prunerob.training.phases import make_phases


def resolve(args: Sequence[str], *, builds: bool = False) -> dict[str, Any]:
    """The whole configuration that a command line of `fit` stands for, in plain values.

    Args:
        args: what follows `fit`.
        builds: also make the network, its attacks, objectives and optimizers and the data, to
            refuse what these refuse; nothing is fetched or trained.

    Raises:
        UserError: something in it is mistaken.
    """
    for word, following in pairwise(args):
        if word == "--config":
            check_file(Path(following))
    try:
        _Reading(args, builds=builds)
    except _Parsed as parsed:
        return parsed.config
    raise AssertionError("a command line that is read ends when it is parsed")


class _Parsed(Exception):  # noqa: N818  (no error)
    """Ends a command line that was to be read, not run."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__("parsed")
        self.config = config


class _Reading(CommandLine):
    """A command line that is read, not run."""

    def __init__(self, args: Sequence[str], *, builds: bool) -> None:
        self.builds = builds
        super().__init__("fit", args, None, Held())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and end there."""
        super().parse_arguments(parser, args)
        self.subcommand = self.config.subcommand
        config = self.plain_config()
        if self.builds:
            of_fit = self.config[self.subcommand].clone()
            del of_fit.trainer  # whose loggers would begin to write
            with refusing():
                model: Classifier = self._parser(self.subcommand).instantiate_classes(of_fit).model
            check_phases(model, config)
        raise _Parsed(config)


BATCHES = 100
"""Of an epoch, for schedules that are made before the images are at hand."""


def check_phases(model: Classifier, config: Mapping[str, Any]) -> None:
    """Refuse optimizers and schedules that refuse their settings, or cannot step.

    Args:
        model: with the network to train.
        config: the whole configuration, in plain values.

    Raises:
        UserError: one of them does.
    """
    epochs = config["trainer"]["max_epochs"]
    trainer = SimpleNamespace(max_epochs=epochs, limit_train_batches=1.0, accumulate_grad_batches=1)
    phases = make_phases(
        model.optimizer,
        model.schedule,
        model.fine_tuning,
        prune_epoch=config["pruning"]["epoch"],
        trainer=cast(Trainer, trainer),
        batches=BATCHES,
    )
    check_training(
        cast(Trainer, trainer),
        model.network,
        phases,
        model.adversarial_training,
        config["pruning"]["epoch"],
    )
