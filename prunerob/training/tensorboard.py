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
    settings: dict[str, str | float] = {}
    _flatten({key: config[key] for key in ("seed_everything", "model", "pruning")}, "", settings)
    for writer in writers(trainer):
        writer.add_text(f"{name} robustness", robustness.to_markdown())
        results = {f"hp/{row.attack}": row.accuracy for row in robustness.rows}
        writer.add_hparams(settings, results, run_name=name)


def _flatten(value: object, name: str, into: dict[str, str | float]) -> None:
    """Collect the settings that distinguish runs, by their keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if name not in ("model.attacks", "model.worst_case_attacks"):
                _flatten(inner, f"{name}.{key}" if name else str(key), into)
    elif value is not None:
        into[name.replace(".init_args", "")] = value if isinstance(value, float) else str(value)
