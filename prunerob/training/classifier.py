"""The Classifier: one training step, one validation step, one test step.

A training step: `training_step` makes adversarial examples (`AdversarialTraining.perturb` calls an
attack; PGD's loop is `attacks.pgd.climb`) and returns the loss; after the optimizer's step, the
Pruning callback sets pruned weights back to 0.

A test: `robustness.measure.Measurement` lets black boxes learn (`begin`), runs every attack on a
batch (`step`), makes the table and looks at how far it can be trusted (`end`);
`commands.lightning` writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn

from prunerob.attacks import Attack, NoAttack
from prunerob.attacks.suite import Suite
from prunerob.data.batches import Batch, Batches
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.networks.attacked import AttackedNetwork
from prunerob.networks.modes import evaluating
from prunerob.networks.narrow import find_narrowing
from prunerob.noise import image_keys
from prunerob.robustness.journal import Journal
from prunerob.robustness.measure import Measurement, in_float32
from prunerob.robustness.table import Robustness
from prunerob.runs.ranks import broadcast_buffers, check_agreement, ranks
from prunerob.schedules import Constant, Schedule
from prunerob.training import checks
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.averaging import Averaging
from prunerob.training.loggers import log_examples, log_step
from prunerob.training.phases import (
    FINE_TUNING,
    TRAINING,
    FineTuning,
    Phase,
    make_phases,
    make_trainings,
)
from prunerob.training.teacher import Teacher
from prunerob.training.validation import DESCRIPTIONS, PROBED, Counts, Validation
from prunerob.training.weight_perturbation import WeightPerturbation


class Classifier(LightningModule):
    """Trains an image classifier, adversarially if asked, and measures its robustness.

    Args:
        network: from images (B, C, H, W), pixels in [0, 1], to logits (B, classes).
        optimizer: the optimizer's class and settings, without the parameters.
        attacks: the test suite: each attack under the name of its row in the table.
        worst_case_attacks: attacks, by name, that count in the table's worst case alone: they go
            for the images that no other has got wrong, and stop on one where they succeed.
        scrutinized_images: number of test images, stratified by class, on which a test looks for
            what makes attacks too weak, and tries them with five times the work; 0 for none.
        schedule: how the learning rate runs over the training epochs.
        fine_tuning: optimizer and schedule from the prune epoch on.
        adversarial_training: what a training step adds to the clean images.
        averaging: decay of an average of the weights over the steps, in [0, 1), 0.995 for example;
            the average is what is validated, saved, pruned and tested. null for none.
        validation_attack: attack of every epoch's validation.
        validation_attack_images: number of validation images that it attacks, stratified by
            class; 0 for none.
        validation_probe_images: number of those on which every epoch's validation also looks, with
            short attacks of other kinds, for what the validation attack misses; 0 for none.
        weights: a file of trained weights that a new run begins with: .safetensors, or a state
            dict in .pt or .pth.
        seed: of all noise in attacks; set from `seed_everything`.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        optimizer: OptimizerCallable,
        attacks: dict[str, Attack],
        schedule: Schedule = Constant(),
        fine_tuning: FineTuning = FineTuning(),
        adversarial_training: AdversarialTraining = AdversarialTraining(),
        averaging: float | None = None,
        validation_attack: Attack = NoAttack(),
        validation_attack_images: int = 500,
        validation_probe_images: int = 100,
        worst_case_attacks: dict[str, Attack] = {},  # noqa: B006  (never changed)
        scrutinized_images: int = 500,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        checks.check_attacks(
            attacks,
            worst_case_attacks,
            validation_attack,
            *(adversarial_training.attack, fine_tuning.attack),
        )
        checks.check_counts(
            validation_attack_images=validation_attack_images,
            validation_probe_images=validation_probe_images,
            scrutinized_images=scrutinized_images,
        )
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.fine_tuning = fine_tuning
        self.adversarial_training = adversarial_training
        self.trainings = make_trainings(adversarial_training, fine_tuning)
        """Adversarial training in each phase, by its name."""
        self._weight_perturbation = WeightPerturbation(adversarial_training.weight_perturbation)
        self.averaging = Averaging(averaging)
        self.teacher: Teacher | None = None
        """The network before pruning, where fine-tuning's objective distils it."""
        self.validation_attack = validation_attack
        self.validation_attack_images = validation_attack_images
        self.validation_probe_images = validation_probe_images
        self.suite = Suite(attacks, worst_case_attacks)
        self.scrutinized_images = scrutinized_images
        self.weights = weights
        self.seed = seed
        self.prune_epoch: int | None = None
        """Epoch in which fine-tuning begins; set by the Pruning callback, None without pruning."""
        self.pruning_epochs = 0
        """Epochs of fine-tuning in which more is pruned still; set by the Pruning callback."""
        self.round_epochs: int | None = None
        """Epochs after which fine-tuning begins anew, if it does; set by the Pruning callback."""
        self.phase_name = TRAINING
        self.attacked = AttackedNetwork(network)
        """The network as attacks and evaluation see it."""
        self.running: dict[str, Tensor] = {}
        """Numbers of the latest training step, for the progress bar."""
        self.on_attack: Callable[[str], None] = lambda name: None
        """Called with the name of each attack before it runs on a test batch."""
        self.test_name = "test"
        """Of the test in TensorBoard, where those of several checkpoints stand side by side."""
        self.journal: Journal | None = None
        """In which a test keeps what it has measured, to go on if it is killed."""
        self.before_pruning: nn.Module | None = None
        """Whose adversarial examples a test tries on the network."""
        self.robustness: Robustness | None = None
        """What the latest test measured."""
        self._validation = self._new_validation()
        self._measurement: Measurement | None = None
        self._final_counts: Counts | None = None
        self._warned: set[tuple[str, str]] = set()
        """Warnings of validations that were given, each with its phase."""
        self._may_be_infinite: set[str] = set()
        """Names of buffers that are not finite on purpose."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (B, C, H, W), pixels in [0, 1], into logits (B, classes)."""
        logits: Tensor = self.network(x)
        return logits

    @property
    def datamodule(self) -> ImageDataModule:
        """The images of the command that runs."""
        return cast(ImageDataModule, cast(Any, self.trainer).datamodule)

    # Phases

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases of the run, by name."""
        return make_phases(
            self.optimizer,
            self.schedule,
            self.fine_tuning,
            prune_epoch=self.prune_epoch,
            round_epochs=self.round_epochs,
            trainer=self.trainer,
            batches=len(self.datamodule.train_dataloader()),
        )

    @property
    def phase(self) -> Phase:
        """The phase that the run is in."""
        return self.phases[self.phase_name]

    # Training

    def setup(self, stage: str) -> None:
        """Lay the network out, and refuse settings that make no sense in either phase.

        Raises:
            UserError: the precision or the settings of a phase make no sense.
        """
        checks.check_precision(self.trainer)
        checks.choose_layout(self.network, self.datamodule.image_shape, self.device)
        self.attacked = AttackedNetwork(self.network)
        self._final_counts = None
        if stage == "fit":
            training, network = self.adversarial_training, self.network
            checks.check_training(self.trainer, network, self.phases, training, self.prune_epoch)

    def configure_callbacks(self) -> list[Callback]:
        """What averages the weights, if that is asked for."""
        return [self.averaging]

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Optimizer and schedule of the phase; called at the start of each."""
        return self.phase.configure(self.network)

    def on_fit_start(self) -> None:
        """Refuse a network that does not fit the images or their labels, before it trains."""
        self._may_be_infinite = checks.infinite_buffers(self.network)
        batches = self.datamodule.train_dataloader()
        checks.check_images(self.network, batches, self.trainer)
        if not any(t.doubles_batches(self.network) for t in self.trainings.values()):
            checks.check_last_batch(self.network, batches, self.device)

    def on_train_epoch_start(self) -> None:
        """Draw what layers like dropout draw by seed and epoch, so that a resumed run does, too."""
        entropy = [self.seed, self.current_epoch, self.trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on clean images and, in the same step, on adversarial examples of them."""
        x, y, index = batch
        n, several = len(y), ranks() > 1
        training, teacher = self.trainings[self.phase_name], self.teacher
        key = image_keys(index, seed=self.seed, purpose="training", epoch=self.current_epoch)
        begun = self.prune_epoch or 0 if self.phase_name == FINE_TUNING else 0
        epochs = self.current_epoch - begun + batch_idx / self.trainer.num_training_batches
        ramp = training.ramp(epochs)
        x_adv = training.perturb(self.attacked(x), x, y, key=key, ramp=ramp, teacher=teacher)
        # Ranks may have different numbers of images; their gradients are averaged as equals.
        share = cast(Batches, self.trainer.train_dataloader).weight(batch_idx) if several else 1
        if training.perturbs_weights(epochs):
            self._weight_perturbation.perturb(
                self.network,
                lambda: training.loss(self.network, x, x_adv, y, teacher)[0],
                share=share,
            )
        loss, accuracies = training.loss(self.network, x, x_adv, y, teacher)
        self.running = {f"accuracy/train_{name}": value for name, value in accuracies.items()}
        self.running["loss/train"] = loss.detach()
        self.log_dict(self.running, on_step=False, on_epoch=True, sync_dist=several, batch_size=n)
        return loss * share if several else loss

    def on_after_backward(self) -> None:
        """Take the perturbation of the weights back, before anything else sees them."""
        self._weight_perturbation.restore()

    def on_train_epoch_end(self) -> None:
        """See that the network is sound and the same on all ranks, before it is saved.

        Raises:
            UserError: training has diverged.
        """
        log_step(self)
        broadcast_buffers(self.network)
        checks.check_finite(self.network, self.current_epoch + 1, self._may_be_infinite)
        check_agreement(f"after epoch {self.current_epoch + 1}", self.network.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the phase, whose optimizer's state it is."""
        checkpoint["phase"] = self.phase_name
        checkpoint["phase_steps"] = self.phase.steps
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the phase, before the optimizers are made.

        Raises:
            UserError: the checkpoint is not of `fit`, or its schedule does not fit this run.
        """
        if not {"phase", "phase_steps"} <= checkpoint.keys():
            raise UserError("ckpt_path: not a checkpoint of prunerob fit, so it cannot go on")
        self.phase_name = checkpoint["phase"]
        if self.phase_name not in self.phases:
            raise UserError(
                "pruning.epoch: null, but the checkpoint is one of fine-tuning; set it as it was"
            )
        if self.trainings[self.phase_name].objective.needs_teacher:
            if "teacher" not in checkpoint:
                raise UserError(
                    "model.fine_tuning.objective: the checkpoint holds no teacher; go on from the "
                    "run's checkpoints/before_pruning.ckpt"
                )
            self.teacher = Teacher(self.network, checkpoint["teacher"])
        if not (self.phase_name == TRAINING and checkpoint["epoch"] + 1 == self.prune_epoch):
            checks.check_phase(self.phase, checkpoint["phase_steps"])

    # Validation

    def _new_validation(self, *, attack_all: bool = False) -> Validation:
        images = self.validation_attack_images
        return Validation(
            self.validation_attack,
            self.trainings[self.phase_name].attack,
            attacked_images=sys.maxsize if images and attack_all else images,
            probed_images=self.validation_probe_images,
            attacked=lambda x: self.attacked(x),
            seed=self.seed,
        )

    def on_validation_epoch_start(self) -> None:
        """Begin to count the images, with the same network on all ranks.

        Raises:
            UserError: validation on its own, of a network that does not fit the images.
        """
        if self.trainer.state.fn != TrainerFn.FITTING:
            checks.check_images(self.network, cast(Any, self.trainer).val_dataloaders, self.trainer)
            self.attacked = AttackedNetwork(self.network, find_narrowing(self.network))
        broadcast_buffers(self.network)
        self._validation = self._new_validation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy on clean images and, on the first ones, under the validation attack."""
        batches = cast(Batches, self.trainer.val_dataloaders)
        self._validation.step(batch, batches.first(batch_idx))

    def on_validation_epoch_end(self) -> None:
        """Count over all ranks; warn, once in a phase, where robustness is not what it seems."""
        counts = self._validation.counts()
        for name, (right, images) in counts.items():
            if name != PROBED:
                self.log(f"accuracy/validation_{name}", right / images, prog_bar=True)
        log_step(self)
        for describe in DESCRIPTIONS:
            warning = describe(counts, self.current_epoch + 1)
            if warning and (describe.__name__, self.phase_name) not in self._warned:
                self._warned.add((describe.__name__, self.phase_name))
                rank_zero_warn(warning)

    def measure(self, *, attack_all: bool = False) -> Counts:
        """Validation accuracies, outside the Trainer's loops; all ranks together.

        Args:
            attack_all: attack all images, not only the first ones.
        """
        validation = self._new_validation(attack_all=attack_all)
        with evaluating(self), self.averaging.swapped(self.network):
            broadcast_buffers(self.network)
            return validation.all_of(self.datamodule.val_dataloader(), self.device)

    def final_validation(self) -> Counts:
        """Accuracies on all validation images at the end of training, measured once."""
        self.averaging.take(self.network)
        if self._final_counts is None:
            self._final_counts = self.measure(attack_all=True)
        return self._final_counts

    # Test

    def on_test_epoch_start(self) -> None:
        """Begin to measure.

        Raises:
            UserError: the network does not fit the images.
        """
        checks.check_images(self.network, cast(Any, self.trainer).test_dataloaders, self.trainer)
        self._measurement = Measurement(
            self.suite,
            attacked=AttackedNetwork(self.network, find_narrowing(self.network)),
            data=self.datamodule,
            device=self.device,
            scrutinized_images=self.scrutinized_images,
            seed=self.seed,
            on_attack=lambda name: self.on_attack(name),
            on_examples=partial(log_examples, self.trainer, self.test_name),
            journal=self.journal,
            before=self.before_pruning and AttackedNetwork(self.before_pruning.to(self.device)),
        )
        self._measurement.begin()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack a batch with every attack of the suite."""
        cast(Measurement, self._measurement).step(batch)

    def on_test_epoch_end(self) -> None:
        """Sum up into the table."""
        self.robustness = cast(Measurement, self._measurement).end()
        for row in self.robustness.rows:
            self.log(f"{self.test_name}/{row.attack}", row.accuracy, logger=False)

    # Prediction

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Positions of the images, int64, (B,), and their probabilities, float32, (B, classes)."""
        if batch_idx == 0:
            batches = cast(Any, self.trainer).predict_dataloaders
            checks.check_images(self.network, batches, self.trainer)
        with in_float32(self.device):
            return batch.indices, self(batch.x).float().softmax(1)
