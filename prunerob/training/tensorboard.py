"""What runs show in TensorBoard alone: histograms and hyper-parameters."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.tensorboard.writer import SummaryWriter


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """The TensorBoard writers of a Trainer; none without a TensorBoardLogger."""
    return [log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)]


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Let TensorBoard's threads print no traceback: what stops one, it hands to the next call."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def log_weight_histograms(trainer: Trainer, network: nn.Module, when: str) -> None:
    """A histogram of each layer's weights; pruned ones show as the peak at 0.

    Args:
        trainer: says where to write and at which step.
        network: whose weights.
        when: the moment, part of the tag.
    """
    for writer in writers(trainer):
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                writer.add_histogram(
                    f"weights/{name}/{when}", parameter.detach(), trainer.global_step
                )


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, str | float]:
    """The settings that runs are compared by, under short names; classes by theirs.

    Args:
        config: the configuration, in plain values.
    """
    model, pruning = config["model"], config["pruning"]
    training, tuning = model["adversarial_training"], model["fine_tuning"]
    attack = training["attack"]
    found = {
        "pruning.amount": pruning["amount"],
        "pruning.criterion": _name(pruning["criterion"]),
        "pruning.schedule": _name(pruning["schedule"]),
        "pruning.epoch": pruning["epoch"],
        "epochs": config["trainer"]["max_epochs"],
        "seed": config["seed_everything"],
        "network": _name(model["network"]),
        "attack": _name(attack),
        "eps": _settings(attack).get("eps"),
        "objective": _name(training["objective"]),
        "optimizer": _name(model["optimizer"]),
        "lr": _settings(model["optimizer"]).get("lr"),
        "fine-tuning lr": _settings(tuning["optimizer"] or model["optimizer"]).get("lr"),
    }
    return {
        key: value if isinstance(value, int | float) else str(value)
        for key, value in found.items()
        if value is not None
    }


def _name(setting: object) -> object:
    """The last part of the path of a class or function."""
    path = setting.get("class_path") if isinstance(setting, Mapping) else setting
    return path.rpartition(".")[2] if isinstance(path, str) else path


def _settings(setting: object) -> Mapping[str, Any]:
    """What a class is made with."""
    return (setting.get("init_args") or {}) if isinstance(setting, Mapping) else {}
