"""The Pruning callback: when to prune. What to prune is decided by pure functions beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from prunerob.errors import UserError
from prunerob.networks.attacked import AttackedNetwork
from prunerob.networks.narrow import find_narrowing
from prunerob.pruning.batches import ScoringBatches
from prunerob.pruning.budgets import Budget
from prunerob.pruning.checks import check_trainer
from prunerob.pruning.counts import Layer, count_layers, count_shares
from prunerob.pruning.criteria import weight_magnitude
from prunerob.pruning.cut import STATE, Cut
from prunerob.pruning.hold import Hold, check_held
from prunerob.pruning.masks import Masks, Reading, Residual, apply_masks, emptied_layers, to_device
from prunerob.pruning.narrow_training import NarrowTraining, check_narrow
from prunerob.pruning.record import PruningRecord, curves
from prunerob.pruning.schedules import OneShot, PruningSchedule, Timetable
from prunerob.pruning.scores import Criterion, name_of, scores_filters
from prunerob.runs.folder import has_finished, run_folder, write_whole
from prunerob.runs.ranks import broadcast_object, check_agreement, rewrap_ddp
from prunerob.training.classifier import Classifier
from prunerob.training.loggers import log_numbers
from prunerob.training.phases import FINE_TUNING
from prunerob.training.teacher import Teacher
from prunerob.training.tensorboard import log_weight_histograms


class Pruning(Callback):
    """Prunes from the start of an epoch on, at once or bit by bit, and holds the masks.

    From the prune epoch on, fine-tuning begins: with a new optimizer and schedule, and with every
    pruned parameter exactly 0 outside the optimizer's step.

    Args:
        epoch: the epoch that begins with pruning: the number of epochs of training before it.
            null never prunes, 0 prunes the untrained network.
        schedule: when how much goes from there on: `prunerob.pruning.OneShot`, `Gradual` or
            `Iterative`.
        amount: share to prune, in [0, 1); 0 fine-tunes with empty masks, the control for longer
            training.
        criterion: of `prunerob.pruning`: for weights `weight_magnitude`, `lamp`, `Taylor`, `Hydra`
            or `Harp`, for filters `filter_l1`, `FilterTaylor`, `FilterHydra` or `FilterHarp`; their
            baselines `random_weights` and `random_filters`; or a function or class of your own.
        budget: how what is pruned is shared out among layers: "global" by one threshold
            for all; "erk" more from larger ones; "uniform" the same share from each, but none from
            the first, and at most 80 % from the last; or amounts by layer name, and one threshold
            for the layers that are not named. Of filters "global", or "uniform": the same share of
            each layer's. See `prunerob.pruning.budgets`.
        reading: which share `amount` is, for filters: "filters", "weights" in them, or
            "parameters" that are 0 with them; see `prunerob.pruning.masks`.
        residual: what becomes of filters that write to a residual stream, which several layers
            add to and many read: "keep" does not rank them; "silence" ranks each by itself, and a
            pruned one adds nothing to a channel that stays; "remove" ranks the stream's channels,
            and takes each with all filters that write to it.
        exclude: names of layers to leave out; with `residual` "remove", one that writes to a
            stream keeps all that do.
        keep_per_layer: share of each layer's weights or filters that stays whatever their score,
            in [0, 1).
        keep_multiple_of: round the number of filters that each layer keeps up to a multiple of
            this, such as 8 or 16: such layers are faster, and less is pruned. Filters that are
            silenced on a residual stream are not rounded.
        narrow: fine-tune the really narrower network, without the silent channels, which is as
            much faster as it is smaller; for filters. Attacks and evaluation do without them
            either way, and checkpoints hold the full shape.
        masks_from: a pruned run, or a checkpoint of one, whose masks to take instead of making
            new ones. With epoch 0 they are held on fresh weights from the start: the pruned
            network trained from scratch, the baseline for pruning a trained one. They are taken in
            one shot, as are empty masks, whatever the schedule.
        seed: of random criteria; set from `seed_everything`.
    """

    def __init__(
        self,
        *,
        epoch: int | None = None,
        schedule: PruningSchedule = OneShot(),
        amount: float = 0.9,
        criterion: Criterion = weight_magnitude,
        budget: Budget = "global",
        reading: Reading = "weights",
        residual: Residual = "keep",
        exclude: Sequence[str] = (),
        keep_per_layer: float = 0.0,
        keep_multiple_of: int = 1,
        narrow: bool = False,
        masks_from: str | None = None,
        seed: int = 0,
    ) -> None:
        if epoch is not None and epoch < 0:
            raise UserError(f"pruning.epoch: {epoch} is below 0")
        schedule.check(epoch, amount)
        self.epoch = epoch
        self.schedule = schedule if amount and not masks_from else OneShot()
        self.cut = Cut(
            amount=amount,
            criterion=criterion,
            budget=budget,
            reading=reading,
            residual=residual,
            exclude=list(exclude),
            keep_per_layer=keep_per_layer,
            keep_multiple_of=keep_multiple_of,
            masks_from=masks_from,
            seed=seed,
        )
        self.narrow = narrow
        self.masks: Masks | None = None
        """What stays; None until the prune epoch."""
        self.record: PruningRecord | None = None
        """What pruning did; None until the prune epoch."""
        self._hold: Hold | None = None
        self._narrow_training: NarrowTraining | None = None
        self._saved_settings: dict[str, Any] | None = None
        self._epochs_done = 0
        self._timetable: Timetable | None = None
        self._early: dict[str, Tensor] | None = None
        """The network's state in the epoch that the schedule rewinds to."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, in plain values."""
        return {"epoch": self.epoch, "schedule": name_of(self.schedule), **self.cut.settings}

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, before anything is computed, that this run can and will prune as asked."""
        if stage != "fit":
            return
        self._end_narrow_training()
        module = cast(Classifier, pl_module)
        module.prune_epoch = self.epoch
        module.pruning_epochs = self.schedule.lasts(self.cut.amount)
        module.round_epochs = self.schedule.round_epochs
        check_trainer(trainer, self.epoch, self.schedule, self.cut.amount)
        if self.epoch is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        scores = self.cut.check(module.network)
        if self.narrow:
            check_narrow(module, scores, name_of(self.cut.criterion))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a checkpoint with masks was loaded: compare the settings and take the masks up."""
        if self.masks is None:
            early = self.schedule.rewind_epoch
            if early is not None and self._early is None and self._epochs_done > early:
                raise UserError(
                    f"pruning.schedule: rewinds to the weights of epoch {early}, which the "
                    "checkpoint does not hold; train with this schedule from the start"
                )
            if self.epoch is not None and self._epochs_done > self.epoch:
                raise UserError(
                    f"pruning.epoch: {self.epoch} is behind the checkpoint, which has "
                    f"{self._epochs_done} epochs of training; set it to that or later"
                )
            return
        for name, value in self.settings.items():
            saved = (self._saved_settings or self.settings)[name]
            if saved != value:
                raise UserError(
                    f"pruning.{name}: the checkpoint was pruned with {saved}, but the "
                    f"configuration says {value}; to prune in another way, go on from the "
                    "run's checkpoints/before_pruning.ckpt"
                )
        module = cast(Classifier, pl_module)
        self._move(module)
        self._hold_masks(trainer, module)

    # Pruning

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay down at which steps how much is to be pruned."""
        self._timetable = Timetable.of(self.schedule, trainer, self.epoch, self.cut.amount)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From the prune epoch on: prune what is due at its start."""
        module = cast(Classifier, pl_module)
        if trainer.current_epoch == self.schedule.rewind_epoch:
            state = module.network.state_dict()
            self._early = {name: value.cpu().clone() for name, value in state.items()}
        self._prune_what_is_due(trainer, module, batch=0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Within an epoch: prune what is due at an optimizer step."""
        if batch_idx:
            self._prune_what_is_due(trainer, cast(Classifier, pl_module), batch=batch_idx)

    def _prune_what_is_due(self, trainer: Trainer, module: Classifier, *, batch: int) -> None:
        timetable = cast(Timetable, self._timetable)
        if (share := timetable.due(trainer.current_epoch, batch)) is not None:
            self._prune(trainer, module, share, is_last=share == timetable.last)
        if self.epoch is not None and (share is not None or not batch):
            shown = curves(self.record, self.cut.reading, self._layers(module))
            log_numbers(trainer, shown)

    def _prune(self, trainer: Trainer, module: Classifier, share: float, *, is_last: bool) -> None:
        """Decide and prune; the first time, begin fine-tuning."""
        begins = self.record is None or bool(self.schedule.round_epochs)
        if begins:
            module.averaging.take(module.network)
        if is_first := self.record is None:
            log_weight_histograms(trainer, module.network, "1 before pruning")
            accuracies = {"before": module.measure(attack_all=True)}  # as many as at the end
        else:
            accuracies = self.record.accuracies
        self.masks, self.record = self._decide(module, self.cut.at(share))
        self.record.accuracies = accuracies
        if is_first and module.trainings[FINE_TUNING].objective.needs_teacher:
            module.teacher = Teacher(module.network)
        if self._early is not None:
            module.network.load_state_dict(self._early)
        apply_masks(module.network, self.masks)
        module.averaging.apply(self.masks)
        self._take_channels_out(module)
        if begins:
            module.phase_name = FINE_TUNING
            if self._narrow_training:
                rewrap_ddp(trainer)
            trainer.strategy.setup_optimizers(trainer)
            self._hold_masks(trainer, module)
        elif self._hold:
            self._hold.change(to_device(self.masks, module.device))
        self._check_agreement(f"after pruning in epoch {trainer.current_epoch}", module)
        reached = self.record.reached(self.cut.reading)
        if not is_last:
            rank_zero_info(f"Epoch {trainer.current_epoch}: {reached:.2%} pruned")
            return
        accuracies["after"] = module.measure()
        log_weight_histograms(trainer, module.network, "2 after pruning")
        rank_zero_info(self.describe(module, trainer.current_epoch))

    def _decide(self, module: Classifier, cut: Cut) -> tuple[Masks, PruningRecord]:
        """What goes, the same on all ranks.

        Raises:
            UserError: a layer would be empty.
        """
        network = module.network
        scores = cut.scores(network, ScoringBatches.of(module))
        made = cut.masks(network, scores)
        # One rank's: a criterion of the user's may draw, or sum in an order of its own.
        first = broadcast_object({name: mask.cpu() for name, mask in made.items()})
        masks = to_device(first, module.device)
        if empty := emptied_layers(masks):
            raise UserError(
                f"pruning.amount: {cut.amount} would empty {', '.join(empty)}; prune less, "
                "name the layer in pruning.exclude, or set pruning.keep_per_layer. The trained "
                "network is kept in the run's checkpoints/before_pruning.ckpt: go on from there"
            )
        record = PruningRecord(
            unit="filters" if scores_filters(scores) else "weights",
            shares=count_shares(network, masks, scores),
            kept_by_rounding_up=cut.kept_by_rounding_up(network, scores, masks),
        )
        return masks, record

    def _take_channels_out(self, module: Classifier) -> None:
        """Give attacks, and if asked fine-tuning, the network without its silent channels."""
        narrowing = find_narrowing(module.network, self.masks)
        if self.narrow and narrowing.kept:
            self._narrow_training = NarrowTraining(module, narrowing)
        else:
            module.attacked = AttackedNetwork(module.network, narrowing)

    def _hold_masks(self, trainer: Trainer, module: Classifier) -> None:
        """Hold the masks on the network that is trained."""
        masks: Masks = to_device(self.masks or {}, module.device)
        if self._narrow_training:
            masks = self._narrow_training.masks(masks)
        self._hold = Hold(module.network, masks)
        for optimizer in trainer.optimizers:
            self._hold.follow(optimizer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Where gradients are clipped: those of pruned weights are no part of their norm."""
        if self._hold and trainer.gradient_clip_val:
            self._hold.mask_gradients()

    def _check_agreement(self, when: str, module: Classifier) -> None:
        """Stop where ranks hold different masks, or weights."""
        masks = {f"the mask of {name}": mask for name, mask in (self.masks or {}).items()}
        check_agreement(when, {**masks, **module.network.state_dict()})

    # Afterwards

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the result, while the device is at hand."""
        if self.record is not None:
            module = cast(Classifier, pl_module)
            self._check_agreement("at the end", module)
            self.record.accuracies["fine-tuned"] = module.final_validation()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to the full shape; report what became of the pruned network."""
        module = cast(Classifier, pl_module)
        self._move(module)  # the Trainer has taken the module off its device
        self._end_narrow_training()
        if self.masks is None or self.record is None:
            return
        if "fine-tuned" not in self.record.accuracies:  # of a run killed after its last epoch
            self.record.accuracies["fine-tuned"] = module.final_validation()
        log_weight_histograms(trainer, module.network, "3 after fine-tuning")
        folder = run_folder(trainer)  # which all ranks must ask for
        if trainer.is_global_zero and has_finished(trainer):
            check_held(module.network.state_dict(), self.masks, "at the end")
            text = self.record.to_json(self.settings, self._layers(module))
            write_whole(folder / "pruning.json", text)

    def describe(self, module: Classifier, epoch: int) -> str:
        """What pruning did by the start of an epoch, layer by layer, as text."""
        if self.record is None:
            return "Not pruned"
        criterion = self.cut.criterion
        name = getattr(criterion, "__name__", str(criterion))
        headline = f"Pruned by {name} after {epoch} epochs:"
        return self.record.describe(headline, self.cut.keep_multiple_of, self._layers(module))

    def _layers(self, module: Classifier) -> list[Layer]:
        full = self._narrow_training.full if self._narrow_training else module.network
        return count_layers(full, self.masks or {})

    def _move(self, module: Classifier) -> None:
        """Move what belongs to the module, but is none of its own, to its device."""
        module.attacked.to(module.device)
        if self._narrow_training:
            self._narrow_training.to(module.device)

    def _end_narrow_training(self) -> None:
        if self._narrow_training:
            self._narrow_training.end()
            self._narrow_training = None

    # Checkpoints

    @property
    def state_key(self) -> str:
        """The callback's name in checkpoints."""
        return STATE

    def state_dict(self) -> dict[str, Any]:
        """Masks, settings and weights to rewind to, in tensors and plain values."""
        early = {"early": (self.schedule.rewind_epoch, self._early)} if self._early else {}
        if self.masks is None or self.record is None:
            return early
        made = {"masks": dict(self.masks), "settings": self.settings}
        return {**early, **made, **self.record.to_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up masks from a checkpoint; `on_fit_start` compares the settings."""
        epoch, early = state_dict.get("early", (None, None))
        self._early = early if epoch == self.schedule.rewind_epoch else None
        if "masks" in state_dict:
            self.masks = state_dict["masks"]
            self._saved_settings = state_dict["settings"]
            self.record = PruningRecord.from_state(state_dict)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See that what is saved is pruned, and in its full shape."""
        if self.masks is None:
            return
        saved = checkpoint["state_dict"].items()
        state = {name.removeprefix("network."): value for name, value in saved}
        check_held(state, self.masks, f"after epoch {trainer.current_epoch + 1}")
        if self._narrow_training:
            self._narrow_training.save(checkpoint, trainer.optimizers)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how far training has come, and make the network and its optimizer narrow, if asked.

        The full network has its weights by now; optimizers are made later.
        """
        self._epochs_done = checkpoint["epoch"] + 1
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != TrainerFn.FITTING or not state:
            return
        self.load_state_dict(state)
        if self.masks is not None:
            self._take_channels_out(cast(Classifier, pl_module))
        if self._narrow_training:
            self._narrow_training.load(checkpoint)
