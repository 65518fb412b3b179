"""The Classifier: one training step, one validation step, one test step.

A training step: `training_step` makes adversarial examples (`AdversarialTraining.perturb` calls an
attack; PGD's loop is `attacks.pgd.climb`) and returns the loss; after the optimizer's step, the
Pruning callback sets pruned weights back to 0.

A test: `on_test_epoch_start` lets black boxes learn, `test_step` runs every attack on a batch, and
`on_test_epoch_end` makes the table and looks at how far it can be trusted;
`commands.CommandLine.test` writes it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerob.attacks import PGD, Attack, NoAttack
from prunerob.attacks.attack import evaluating
from prunerob.attacks.pgd import logit_margin
from prunerob.attacks.suite import is_one_step, perturb_by_each
from prunerob.data.images import Batch, Batches, ImageDataModule
from prunerob.errors import UserError
from prunerob.networks.narrow import NarrowCopy, Narrowing, find_narrowing
from prunerob.networks.rewrite import AsItIs
from prunerob.noise import image_keys
from prunerob.pixels import Pixels
from prunerob.robustness.diagnostics import overfits_to_one_step
from prunerob.robustness.scrutiny import scrutinize, sum_up
from prunerob.robustness.table import WORST_CASE, Robustness, RobustnessRecorder, Scrutiny
from prunerob.runs.ranks import broadcast_buffers, broadcast_object, check_agreement, gather, ranks
from prunerob.schedules import Constant, Schedule
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.tensorboard import log_examples


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Optimizer and schedule of fine-tuning, the phase that begins at the prune epoch.

    Args:
        optimizer: as for training; null for the same.
        schedule: as for training; null for the same.
    """

    optimizer: OptimizerCallable | None = None
    schedule: Schedule | None = None


