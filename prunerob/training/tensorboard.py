"""What runs show in TensorBoard beyond their scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.utils import make_grid

from prunerob.robustness.measure import Examples
from prunerob.robustness.table import Robustness

if TYPE_CHECKING:
    from prunerob.pruning.counts import Layer, Shares


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """The TensorBoard writers of a Trainer; none without a TensorBoardLogger."""
    return [log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)]


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


def log_shares(trainer: Trainer, layers: Sequence[Layer], shares: Shares) -> None:
    """The share pruned of each layer, and by the three readings."""
    for writer in writers(trainer):
        for layer in layers:
            writer.add_scalar(f"pruned/{layer.name}", layer.share_pruned, trainer.global_step)
        for reading in ("filters", "weights", "parameters"):
            share = getattr(shares, reading)
            writer.add_scalar(f"pruned share/{reading}", share, trainer.global_step)


def log_examples(trainer: Trainer, tag: str, examples: Examples, *, columns: int = 10) -> None:
    """A grid of images, adversarial examples and magnified perturbations, with predictions.

    Args:
        trainer: says where to write.
        tag: of the picture, with the attack's name.
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
    told = ", ".join(f"{label}: {clean} → {attacked}" for label, clean, attacked in predictions)
    for writer in writers(trainer):
        writer.add_image(tag, grid)
        writer.add_text(tag, f"label: prediction clean → attacked, by column: {told}")


def log_robustness(
    trainer: Trainer, name: str, robustness: Robustness, settings: Mapping[str, str | float]
) -> None:
    """Add the table, and the hyper-parameters with the accuracies they led to."""
    for writer in writers(trainer):
        writer.add_text(f"{name} robustness", robustness.to_markdown())
        results = {f"hp/{row.attack}": row.accuracy for row in robustness.rows}
        writer.add_hparams(dict(settings), results, run_name=name)
