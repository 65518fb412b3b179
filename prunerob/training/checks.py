"""Checks of a network before it trains, is tested or is saved."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from prunerob.attacks import Attack
from prunerob.attacks.attack import has_bfloat16
from prunerob.data.batches import Batches
from prunerob.errors import UserError
from prunerob.networks.modes import evaluating
from prunerob.networks.rewrite import AsItIs, survives_channels_last
from prunerob.robustness.table import WORST_CASE
from prunerob.runs.ranks import ranks
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.phases import Phase


def check_precision(trainer: Trainer) -> None:
    """Refuse precisions in which adversarial examples would not be float32; warn of slow training.

    Raises:
        UserError: it is one of those.
    """
    precision = str(trainer.precision)
    if "true" in precision and precision != "32-true":
        raise UserError(
            f"trainer.precision: {precision} would make adversarial examples in another "
            "precision than float32; use 32-true or a mixed precision"
        )
    device = trainer.strategy.root_device.type
    is_training = trainer.state.fn == TrainerFn.FITTING and precision == "bf16-mixed"
    if is_training and device in ("cpu", "cuda") and not has_bfloat16(device):
        rank_zero_warn(
            f"trainer.precision: this {'CPU' if device == 'cpu' else 'GPU'} has no instructions "
            "for bfloat16, and training in bf16-mixed may be many times slower than in float32; "
            "faster: --trainer.precision 32-true"
        )


def check_training(
    trainer: Trainer,
    network: nn.Module,
    phases: Mapping[str, Phase],
    training: AdversarialTraining,
    prune_epoch: int | None,
) -> None:
    """Refuse settings that make no sense in any of the phases, or in one of them.

    Args:
        trainer: says how many epochs there are.
        network: to train.
        phases: of the run, by name.
        training: adversarial training in all of them.
        prune_epoch: in which fine-tuning begins; None for never.

    Raises:
        UserError: there are such settings.
    """
    for phase in phases.values():
        phase.check(network)
    epochs, begins = trainer.max_epochs or 0, prune_epoch or 0
    warmup, longest = training.weight_perturbation_warmup, max(begins, epochs - begins)
    if training.weight_perturbation and 0 < longest <= warmup:
        raise UserError(
            f"model.adversarial_training.weight_perturbation_warmup: {warmup:g} epochs, but no "
            f"phase of this run has more than {longest}, so that weight_perturbation never "
            "begins; lower it, or set weight_perturbation to 0"
        )


def check_counts(**images: int) -> None:
    """See that numbers of images, each under the name of its setting, are 0 or more.

    Raises:
        UserError: one is not.
    """
    for name, number in images.items():
        if number < 0:
            raise UserError(f"model.{name}: {number} is below 0")


def check_phase(phase: Phase, saved: int) -> None:
    """See that the schedule of a phase goes on where a checkpoint's left off.

    Args:
        phase: that training goes on with.
        saved: steps of the checkpoint's.

    Raises:
        UserError: it does not.
    """
    if phase.steps != saved and phase.schedule.follows_phase:
        raise UserError(
            f"ckpt_path: the schedule of the checkpoint's phase runs over {saved} steps, but "
            f"this configuration's over {phase.steps}; keep trainer.max_epochs, pruning.epoch and "
            "the batches as they were, or branch from before_pruning.ckpt"
        )


def check_attacks(
    attacks: Mapping[str, Attack],
    worst_case_attacks: Mapping[str, Attack],
    validation: Attack,
    training: Attack,
    fine_tuning: Attack | None = None,
) -> None:
    """See that each attack has a name of its own and stands where it can do its work.

    Args:
        attacks: of a test, by name.
        worst_case_attacks: those that count in its worst case alone.
        validation: attack of validation.
        training: attack of training.
        fine_tuning: attack of fine-tuning, if it has one of its own.

    Raises:
        UserError: one does not.
    """
    taken = {"clean", "natural", WORST_CASE}
    for group, suite in (("attacks", attacks), ("worst_case_attacks", worst_case_attacks)):
        if again := sorted(taken & suite.keys()):
            raise UserError(f"model.{group}: {again[0]!r} is the name of something else already")
        for name in suite:
            if not name.strip() or not name.isprintable():
                raise UserError(f"model.{group}: {name!r} is no name that a table can show")
        taken |= suite.keys()
    for group, others in (
        ("adversarial_training", [training]),
        ("fine_tuning", [fine_tuning] if fine_tuning else []),
        ("validation_attack", [validation]),
        ("worst_case_attacks", worst_case_attacks.values()),
    ):
        if any(attack.learns or attack.sample for attack in others):
            raise UserError(
                f"model.{group}: an attack that learns before a test, or is tried on some "
                "test images, belongs to model.attacks"
            )
    for group, others in (
        ("attacks", attacks.values()),
        ("worst_case_attacks", worst_case_attacks.values()),
        ("validation_attack", [validation]),
    ):
        for attack in others:
            if not attack.stays_in_ball:
                raise UserError(
                    f"model.{group}: examples of {attack.name} lie outside eps; it serves "
                    "model.adversarial_training alone"
                )


def check_images(network: nn.Module, batches: Batches, trainer: Trainer) -> None:
    """See that a network takes the images and has a class for each label.

    Args:
        network: where it will run.
        batches: of the images.
        trainer: says in which precision.

    Raises:
        UserError: it cannot classify an image, or has too few classes.
    """
    x = next(iter(batches)).x[:1].to(trainer.strategy.root_device)
    if not len(x):  # of a rank that has none to evaluate
        return
    name, shape = type(network).__name__, tuple(x.shape[1:])
    precision = trainer.precision_plugin
    try:
        with precision.forward_context():
            answer = _answer(network, precision.convert_input(x))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"model.network: {name} does not take images {shape}: {error}") from None
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != 1:
        form = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(f"model.network: {name} answers {form} for an image, not (1, classes)")
    classes = answer.shape[1]
    labels = int(batches.images.labels.max()) + 1
    if labels > classes:
        raise UserError(f"model.network: {name} has {classes} classes, but the data {labels}")


def check_last_batch(network: nn.Module, batches: Batches, device: torch.device) -> None:
    """See that normalisations can train on a last batch of which a device gets one image.

    Raises:
        UserError: they cannot.
    """
    last = len(batches.index) % batches.size or batches.size
    if last // ranks() > 1:
        return
    trial = copy.deepcopy(network).train()
    try:
        with torch.no_grad():
            trial(next(iter(batches)).x[:1].to(device))
    except ValueError as error:
        raise UserError(
            f"data.batch_size: the last batch has one image for a device, which "
            f"{type(trial).__name__} cannot train on ({error}); choose another data.train_size "
            "or batch_size"
        ) from None


def infinite_buffers(network: nn.Module) -> set[str]:
    """Names of the buffers that are not finite on purpose: they were so before training."""
    return {name for name, value in network.named_buffers() if not bool(value.isfinite().all())}


def check_finite(network: nn.Module, epoch: int, but: Collection[str]) -> None:
    """See that a network is sound before it is saved.

    Args:
        network: after an epoch.
        epoch: its number, from 1.
        but: names of what need not be finite.

    Raises:
        UserError: training has diverged.
    """
    for name, value in network.state_dict().items():
        if name not in but and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"training diverged: in epoch {epoch}, {name} is no longer finite; lower "
                "model.optimizer.lr or set trainer.gradient_clip_val. Nothing of this epoch is "
                "saved"
            )


def choose_layout(network: nn.Module, shape: torch.Size, device: torch.device) -> None:
    """Lay a network out channels-last, in which convolutions of all devices are faster.

    Plainly, if its code takes nothing else, as `x.view(-1, 400)` does, or if a processor could not
    train it so. All ranks choose the same.

    Args:
        network: is changed in place.
        shape: of the images, (C, H, W).
        device: on which it is.
    """
    if device.type == "cpu" and not survives_channels_last(network):
        network.to(memory_format=torch.contiguous_format)
        return
    x = torch.zeros(2, *shape, device=device)
    for layout in (torch.channels_last, torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout)
        try:
            _answer(network, x)
        except Exception:  # a network of the user's may fail in any way; `check_images` says how
            continue
        return


def _answer(network: nn.Module, x: Tensor) -> Tensor:
    """Logits for images in the layout that attacks give them, without a trace."""
    with torch.no_grad(), evaluating(network):
        logits: Tensor = network(AsItIs(network).pack(x))
    return logits
