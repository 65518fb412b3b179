"""The Pruning callback: when to prune. What to prune is decided by pure functions beside it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch.optim import Optimizer

from prunerob.errors import UserError
from prunerob.networks.narrow import NarrowCopy, find_narrowing
from prunerob.pruning.criteria import Criterion, Scores, name_of, weight_magnitude
from prunerob.pruning.masks import (
    Masks,
    Reading,
    Residual,
    Shares,
    apply_masks,
    check_scores,
    count_layers,
    count_shares,
    emptied_layers,
    make_masks,
    ranked,
    scores_filters,
    silence_filters,
    without,
)
from prunerob.robustness.table import wilson_interval
from prunerob.runs.folder import (
    find_weights,
    has_finished,
    read_checkpoint,
    run_folder,
    write_whole,
)
from prunerob.runs.ranks import broadcast_object, check_agreement, rewrap_ddp
from prunerob.training.classifier import Classifier
from prunerob.training.tensorboard import log_shares, log_weight_histograms

LATER_SETTINGS = {"keep_multiple_of": 1, "masks_from": None, "residual": "keep"}
"""Settings that checkpoints of earlier versions lack, with what they were pruned with."""


class Pruning(Callback):
    """Prunes in one shot at the start of an epoch, and holds the masks from then on.

    From the prune epoch on, fine-tuning begins: with a new optimizer and schedule, and with every
    pruned parameter exactly 0 outside the optimizer's step.

    Args:
        epoch: the epoch that begins with pruning: the number of epochs of training before it.
            null never prunes, 0 prunes the untrained network.
        amount: share to prune, in [0, 1); 0 fine-tunes with empty masks, the control for longer
            training.
        criterion: `prunerob.pruning.weight_magnitude` or `filter_l1`, or their baselines
            `random_weights` and `random_filters`; or a function of your own.
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
            network trained from scratch, the baseline for pruning a trained one.
        seed: of random criteria; set from `seed_everything`.
    """

    def __init__(
        self,
        *,
        epoch: int | None = None,
        amount: float = 0.9,
        criterion: Criterion = weight_magnitude,
        reading: Reading = "weights",
        residual: Residual = "keep",
        exclude: Sequence[str] = (),
        keep_per_layer: float = 0.0,
        keep_multiple_of: int = 1,
        narrow: bool = False,
        masks_from: str | None = None,
        seed: int = 0,
    ) -> None:
        if keep_multiple_of < 1:
            raise UserError(f"pruning.keep_multiple_of: {keep_multiple_of} is below 1")
        for name, share in (("amount", amount), ("keep_per_layer", keep_per_layer)):
            if not 0 <= share < 1:
                raise UserError(f"pruning.{name}: {share} lies outside [0, 1)")
        if epoch is not None and epoch < 0:
            raise UserError(f"pruning.epoch: {epoch} is below 0")
        self.epoch = epoch
        self.amount = amount
        self.criterion = criterion
        self.reading = reading
        self.residual = residual
        self.exclude = list(exclude)
        self.keep_per_layer = keep_per_layer
        self.keep_multiple_of = keep_multiple_of
        self.narrow = narrow
        self.masks_from = masks_from
        self.seed = seed
        self.masks: Masks | None = None
        """What stays; None until the prune epoch."""
        self.shares: Shares | None = None
        self.accuracies: dict[str, dict[str, tuple[int, int]]] = {}
        """Validation images classified right, and images, "before" and "after" pruning and
        "fine-tuned"."""
        self._held: Masks = {}
        """Masks of the network that is trained, those that take something away."""
        self._saved_settings: dict[str, Any] | None = None
        self._epochs_done = 0
        self._rounded_up = 0
        self._unit: str | None = None
        """What is pruned, "filters" or "weights", as the criterion scores it."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, in plain values."""
        return {
            "epoch": self.epoch,
            "amount": self.amount,
            "criterion": name_of(self.criterion),
            "reading": self.reading,
            "residual": self.residual,
            "exclude": self.exclude,
            "keep_per_layer": self.keep_per_layer,
            "keep_multiple_of": self.keep_multiple_of,
            "masks_from": self.masks_from,
        }

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, before anything is computed, that this run can and will prune as asked."""
        if stage != "fit":
            return
        module = cast(Classifier, pl_module)
        module.prune_epoch = self.epoch
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            if self.epoch is not None:
                raise UserError(
                    "trainer.fast_dev_run: stops before anything is pruned; set pruning.epoch to "
                    "null with it, or try with few images (data.train_size) and few epochs"
                )
            return
        if trainer.max_steps not in (None, -1) or trainer.max_epochs in (None, -1):
            raise UserError(
                "trainer.max_epochs: phases are counted in epochs; set it, not max_steps"
            )
        if self.epoch is None:
            return
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
                raise UserError(
                    f"trainer.callbacks: {type(callback).__name__} would bring pruned weights "
                    "back; leave it out, or set pruning.epoch to null"
                )
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self.epoch:
            raise UserError(
                f"pruning.epoch: {self.epoch} is never reached in this run of "
                f"{trainer.max_epochs} epochs (they count from 0); raise trainer.max_epochs, or "
                "set pruning.epoch to null to train without pruning"
            )
        # Whether the amount can be reached hardly depends on the weights.
        masks, scores = self._make_masks(module)
        if not scores_filters(scores) and (self.narrow or self.keep_multiple_of > 1):
            name = "narrow" if self.narrow else "keep_multiple_of"
            raise UserError(
                f"pruning.{name}: is about filters, but {self.settings['criterion']} scores weights"
            )
        if self.amount and not any(bool((~mask).any()) for mask in masks.values()):
            raise UserError(
                f"pruning.keep_multiple_of: {self.keep_multiple_of} rounds every layer up to all "
                "of its filters; nothing would be pruned"
            )
        if self.narrow:
            try:
                self._try_narrow(trainer, module, scores)
            except UserError:
                raise
            except (RuntimeError, ValueError, TypeError) as error:
                raise UserError(f"pruning.narrow: a trial of one step failed: {error}") from None

    def _try_narrow(self, trainer: Trainer, module: Classifier, scores: Scores) -> None:
        """See, before training, that the network and its optimizer can do without channels."""
        module.choose_layout()
        wide = copy.deepcopy(module.network)
        first = {name: torch.arange(len(score)) == 0 for name, score in scores.items()}
        first = {name: gone & (len(gone) > 1) for name, gone in first.items()}
        apply_masks(wide.cpu(), silence_filters(wide, first))
        wide.to(module.device)
        both = NarrowCopy(wide.eval(), find_narrowing(wide))
        x = next(iter(module.datamodule.train_dataloader())).x[:1]
        if not both.agrees(x.to(next(wide.parameters()).device)):
            raise UserError(
                f"pruning.narrow: {type(module.network).__name__} depends on its number of "
                "channels, so they cannot be taken out for training; set it to false"
            )
        optimizer = module.build_optimizer(wide, is_fine_tuning=True)
        for parameter in wide.parameters():
            parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
            plain = all(
                not isinstance(value, torch.Tensor) or value.shape in (parameter.shape, ())
                for parameter, moments in optimizer.state.items()
                for value in moments.values()
            )
        except (RuntimeError, TypeError):
            plain = False
        if not plain:
            raise UserError(
                f"pruning.narrow: {type(optimizer).__name__} keeps more than numbers by weight, "
                "which cannot be taken out with channels; set it to false"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a checkpoint with masks was loaded: compare the settings and take the masks up."""
        if self.masks is None:
            if self.epoch is not None and self._epochs_done > self.epoch:
                raise UserError(
                    f"pruning.epoch: {self.epoch} is behind the checkpoint, which has "
                    f"{self._epochs_done} epochs of training; set it to that or later"
                )
            return
        saved = self.settings if self._saved_settings is None else self._saved_settings
        for name, value in self.settings.items():
            # A checkpoint from before there was a setting was made with its default.
            old = saved.get(name, LATER_SETTINGS.get(name))
            if old != value:
                raise UserError(
                    f"pruning.{name}: the checkpoint was pruned with {old}, but the "
                    f"configuration says {value}; to prune in another way, go on from the "
                    "run's checkpoints/before_pruning.ckpt"
                )
        module = cast(Classifier, pl_module)
        if module.narrow_copy is not None:
            module.narrow_copy.to(module.device)
        self._hold(trainer, module)

    # Pruning

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the prune epoch: make the masks, apply them, begin fine-tuning."""
        if self.masks is not None or trainer.current_epoch != self.epoch:
            return
        module = cast(Classifier, pl_module)
        log_weight_histograms(trainer, module.network, "1 before pruning")
        self._measure(trainer, module, "before")

        made, scores = self._make_masks(module)
        # One rank's: a criterion of the user's may draw, or sum in an order of its own.
        first = broadcast_object({name: mask.cpu() for name, mask in made.items()})
        self.masks = {name: mask.to(module.device) for name, mask in first.items()}
        if empty := emptied_layers(self.masks):
            raise UserError(
                f"pruning.amount: {self.amount} would empty {', '.join(empty)}; prune less, name "
                "the layer in pruning.exclude, or set pruning.keep_per_layer. The trained network "
                "is kept in the run's checkpoints/before_pruning.ckpt: go on from there"
            )
        self.shares = count_shares(module.network, self.masks, scores)
        if self.keep_multiple_of > 1 and self.masks_from is None:
            exact, _ = self._make_masks(module, keep_multiple_of=1)
            self._rounded_up = _pruned(exact) - _pruned(self.masks)
        apply_masks(module.network, self.masks)

        module.is_fine_tuning = True
        self._take_channels_out(module)
        if module.optimizes_narrow:
            rewrap_ddp(trainer)
        trainer.strategy.setup_optimizers(trainer)
        self._hold(trainer, module)
        self._check_agreement(f"after pruning in epoch {self.epoch}", module)

        self._measure(trainer, module, "after")
        log_weight_histograms(trainer, module.network, "2 after pruning")
        log_shares(trainer, count_layers(module.full_network, self.masks), self.shares)
        rank_zero_info(self.describe(module))

    def _make_masks(
        self, module: Classifier, *, keep_multiple_of: int | None = None
    ) -> tuple[Masks, Scores]:
        try:
            scores = self.criterion(module.network, self.seed)
            shapes = {name: module.network.get_parameter(name).shape for name in scores}
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"pruning.criterion: {self.settings['criterion']} is no function of a network and "
                f"a seed that returns scores by parameter name ({error})"
            ) from None
        for name, shape in shapes.items():
            if scores[name].shape not in (shape, shape[:1]):
                raise UserError(f"pruning.criterion: scores of {name} have another shape than it")
        scores = without(scores, self.exclude)
        check_scores(module.network, scores)
        scores = ranked(module.network, scores, self.residual)
        self._unit = "filters" if scores_filters(scores) else "weights"
        if self.masks_from is not None:
            return self._read_masks(self.masks_from, module, scores), scores
        masks = make_masks(
            module.network,
            scores,
            self.amount,
            reading=self.reading,
            residual=self.residual,
            keep_per_layer=self.keep_per_layer,
            keep_multiple_of=keep_multiple_of or self.keep_multiple_of,
        )
        return masks, scores

    def _read_masks(self, place: str, module: Classifier, scores: Scores) -> Masks:
        """The masks of a pruned run, for a network of the same architecture.

        Raises:
            UserError: there are none, or they are of another network or of other settings.
        """
        file = find_weights(place).file
        callbacks = read_checkpoint(file).get("callbacks")
        state = callbacks.get(self.state_key) if isinstance(callbacks, dict) else None
        if not state:
            raise UserError(f"pruning.masks_from: {file} holds no masks: it is not of a pruned run")
        masks, settings = state["masks"], state["settings"]
        shapes = {name: value.shape for name, value in module.full_network.named_parameters()}
        for name, mask in masks.items():
            if shapes.get(name) != mask.shape:
                raise UserError(f"pruning.masks_from: {file} is of another network ({name})")
        for name in (key for key in self.settings if key not in ("epoch", "masks_from")):
            theirs = settings.get(name, LATER_SETTINGS.get(name))
            if theirs != self.settings[name]:
                raise UserError(
                    f"pruning.{name}: {self.settings[name]}, but {file} in pruning.masks_from was "
                    f"pruned with {theirs}"
                )
        if missing := sorted(scores.keys() - masks.keys()):
            raise UserError(f"pruning.masks_from: {file} has no mask of {missing[0]}")
        self._rounded_up = state.get("rounded_up", 0)
        return {name: mask.to(module.device) for name, mask in masks.items()}

    def _take_channels_out(self, module: Classifier) -> None:
        """Give attacks, and if asked fine-tuning, the network without its silent channels."""
        assert self.masks is not None
        module.take_channels_out(find_narrowing(module.network, self.masks))
        if self.narrow:
            module.train_narrow()

    def _hold(self, trainer: Trainer, module: Classifier) -> None:
        """Set pruned weights back to 0 at the end of every optimizer step.

        Masking gradients instead would not do: momentum and weight decay move weights too.
        """
        assert self.masks is not None
        masks = {name: mask.to(module.device) for name, mask in self.masks.items()}
        if module.optimizes_narrow and module.narrow_copy is not None:
            narrowing = module.narrow_copy.narrowing
            masks = {name: narrowing.narrow(name, mask) for name, mask in masks.items()}
        # A mask that takes nothing away costs time at every step.
        masks = self._held = {name: mask for name, mask in masks.items() if not mask.all()}
        apply_masks(module.network, masks)

        def reapply(optimizer: Optimizer, args: object, kwargs: object) -> None:
            apply_masks(module.network, masks)

        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(reapply)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Where gradients are clipped: those of pruned weights are no part of their norm."""
        if not trainer.gradient_clip_val:
            return
        network = cast(Classifier, pl_module).network
        for name, mask in self._held.items():
            if (gradient := network.get_parameter(name).grad) is not None:
                gradient.masked_fill_(~mask, 0.0)

    def _check_held(self, state: Mapping[str, torch.Tensor], when: str) -> None:
        """See, before weights are saved, that pruned ones are 0: nothing else may pass for pruned.

        Raises:
            UserError: something has changed them outside of the optimizer's steps.
        """
        for name, mask in (self.masks or {}).items():
            value = state[name]
            if bool(value[~mask.to(value.device)].any()):
                raise UserError(
                    f"pruning: {when}, pruned weights of {name} are not 0: a callback or hook has "
                    "changed them; leave it out"
                )

    def _check_agreement(self, when: str, module: Classifier) -> None:
        """Stop where ranks hold different masks, or weights."""
        assert self.masks is not None
        masks = {f"the mask of {name}": mask for name, mask in self.masks.items()}
        check_agreement(when, {**masks, **module.network.state_dict()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the result, while the device is at hand."""
        if self.masks is not None:
            self._check_agreement("at the end", cast(Classifier, pl_module))
            self.accuracies["fine-tuned"] = cast(Classifier, pl_module).final_validation()

    # What it did

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to the full shape; report what became of the pruned network."""
        module = cast(Classifier, pl_module)
        if module.narrow_copy is not None:  # the Trainer has taken the module off its device
            module.narrow_copy.to(module.device)
        module.widen()
        if self.masks is None:
            return
        if "fine-tuned" not in self.accuracies:  # of a run that was killed after its last epoch
            self.accuracies["fine-tuned"] = module.final_validation()
        log_weight_histograms(trainer, module.network, "3 after fine-tuning")
        folder = run_folder(trainer)
        if trainer.is_global_zero and has_finished(trainer):
            self._check_held(module.full_network.state_dict(), "at the end")
            layers = count_layers(module.full_network, self.masks)
            report = {
                **self.settings,
                "unit": self._unit,
                "shares": asdict(self.shares) if self.shares else None,
                "parameters_kept_by_rounding_up": self._rounded_up,
                "validation": {
                    when: {name: _accuracy(*counts) for name, counts in values.items()}
                    for when, values in self.accuracies.items()
                },
                "layers": [asdict(layer) for layer in layers],
            }
            write_whole(folder / "pruning.json", json.dumps(report, indent=2) + "\n")
        rank_zero_info(self._describe_accuracies())

    def _measure(self, trainer: Trainer, module: Classifier, when: str) -> None:
        """Validation accuracies at one moment; nothing without validation images."""
        # Before pruning it is the dense network's last: as many images as at the end.
        batches = module.datamodule.val_dataloader()
        self.accuracies[when] = module.measure(batches, attack_all=when == "before")

    def describe(self, module: Classifier) -> str:
        """What pruning did, layer by layer, as text."""
        if self.masks is None or self.shares is None:
            return "Not pruned"
        name = getattr(self.criterion, "__name__", str(self.criterion))
        lines = [
            f"Pruned by {name} at the start of epoch {self.epoch}:",
            f"{'layer':<16}{'parameters':>12}{'kept':>10}{'pruned':>9}{'channels':>10}{'kept':>7}",
        ]
        layers = count_layers(module.full_network, self.masks)
        lines += [
            f"{layer.name:<16}{layer.parameters_before:>12,}{layer.parameters_after:>10,}"
            f"{layer.share_pruned:>9.1%}{layer.channels_before:>10}{layer.channels_after:>7}"
            for layer in layers
        ]
        before = sum(layer.parameters_before for layer in layers)
        after = sum(layer.parameters_after for layer in layers)
        lines.append(f"{'all':<16}{before:>12,}{after:>10,}{1 - after / before:>9.1%}")
        lines.append(
            f"Share pruned: {self.shares.filters:.2%} of the filters, {self.shares.weights:.2%} of "
            f"the weights, {self.shares.parameters:.2%} of all parameters"
        )
        if self._rounded_up:
            lines.append(
                f"Rounding the kept filters up to multiples of {self.keep_multiple_of} keeps "
                f"{self._rounded_up:,} more parameters, {self._rounded_up / before:.2%} of all"
            )
        lines += [
            f"Warning: {layer.name} nearly vanished: {layer.share_pruned:.1%} of it is pruned, "
            f"{layer.channels_after} of {layer.channels_before} channels are left; "
            "pruning.keep_per_layer would keep more"
            for layer in layers
            if layer.has_nearly_vanished
        ]
        if accuracies := self._describe_accuracies():
            lines.append(accuracies)
        return "\n".join(lines)

    def _describe_accuracies(self) -> str:
        told = [
            f"{when} "
            + ", ".join(f"{n / of:.1%} {name}" for name, (n, of) in values.items())
            + f" ({'/'.join(f'{of:,}' for _, of in values.values())} images)"
            for when, values in self.accuracies.items()
            if values
        ]
        if not told:
            return ""
        return f"Validation accuracy: {'; '.join(told)}"

    # Checkpoints

    @property
    def state_key(self) -> str:
        """The callback's name in checkpoints."""
        return "Pruning"

    def state_dict(self) -> dict[str, Any]:
        """Masks and settings, in tensors and plain values."""
        if self.masks is None:
            return {}
        return {
            "masks": dict(self.masks),
            "settings": self.settings,
            "shares": asdict(self.shares) if self.shares else None,
            "rounded_up": self._rounded_up,
            "accuracies": self.accuracies,
        }

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See that what is saved is pruned; a narrow network has no pruned weights."""
        if not cast(Classifier, pl_module).is_narrow:
            saved = checkpoint["state_dict"].items()
            state = {name.removeprefix("network."): value for name, value in saved}
            self._check_held(state, f"after epoch {trainer.current_epoch + 1}")

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how far training has come, and make the network and its optimizer narrow, if asked.

        The full network has its weights by now; optimizers are made later.
        """
        self._epochs_done = checkpoint["epoch"] + 1
        module = cast(Classifier, pl_module)
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != TrainerFn.FITTING or not state:
            return
        self.load_state_dict(state)
        self._take_channels_out(module)
        if module.optimizes_narrow and module.narrow_copy is not None:
            optimizer = module.build_optimizer(module.network, is_fine_tuning=True)
            checkpoint["optimizer_states"] = [
                module.narrow_copy.narrow_optimizer_state(saved, optimizer)
                for saved in checkpoint["optimizer_states"]
            ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up masks from a checkpoint; `on_fit_start` compares the settings."""
        if not state_dict:
            return
        self.masks = state_dict["masks"]
        self._saved_settings = state_dict["settings"]
        self.shares = Shares(**state_dict["shares"]) if state_dict["shares"] else None
        self._rounded_up = state_dict.get("rounded_up", 0)
        self.accuracies = state_dict["accuracies"]


def _pruned(masks: Masks) -> int:
    """Number of parameters that masks prune."""
    return sum(int((~mask).sum()) for mask in masks.values())


def _accuracy(correct: int, images: int) -> dict[str, Any]:
    """An accuracy with what it takes to judge it."""
    interval = wilson_interval(correct, images)
    return {"accuracy": correct / images, "interval": interval, "images": images}
