"""What runs show in TensorBoard beyond their scalars."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.utils import make_grid

from prunerob.robustness.measure import Examples
from prunerob.robustness.table import Robustness


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
                    f"network/{name}/{when}", parameter.detach(), trainer.global_step
                )


def log_shares(trainer: Trainer, shares: Mapping[str, float]) -> None:
    """Shares pruned, in [0, 1], by the tag of their curve."""
    for writer in writers(trainer):
        for tag, share in shares.items():
            writer.add_scalar(tag, share, trainer.global_step)


def log_examples(trainer: Trainer, test: str, examples: Examples, *, columns: int = 10) -> None:
    """A grid of images, adversarial examples and magnified perturbations, with predictions.

    Args:
        trainer: says where to write.
        test: the test's name; a tag has the attack's, too.
        examples: of one batch.
        columns: how many of them to show.
    """
    x, x_adv, labels, before, after = (
        values[:columns]
        for values in (
            *(examples.x, examples.x_adv, examples.labels),
            *(examples.before, examples.after),
        )
    )
    change = x_adv - x
    # Grey is no change; the largest change in the grid is black or white.
    magnified = 0.5 + change / (2 * change.abs().max().clamp(min=1e-12))
    grid = make_grid(torch.cat([x, x_adv, magnified]).cpu(), nrow=len(x), pad_value=0.3)
    predictions = zip(labels.tolist(), before.tolist(), after.tolist(), strict=True)
    text = ", ".join(f"{label}: {clean} → {attacked}" for label, clean, attacked in predictions)
    tag = f"{test} examples/{examples.attack}"
    for writer in writers(trainer):
        writer.add_image(tag, grid)
        writer.add_text(tag, f"label: prediction clean → attacked, by column: {text}")


def log_robustness(
    trainer: Trainer, name: str, robustness: Robustness, config: Mapping[str, Any]
) -> None:
    """The table of a test, and the hyper-parameters with the accuracies that they led to.

    Args:
        trainer: says where to write.
        name: of the test.
        robustness: its result.
        config: the configuration, in plain values.
    """
    settings = hyper_parameters(config)
    for writer in writers(trainer):
        writer.add_text(f"{name} robustness", robustness.to_markdown())
        results = {f"hp/{row.attack}": row.accuracy for row in robustness.rows}
        writer.add_hparams(settings, results, run_name=name)


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
