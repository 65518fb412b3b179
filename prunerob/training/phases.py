"""The phases of a run: training, and from the prune epoch on fine-tuning."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import nn

from prunerob.attacks import Attack
from prunerob.errors import UserError, first_line
from prunerob.schedules import Schedule
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.objectives import Objective

TRAINING, FINE_TUNING = "training", "fine-tuning"


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What fine-tuning, the phase that begins at the prune epoch, has of its own.

    Args:
        optimizer: as for training; null for the same.
        schedule: as for training; null for the same.
        attack: as `adversarial_training.attack`; null for the same. One with a uniform start
            (`start_std: 0`) hides less of a pruned network's gradients.
        objective: as `adversarial_training.objective`; null for the same. Here the network before
            pruning can teach: `ARD` or `RSLAD` of `prunerob.training.objectives`.
        ramp_epochs: epochs over which eps grows again from 0, for a network that pruning has
            broken; 0 for none.
    """

    optimizer: OptimizerCallable | None = None
    schedule: Schedule | None = None
    attack: Attack | None = None
    objective: Objective | None = None
    ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not self.ramp_epochs >= 0:
            raise ValueError(f"fine_tuning.ramp_epochs: {self.ramp_epochs} is below 0")

    def of(self, training: AdversarialTraining) -> AdversarialTraining:
        """Adversarial training as fine-tuning does it.

        Args:
            training: as training does it.

        Raises:
            ValueError: the objective does not fit the attack.
        """
        attack = self.attack or training.attack
        if self.objective is None or not attack.perturbs:
            return replace(training, attack=attack, ramp_epochs=self.ramp_epochs)
        return replace(
            training,
            attack=attack,
            ramp_epochs=self.ramp_epochs,
            objective=self.objective,
            weight=training.weight if self.objective.has_weight else 0.5,
        )


def make_trainings(
    training: AdversarialTraining, fine_tuning: FineTuning
) -> dict[str, AdversarialTraining]:
    """Adversarial training in each phase, by the phase's name.

    Args:
        training: of the first phase.
        fine_tuning: what the second has of its own.

    Raises:
        UserError: an objective does not fit its phase or the attack.
    """
    if training.objective.needs_teacher:
        name = type(training.objective).__name__
        raise UserError(
            f"model.adversarial_training.objective: in {name} the network before pruning teaches; "
            "set it as model.fine_tuning.objective"
        )
    try:
        return {TRAINING: training, FINE_TUNING: fine_tuning.of(training)}
    except ValueError as error:
        key = "objective" if fine_tuning.attack is None else "attack"
        raise UserError(f"model.fine_tuning.{key}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some epochs with an optimizer and a schedule of their own.

    Args:
        name: `TRAINING` or `FINE_TUNING`.
        optimizer: the optimizer's class and settings, without the parameters.
        schedule: how the learning rate runs over the phase.
        steps: optimizer steps that it takes.
        keys: of the configuration that it is made from, for errors.
    """

    name: str
    optimizer: OptimizerCallable
    schedule: Schedule
    steps: int
    keys: str

    def configure(self, network: nn.Module) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Build the optimizer of a network's parameters, and its schedule.

        Args:
            network: to train.

        Returns:
            as Lightning's `configure_optimizers`.
        """
        optimizer = self.optimizer(network.parameters())
        scheduler = self.schedule(optimizer, self.steps)
        if scheduler is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def check(self, network: nn.Module) -> None:
        """Build both for weights of the same form, and try a step, to refuse bad settings early.

        Raises:
            UserError: the optimizer or the schedule refuses its settings, or cannot step.
        """
        trial = copy.deepcopy(network)
        for parameter in trial.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        try:
            made = cast(dict[str, Any], self.configure(trial))
        except UserError:
            raise
        except Exception as error:  # torch's own check few of their settings
            raise UserError(f"{self.keys}: {first_line(error)}") from None
        try:
            made["optimizer"].step(lambda: torch.zeros(()))
            if "lr_scheduler" in made:
                made["lr_scheduler"]["scheduler"].step()
        except Exception as error:  # one of the user's may fail in any way
            why = f"{first_line(error):.300}"
            raise UserError(f"{self.keys}: cannot train this network: {why}") from None


def make_phases(
    optimizer: OptimizerCallable,
    schedule: Schedule,
    fine_tuning: FineTuning,
    *,
    prune_epoch: int | None,
    round_epochs: int | None = None,
    trainer: Trainer,
    batches: int,
) -> dict[str, Phase]:
    """The phases of a run, by name, in order.

    Args:
        optimizer: of training.
        schedule: of training.
        fine_tuning: what it has of its own.
        prune_epoch: in which fine-tuning begins; None for never.
        round_epochs: after which it begins anew; None where it does not.
        trainer: says how many epochs there are; may limit and accumulate batches.
        batches: of an epoch.
    """
    epochs, limit = trainer.max_epochs or 0, trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def steps(epochs: int) -> int:
        return max(1, epochs * math.ceil(batches / trainer.accumulate_grad_batches))

    training = Phase(
        name=TRAINING,
        optimizer=optimizer,
        schedule=schedule,
        steps=steps(epochs if prune_epoch is None else prune_epoch),
        keys="model.optimizer or model.schedule",
    )
    if prune_epoch is None:
        return {TRAINING: training}
    pruned = Phase(
        name=FINE_TUNING,
        optimizer=fine_tuning.optimizer or optimizer,
        schedule=fine_tuning.schedule or schedule,
        steps=steps(round_epochs or epochs - prune_epoch),
        keys="model.fine_tuning",
    )
    return {TRAINING: training, FINE_TUNING: pruned}