class Classifier(LightningModule):
    """Trains an image classifier, adversarially if asked, and measures its robustness.

    Args:
        network: from images (B, C, H, W), pixels in [0, 1], to logits (B, classes).
        optimizer: the optimizer's class and settings, without the parameters.
        attacks: the test suite: each attack under the name of its row in the table.
        worst_case_attacks: attacks, by name, that count in the table's worst case alone: they go
            for the images that no other has got wrong, and stop on one where they succeed.
        scrutinized_images: number of test images, stratified by class, on which a test looks for
            gradients that are 0 and tries PGD with five times the steps, and the restarts; 0 for
            none.
        schedule: how the learning rate runs over the training epochs.
        fine_tuning: optimizer and schedule from the prune epoch on.
        adversarial_training: what a training step adds to the clean images.
        validation_attack: attack of every epoch's validation.
        validation_attack_images: number of validation images that it attacks, stratified by
            class; 0 for none.
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
        validation_attack: Attack = NoAttack(),
        validation_attack_images: int = 500,
        worst_case_attacks: dict[str, Attack] = {},  # noqa: B006  (never changed)
        scrutinized_images: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, images in (
            ("validation_attack_images", validation_attack_images),
            ("scrutinized_images", scrutinized_images),
        ):
            if images < 0:
                raise UserError(f"model.{name}: {images} is below 0")
        taken = {"clean", "natural", WORST_CASE}
        for group, suite in (("attacks", attacks), ("worst_case_attacks", worst_case_attacks)):
            if again := sorted(taken & suite.keys()):
                raise UserError(
                    f"model.{group}: {again[0]!r} is the name of something else already"
                )
            taken |= suite.keys()
        for group, others in (
            ("adversarial_training", [adversarial_training.attack]),
            ("validation_attack", [validation_attack]),
            ("worst_case_attacks", worst_case_attacks.values()),
        ):
            if any(attack.learns for attack in others):
                raise UserError(
                    f"model.{group}: an attack that learns before a test belongs to model.attacks"
                )
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.fine_tuning = fine_tuning
        self.adversarial_training = adversarial_training
        self.validation_attack = validation_attack
        self.validation_attack_images = validation_attack_images
        self.attacks = attacks
        self.worst_case_attacks = worst_case_attacks
        self.scrutinized_images = scrutinized_images
        self.seed = seed
        self.prune_epoch: int | None = None
        """Epoch in which fine-tuning begins; set by the Pruning callback, None without pruning."""
        self.is_fine_tuning = False
        self.narrow_copy: NarrowCopy | None = None
        """The network with and without the channels that pruning silenced, where there are any."""
        self.optimizes_narrow = False
        """Whether the optimizers hold the narrow network's parameters."""
        self.running: dict[str, Tensor] = {}
        """Numbers of the latest training step, for the progress bar."""
        self.on_attack: Callable[[str], None] = lambda name: None
        """Told the name of each attack before it runs on a test batch."""
        self.test_name = "test"
        """Of the test in TensorBoard, where those of several checkpoints stand side by side."""
        self.robustness: Robustness | None = None
        """What the latest test found."""
        self._validated_at_last: dict[str, tuple[int, int]] | None = None
        self._phase_told: bool | None = None
        """The phase in which catastrophic overfitting was told: fine-tuning or not."""
        self._agreed = False
        """Whether the narrow copy was seen to answer as the network does."""
        self._infinite: set[str] = set()
        """Buffers that are not finite on purpose."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (B, C, H, W), pixels in [0, 1], into logits (B, classes)."""
        logits: Tensor = self.network(x)
        return logits

    @property
    def datamodule(self) -> ImageDataModule:
        """The images of the command that runs."""
        return cast(ImageDataModule, cast(Any, self.trainer).datamodule)

    @property
    def is_narrow(self) -> bool:
        """Whether the network that is trained has its silent channels taken out."""
        return self.narrow_copy is not None and self.network is self.narrow_copy.narrow

    @property
    def full_network(self) -> nn.Module:
        """The network in its full shape; its weights may be behind while the narrow one trains."""
        return self.narrow_copy.wide if self.narrow_copy else self.network

    def take_channels_out(self, narrowing: Narrowing) -> None:
        """Do without silent channels wherever the network is only attacked or evaluated."""
        self.narrow_copy = NarrowCopy(self.network, narrowing) if narrowing.kept else None
        self._agreed = False

    def train_narrow(self) -> None:
        """Train without the silent channels, too; `widen` ends it."""
        if self.narrow_copy is not None:
            self.network = self.narrow_copy.narrow
            self.optimizes_narrow = True

    def widen(self) -> None:
        """Back to the network in its full shape, with the weights of today."""
        if self.narrow_copy is not None and self.is_narrow:
            self.network = self.narrow_copy.update_wide()

    def evaluation_network(self, x: Tensor) -> nn.Module:
        """The network as attacks and evaluation see it: without its silent channels.

        Args:
            x: images, as examples: the first is asked whether the network can do without.

        Returns:
            the narrow copy, with the weights of today; the network itself where there is none, or
            (told once) where it answers otherwise.
        """
        if self.narrow_copy is None or self.is_narrow:
            return self.network
        if not self._agreed:
            with evaluating(self.network):
                self._agreed = self.narrow_copy.agrees(x[:1])
            if not self._agreed:
                rank_zero_warn(
                    f"{type(self.network).__name__} depends on its number of channels, so those "
                    "that are silent stay in it: attacks are slower than they could be"
                )
                self.narrow_copy = None
                return self.network
        return self.narrow_copy.update_narrow()

    # Training

    def setup(self, stage: str) -> None:
        """Refuse settings of either phase, and start from the network in its full shape.

        Raises:
            UserError: the precision or the settings of a phase make no sense.
        """
        precision = str(self.trainer.precision)
        if "true" in precision and precision != "32-true":
            raise UserError(
                f"trainer.precision: {precision} would make adversarial examples in another "
                "precision than float32; use 32-true or a mixed precision"
            )
        self.widen()
        self.choose_layout()
        self.narrow_copy, self.optimizes_narrow = None, False
        self._validated_at_last = None
        if stage == "fit":
            self._check_optimizers()

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Optimizer and schedule of the phase, training or fine-tuning; called at each's start."""
        built = self.build_optimizer(self.network, is_fine_tuning=self.is_fine_tuning)
        scheduler = self._phase_schedule(built, self._phase_steps())
        if scheduler is None:
            return {"optimizer": built}
        return {"optimizer": built, "lr_scheduler": scheduler}

    def on_fit_start(self) -> None:
        """Refuse a network that does not fit the images or their labels, before it trains."""
        buffers = self.network.named_buffers()
        self._infinite = {name for name, value in buffers if not bool(value.isfinite().all())}
        batches = self.datamodule.train_dataloader()
        self._check_images(batches)
        self._check_last_batch(batches)

    def _check_last_batch(self, batches: Batches) -> None:
        """See that normalisations can train on a last batch of which a device gets one image.

        Raises:
            UserError: they cannot.
        """
        last = len(batches.index) % batches.size or batches.size
        weight = self.adversarial_training.adversarial_weight
        together = 0 < weight < 1 and self.adversarial_training.is_joint(self.network)
        if last // ranks() > 1 or together:
            return
        trial = copy.deepcopy(self.network).train()
        try:
            with torch.no_grad():
                trial(next(iter(batches)).x[:1].to(self.device))
        except ValueError as error:
            raise UserError(
                f"data.batch_size: the last batch has one image for a device, which "
                f"{type(trial).__name__} cannot train on ({error}); choose another data.train_size "
                "or batch_size"
            ) from None

    def _check_images(self, batches: Batches) -> None:
        """See that the network takes the images and has a class for each label.

        Raises:
            UserError: it cannot classify an image, or has too few classes.
        """
        x = next(iter(batches)).x[:1].to(self.device)
        if not len(x):  # of a rank that has none to evaluate
            return
        name, shape = type(self.network).__name__, tuple(x.shape[1:])
        precision = self.trainer.precision_plugin
        try:
            with precision.forward_context():
                classes = self._answer(precision.convert_input(x)).shape[1]
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"model.network: {name} does not take images {shape}: {error}"
            ) from None
        labels = int(batches.images.labels.max()) + 1
        if labels > classes:
            raise UserError(f"model.network: {name} has {classes} classes, but the data {labels}")

    def _answer(self, x: Tensor) -> Tensor:
        """Logits for images in the layout that attacks give them, without a trace."""
        with torch.no_grad(), evaluating(self.network):
            logits: Tensor = self.network(AsItIs(self.network).pack(x))
        return logits

    def choose_layout(self) -> None:
        """Lay the network out channels-last, in which convolutions of all devices are faster.

        Plainly, if its code takes nothing else, as `x.view(-1, 400)` does. All ranks choose the
        same, by the shape of the data's images.
        """
        x = torch.zeros(2, *self.datamodule.image_shape, device=self.device)
        for layout in (torch.channels_last, torch.contiguous_format, torch.channels_last):
            self.network.to(memory_format=layout)
            try:
                self._answer(x)
            except Exception:  # a network of the user's may fail in any way; `_check_images` tells
                continue
            return

    def on_train_epoch_start(self) -> None:
        """Draw what layers like dropout draw by seed and epoch, so that a resumed run does, too."""
        entropy = [self.seed, self.current_epoch, self.trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on clean images and, in the same step, on adversarial examples of them."""
        x, y, index = batch
        training = self.adversarial_training
        adversarial_weight = training.adversarial_weight
        parts = []
        if adversarial_weight > 0:
            key = image_keys(index, seed=self.seed, purpose="training", epoch=self.current_epoch)
            epochs = self.current_epoch + batch_idx / self.trainer.num_training_batches
            x_adv = training.perturb(self.evaluation_network(x), x, y, key=key, epochs=epochs)
            parts.append((adversarial_weight, "adversarial", x_adv))
        if adversarial_weight < 1:
            parts.append((1 - adversarial_weight, "clean", x))

        if training.is_joint(self.network):
            answers = self(torch.cat([images for _, _, images in parts])).split(len(y))
        else:
            # One forward for each half. Where there is no BatchNorm it comes to the same, 1.1 times
            # faster on CPUs, as the smaller activations stay in the cache.
            answers = [self(images) for _, _, images in parts]
        loss = torch.zeros((), device=x.device)
        for (weight, name, _), logits in zip(parts, answers, strict=True):
            loss = loss + weight * F.cross_entropy(logits, y)
            self._log_training(f"{name}_accuracy", (logits.argmax(1) == y).float().mean(), len(y))
        self._log_training("loss", loss.detach(), len(y))
        if ranks() > 1:
            # Ranks may have different numbers of images; their gradients are averaged as equals.
            loss = loss * cast(Batches, self.trainer.train_dataloader).weight(batch_idx)
        return loss

    def _log_training(self, name: str, value: Tensor, images: int) -> None:
        self.running[name] = value
        self.log(
            f"train/{name}",
            value,
            on_step=False,
            on_epoch=True,
            batch_size=images,
            sync_dist=ranks() > 1,
        )

    def on_train_epoch_end(self) -> None:
        """See that the network is sound and the same on all ranks, before it is saved.

        Raises:
            UserError: training has diverged.
        """
        broadcast_buffers(self.network)
        for name, value in self.network.state_dict().items():
            if name not in self._infinite and not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"training diverged: in epoch {self.current_epoch + 1}, {name} is no longer "
                    "finite; lower model.optimizer.lr or set trainer.gradient_clip_val. Nothing "
                    "of this epoch is saved"
                )
        check_agreement(f"after epoch {self.current_epoch + 1}", self.network.state_dict())

    def build_optimizer(self, network: nn.Module, *, is_fine_tuning: bool) -> Optimizer:
        """The optimizer of one phase, of a network's parameters."""
        optimizer = (self.fine_tuning.optimizer if is_fine_tuning else None) or self.optimizer
        return optimizer(network.parameters())

    @property
    def _phase_schedule(self) -> Schedule:
        return (self.fine_tuning.schedule if self.is_fine_tuning else None) or self.schedule

    def _check_optimizers(self) -> None:
        """Build the optimizers and schedules of both phases, to refuse bad settings early.

        Raises:
            UserError: the settings of a phase are refused by its optimizer or schedule.
        """
        phases = {False: "model.optimizer or model.schedule"}
        if self.prune_epoch is not None:
            phases[True] = "model.fine_tuning"
        now = self.is_fine_tuning
        for self.is_fine_tuning, name in phases.items():
            try:
                self.configure_optimizers()
            except UserError:
                raise
            except (ValueError, TypeError, ZeroDivisionError) as error:
                raise UserError(f"{name}: {error}") from None
        self.is_fine_tuning = now

    def _phase_steps(self) -> int:
        """Optimizer steps of the phase."""
        epochs = self.trainer.max_epochs or 0
        if self.prune_epoch is not None:
            epochs = epochs - self.prune_epoch if self.is_fine_tuning else self.prune_epoch
        batches = len(self.datamodule.train_dataloader())
        limit = self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return max(1, epochs * math.ceil(batches / self.trainer.accumulate_grad_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the phase, whose optimizer's state it is; save the full shape, whatever trains."""
        if self.narrow_copy is not None:
            if self.is_narrow:
                wide = self.narrow_copy.update_wide()
                checkpoint["state_dict"].update(wide.state_dict(prefix="network."))
            if self.optimizes_narrow and "optimizer_states" in checkpoint:
                optimizers = self.optimizers(use_pl_optimizer=False)
                checkpoint["optimizer_states"] = [
                    self.narrow_copy.widen_optimizer_state(state, optimizer)
                    for state, optimizer in zip(
                        checkpoint["optimizer_states"],
                        optimizers if isinstance(optimizers, list) else [optimizers],
                        strict=True,
                    )
                ]
        checkpoint["is_fine_tuning"] = self.is_fine_tuning
        checkpoint["phase_steps"] = self._phase_steps()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the phase, before the optimizers are made.

        Raises:
            UserError: the checkpoint is not of `fit`, or its schedule does not fit this run.
        """
        if "is_fine_tuning" not in checkpoint or "phase_steps" not in checkpoint:
            raise UserError("ckpt_path: not a checkpoint of prunerob fit, so it cannot go on")
        self.is_fine_tuning = checkpoint["is_fine_tuning"]
        steps, saved = self._phase_steps(), checkpoint["phase_steps"]
        over = not self.is_fine_tuning and checkpoint["epoch"] + 1 == self.prune_epoch
        if steps != saved and not over and self._phase_schedule.follows_phase:
            raise UserError(
                f"ckpt_path: the schedule of the checkpoint's phase runs over {saved} steps, but "
                f"this configuration's over {steps}; keep trainer.max_epochs, pruning.epoch and "
                "the batches as they were, or branch from before_pruning.ckpt"
            )

    # Validation

    def on_validation_start(self) -> None:
        """On its own, refuse a network that does not fit the images."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_images(cast(Any, self.trainer).val_dataloaders)

    def on_validation_epoch_start(self) -> None:
        """Begin to count the images, with the same network on all ranks."""
        self._judged: dict[str, list[Tensor]] = {}
        broadcast_buffers(self.network)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.take_channels_out(find_narrowing(self.network))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy on clean images and, on the first ones, under the validation attack."""
        batches = cast(Batches, self.trainer.val_dataloaders)
        left = self.validation_attack_images - batches.first(batch_idx)
        for name, correct in self._judge(batch, left).items():
            self._judged.setdefault(name, []).append(correct)

    def on_validation_epoch_end(self) -> None:
        """Count over all ranks; warn where training against one step taught to resist but that."""
        counts = _count(self._judged)
        for name, (right, images) in counts.items():
            self.log(f"validation/{name}_accuracy", right / images, prog_bar=True)
        robust = counts.get("many_steps", counts.get("robust"))
        one_step = counts.get("one_step")
        if robust is None or one_step is None or self._phase_told == self.is_fine_tuning:
            return
        if overfits_to_one_step(robust[0], one_step[0]):
            self._phase_told = self.is_fine_tuning
            rank_zero_warn(
                f"catastrophic overfitting: in epoch {self.current_epoch + 1}, of the validation "
                f"images attacked, {one_step[0]} are classified right under the training's one "
                f"step and {robust[0]} under PGD"
            )

    @torch.no_grad()
    def measure(
        self, batches: Batches | list[Batches], *, attack_all: bool = False
    ) -> dict[str, tuple[int, int]]:
        """Validation accuracies, outside the Trainer's loops; all ranks together.

        Args:
            batches: this rank's validation batches; an empty list where there are none.
            attack_all: attack all images, not only the first ones.

        Returns:
            images classified right, and images, as `_judge` names them.
        """
        found: dict[str, list[Tensor]] = {}
        broadcast_buffers(self.network)
        with evaluating(self):
            for i, batch in enumerate(cast(Batches, batches)):
                moved = Batch(*(tensor.to(self.device) for tensor in batch))
                left = self.validation_attack_images - cast(Batches, batches).first(i)
                n_attacked = len(batch.y) if attack_all else left
                for name, correct in self._judge(moved, n_attacked).items():
                    found.setdefault(name, []).append(correct)
        return _count(found)

    def final_validation(self) -> dict[str, tuple[int, int]]:
        """Accuracies on all validation images at the end of training, measured once."""
        if self._validated_at_last is None:
            batches = self.datamodule.val_dataloader()
            self._validated_at_last = self.measure(batches, attack_all=True)
        return self._validated_at_last

    def _judge(self, batch: Batch, n_attacked: int) -> dict[str, Tensor]:
        """Which images of a validation batch are classified right.

        Args:
            batch: the images.
            n_attacked: number of the first ones to attack; none below 1.

        Returns:
            bool tensors: "clean"; "robust" under the validation attack; and, if the training
            attack takes one step only, "one_step" under that and "many_steps" under PGD with its
            eps (where the validation attack is not that already): the probe for catastrophic
            overfitting.
        """
        x, y, index = batch
        if not len(y):
            return {}
        network = self.evaluation_network(x)
        n = min(len(y), n_attacked)
        with self._in_float32():
            correct = {"clean": network(x).argmax(1) == y}
            if n > 0:
                key = image_keys(index[:n], seed=self.seed, purpose="validation")
                for name, attack in self._validation_attacks().items():
                    x_adv = attack(network, x[:n], y[:n], key=key)
                    correct[name] = network(x_adv).argmax(1) == y[:n]
        return correct

    def _in_float32(self) -> AbstractContextManager[object]:
        """Out of mixed precision, which would round a pixel by up to half of 1/255.

        What is counted is the network as it will be used, not as it was trained.
        """
        return torch.autocast(self.device.type, enabled=False)

    def _validation_attacks(self) -> dict[str, Attack]:
        attacks: dict[str, Attack] = {}
        if not self.validation_attack_images:
            return attacks
        if not isinstance(self.validation_attack, NoAttack):
            attacks["robust"] = self.validation_attack
        training = self.adversarial_training.attack
        if is_one_step(training):
            attacks["one_step"] = training
            eps = float(getattr(training, "eps", 0))
            judge = self.validation_attack
            if not isinstance(judge, PGD) or is_one_step(judge) or judge.eps != eps:
                attacks["many_steps"] = PGD(eps=Pixels(eps), step_size=Pixels(eps / 4), steps=10)
        return attacks

    # Test

    def on_test_start(self) -> None:
        """Refuse a network that does not fit the images, before it is attacked."""
        self._check_images(cast(Any, self.trainer).test_dataloaders)

    def on_test_epoch_start(self) -> None:
        """Begin a new record, and let those attacks learn that must."""
        self.take_channels_out(find_narrowing(self.network))
        self._recorder = RobustnessRecorder()
        self._suite = {"clean": NoAttack(), **self.attacks}
        for name, attack in self.attacks.items():
            if attack.learns:
                self._suite[name] = self._prepare(name, attack)
        self._survivors: list[Tensor] = []
        self._batch_size = cast(Any, self.trainer).test_dataloaders.size

    def _prepare(self, name: str, attack: Attack) -> Attack:
        """Let an attack learn, once for all ranks: none may face another substitute."""
        self.on_attack(name)
        start = perf_counter()
        batches = _On(self.device, self.datamodule.attacker_dataloader())
        network = self.evaluation_network(next(iter(batches)).x)
        prepared = broadcast_object(attack.prepare(network, batches).to(torch.device("cpu")))
        prepared = prepared.to(self.device)
        self._recorder.note_learned(name, prepared.learned, perf_counter() - start)
        return prepared

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Attack a batch with every attack of the suite; each is counted on its final iterate."""
        x, y, index = batch
        if not len(y):
            return
        key = image_keys(index, seed=self.seed, purpose="test")
        network = self.evaluation_network(x)
        examples = perturb_by_each(self._suite, network, x, y, key=key)
        predictions: dict[str, Tensor] = {}
        for name, attack in self._suite.items():
            self.on_attack(name)
            start = perf_counter()
            with self._in_float32():
                x_adv = next(examples)
                logits = network(x_adv)
            if name == "clean" and not bool(torch.isfinite(logits).all()):
                raise UserError(
                    "the network's answers to clean images are not finite: its training diverged, "
                    "or its weights are damaged"
                )
            seen = logits.argmax(1)
            predictions[name] = seen.masked_fill(attack.leaves_out(index), -1)
            self._recorder.add(
                name,
                index=index,
                label=y,
                prediction=predictions[name],
                margin=logit_margin(logits.float(), y),
                start=start,
            )
            if batch_idx == 0 and name != "clean":
                log_examples(
                    self.trainer,
                    f"{self.test_name} examples/{name}",
                    x[:10],
                    x_adv[:10],
                    labels=y[:10],
                    before=predictions["clean"][:10],
                    after=seen[:10],
                )

        if self.worst_case_attacks:
            right = torch.stack([(p == y) | (p < 0) for p in predictions.values()]).all(0)
            self._survivors.append(index[right].cpu())

    def _attack_survivors(self) -> None:
        """Attack what no attack of the table got wrong, for the worst case alone."""
        survivors = torch.cat([torch.cat(part) for part in gather(self._survivors) if part])
        # Many batches' together, so that batches stay full; not all, so that memory does not.
        parts = torch.split(survivors.sort().values, 16 * self._batch_size)
        for part in parts[self.trainer.global_rank :: self.trainer.world_size]:
            left = Batch(*(tensor.to(self.device) for tensor in self.datamodule.test_batch(part)))
            for name, attack in self.worst_case_attacks.items():
                self.on_attack(name)
                start = perf_counter()
                x, y, index = left
                key = image_keys(index, seed=self.seed, purpose="worst case")
                fooled = attack.fools(
                    self.evaluation_network(x), x, y, key=key, batch_size=self._batch_size
                )
                self._recorder.add_search(name, index=index, fooled=fooled, start=start)
                left = Batch(*(column[~fooled] for column in left))

    def on_test_epoch_end(self) -> None:
        """Sum the record up into the table."""
        if self.worst_case_attacks:
            self._attack_survivors()
        found = RobustnessRecorder.of_all(gather(self._recorder)).robustness()
        if empty := [row.attack for row in found.rows if not row.images]:
            raise UserError(
                f"model.attacks: all images of this test are the attacker's own in {empty[0]}; "
                "test on more"
            )
        self.robustness = replace(found, scrutiny=self._scrutinize())
        for row in self.robustness.rows:
            self.log(f"{self.test_name}/{row.attack}", row.accuracy)

    def _scrutinize(self) -> Scrutiny | None:
        """See on some of the test images how far the attacks can be trusted."""
        if not self.scrutinized_images:
            return None
        self.on_attack("scrutiny")
        sample = self.datamodule.test_sample(self.scrutinized_images)
        x, y, index = Batch(*(tensor.to(self.device) for tensor in sample))
        key = image_keys(index, seed=self.seed, purpose="test")
        parts = torch.split(torch.arange(len(y), device=y.device), self._batch_size)
        own = parts[self.trainer.global_rank :: self.trainer.world_size]
        network = self.evaluation_network(x)
        found = [scrutinize(network, self._suite, x[p], y[p], key=key[p]) for p in own]
        return sum_up([scrutiny for part in gather(found) for scrutiny in part])

    # Prediction

    def on_predict_start(self) -> None:
        """Refuse a network that does not fit the images."""
        self._check_images(cast(Any, self.trainer).predict_dataloaders)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Positions of the images, int64, (B,), and their probabilities, float32, (B, classes)."""
        with self._in_float32():
            return batch.indices, self(batch.x).float().softmax(1)


def _count(judged: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[int, int]]:
    """Images classified right, and images, over all ranks, by name in the order of the first rank.

    Args:
        judged: bool, (B,), of this rank's batches; a rank may lack names that others have.
    """
    counts: dict[str, tuple[int, int]] = {}
    own = {n: (int(torch.cat([*p]).sum()), sum(map(len, p))) for n, p in judged.items()}
    for part in gather(own):
        for name, (right, images) in part.items():
            before = counts.get(name, (0, 0))
            counts[name] = (before[0] + right, before[1] + images)
    return counts


class _On:
    """Batches on a device, as often as they are asked for."""

    def __init__(self, device: torch.device, batches: Iterable[Batch]) -> None:
        self.device, self.batches = device, batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield Batch(*(tensor.to(self.device) for tensor in batch))
