"""`fit`, `validate`, `test`, `predict`: what LightningCLI does, and what prunerob adds to it."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import register_type
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

import prunerob.networks  # noqa: F401  (so that its networks are known by their short names)
from prunerob.artefacts.attacked import Artefact, load_artefact
from prunerob.artefacts.card import note_test
from prunerob.attacks import Attack
from prunerob.commands.arguments import Arguments
from prunerob.commands.configurations import check_file, check_seed, check_strategy, check_values
from prunerob.commands.curve import draw_curves
from prunerob.commands.endings import told
from prunerob.commands.loggers import (
    default_logger,
    loggers_of_new_run,
    loggers_of_run,
    loggers_of_test,
)
from prunerob.commands.mistakes import REFUSALS, Parser, refusing
from prunerob.commands.recording import SaveConfig
from prunerob.data import Augmentation, ImageDataModule
from prunerob.errors import UserError
from prunerob.pixels import Pixels
from prunerob.pruning import Pruning, PruningSchedule
from prunerob.robustness.diagnostics import review
from prunerob.robustness.files import write
from prunerob.robustness.journal import open_journal
from prunerob.robustness.predictions import PredictionFormat, write_predictions
from prunerob.robustness.show import show
from prunerob.runs.folder import CHECKPOINTS, Run, check_writable
from prunerob.runs.lock import locked
from prunerob.runs.plain import read_yaml
from prunerob.runs.ranks import destroy_process_group, gather, lost_ranks
from prunerob.runs.weights import Weights, find_weights, load_weights, network_before_pruning
from prunerob.schedules import Schedule
from prunerob.training import checks
from prunerob.training.checkpoints import Checkpoints, about_machine
from prunerob.training.classifier import Classifier
from prunerob.training.loggers import log_robustness
from prunerob.training.progress import Progress, log_above_bars
from prunerob.training.resuming import check_training_state, restoring
from prunerob.training.tensorboard import quiet_writers

NOT_FOR_USERS = {
    *("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"),
    *("verbose", "return_predictions"),
    "weights_only",  # True always, so that no checkpoint can run code
}
"""Arguments of the Trainer's methods that the command line leaves out."""

register_type(Pixels, serializer=str, deserializer=Pixels)
# Settings of attacks, augmentations and schedules are dataclasses, yet chosen by class_path.
set_parsing_settings(subclasses_enabled=[Attack, Augmentation, PruningSchedule, Schedule])


def run(args: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        args: the command line without the program's name.
    """
    rank_zero = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "Tip:" not in record.getMessage())
    log_above_bars()
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", r".*smaller than the logging interval")  # logs are by epoch
    warnings.filterwarnings("ignore", r".*recommended to use .*sync_dist=True")  # counts are of all

    command, *rest = args
    if command != "fit" and rest and not rest[0].startswith("-"):  # `prunerob test RUN`
        rest = ["--ckpt_path", *rest]
    known = Arguments(command, "", has_help=False)
    known.add_argument("-c", "--config", action="append", default=[])
    known.add_argument("--ckpt_path")
    if command != "fit":  # where weights to begin with are those that are meant
        known.add_argument("--model.weights", dest="ckpt_path")
    if command == "test":
        known.add_argument("--curve", action="store_true")
    if command == "predict":
        known.add_argument("--json", action="store_true")
        known.add_argument("--top_k", type=int)
    options, rest = known.parse_known_args(rest)
    configs = list(options.config)
    asks = {"-h", "--help", "--print_config"} & {word.split("=")[0] for word in rest}
    weights = None
    if command == "fit" and options.ckpt_path in CHECKPOINTS and not configs:
        raise UserError(
            f"--ckpt_path {options.ckpt_path}: of which run? Name its folder, as in "
            "`prunerob fit --ckpt_path lightning_logs/mnist_pgd/version_0`"
        )
    if not asks and (command != "fit" or options.ckpt_path is not None):
        weights = find_weights(options.ckpt_path, configs[-1] if configs else None)
        if not configs:
            if weights.config is None:
                raise UserError(f"--config is missing: none lies with {weights.file}")
            configs = [str(weights.config)]
            if weights.run is None:  # a configuration is code: say which one is taken
                rank_zero_info(f"Using {weights.config}, which lies with {weights.file.name}")
        if weights.origin:
            rank_zero_info(f"Using {weights.file}, from {weights.origin}")
    for config in reversed(configs):
        check_file(Path(config))
        rest = ["--config", config, *rest]
    if command == "fit" and weights:
        place = weights.origin if weights.results else str(weights.file)
        rest += ["--ckpt_path", place]
    try:
        with Held() as held, quiet_writers(), lost_ranks("the same command"):
            asked = vars(options)
            form = PredictionFormat(as_json=asked.get("json", False), top_k=asked.get("top_k"))
            CommandLine(command, rest, weights, held, form, asked.get("curve", False))
    except MisconfigurationException as error:
        of = "trainer: " if "_batches" in str(error) else ""
        raise UserError(f"{of}{error}") from error
    except SystemExit as end:
        # As a shell has it of what a signal ended: no script must take it for a finished command.
        if isinstance(end, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from None
        if isinstance(end.__context__, KeyboardInterrupt):  # as Lightning ends it
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    finally:
        destroy_process_group()


class Held(ExitStack):
    """What a command holds; copies of what refers to it, as weight averaging makes, share it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return self


class CommandLine(LightningCLI):
    """LightningCLI with prunerob's parts: `model`, `data`, `pruning`, and safe loading.

    Args:
        command: "fit", "validate", "test" or "predict".
        args: the rest of the command line.
        weights: the trained weights to start from or to test; None for a new run.
        held: what is held until the command ends, as the lock on its run.
        form: of predictions.
        curve: whether a test draws the security curve, in place of running the suite.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str],
        weights: Weights | None,
        held: Held,
        form: PredictionFormat | None = None,
        curve: bool = False,
    ) -> None:
        self.curve = curve
        self.form = form or PredictionFormat()
        self.weights = weights
        self.held = held
        self.goes_on = False
        self.artefact: Artefact | None = None
        # This one alone: making the parser of a command takes seconds.
        self.subcommands = lambda: {command: NOT_FOR_USERS}  # type: ignore[method-assign]
        super().__init__(
            model_class=Classifier,
            datamodule_class=ImageDataModule,
            subclass_mode_data=True,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            trainer_defaults={
                "callbacks": [Checkpoints()],
                "num_sanity_val_steps": 0,
                "devices": 1,
                "enable_model_summary": False,
                "logger": default_logger(),
            },
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "prunerob"},
            args=[command, *args],
        )

    # Parsing

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for everything: initial weights, order of images, noise of attacks."""
        parser.add_argument("--seed_everything", type=int, default=0, help="The run's seed.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `pruning`, and give the seed to all who need it."""
        parser.add_lightning_class_args(Pruning, "pruning")
        for target in ("model.seed", "data.init_args.seed", "pruning.seed"):
            parser.link_arguments("seed_everything", target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; LightningCLI's own would warn about `sys.argv`."""
        check_seed(args)
        self.config = parser.parse_args(args)
        check_values(self.config[self.config.subcommand], self.config.subcommand)
        seed = self.config[self.config.subcommand].seed_everything
        if not 0 <= seed < 2**32:
            raise UserError(f"seed_everything: {seed} lies outside [0, 2^32)")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: LightningCLI would take values from the checkpoint."""

    # Instantiation

    def before_instantiate_classes(self) -> None:
        """Direct what the command writes to the folder of the run it is about."""
        config = self.config[self.subcommand]
        configured = config.trainer.logger
        if self.subcommand == "fit":
            config.trainer.logger = loggers_of_new_run(configured)
            if self.weights and self._goes_on(self.weights, config):
                config.trainer.logger = loggers_of_run(self.weights.folder, configured)
                self.save_config_callback = None
                self.goes_on = True
                rank_zero_info(f"Going on with {self.weights.folder}")
            if not config.trainer.logger:
                raise UserError("trainer.logger: a run needs one, whose folder becomes the run's")
            return
        assert self.weights is not None
        check_writable(self.weights.folder)
        folder = self.weights.run.folder if self.weights.run else None
        tests = self.subcommand == "test"
        config.trainer.logger = tests and loggers_of_test(folder, configured)

    def _goes_on(self, weights: Weights, config: Namespace) -> bool:
        """Whether `fit` goes on with a run in its own folder.

        It does from the run's last checkpoint with the run's own configuration. Anything else
        is a new run: a run's record must repeat it.
        """
        if weights.run is None or weights.file != weights.run.checkpoint():
            return False
        record = read_yaml(weights.run.config)
        if not isinstance(record, dict):
            raise UserError(f"{weights.run.config} is damaged: it is no configuration")
        return {**self.plain_config(), "ckpt_path": None} == {**record, "ckpt_path": None}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the progress bar, unless it is not wanted."""
        if self.config[self.subcommand].trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(Progress())
        try:
            return super().instantiate_trainer(**kwargs)
        except REFUSALS as error:
            # Of the Trainer, which names its arguments; callbacks and loggers are made before.
            raise UserError(f"trainer: {error}") from error
        except MisconfigurationException as error:
            key = "trainer.max_time" if "Timer(duration" in str(error) else "trainer"
            raise UserError(f"{key}: {str(error)[:300]}") from error

    def instantiate_classes(self) -> None:
        """Instantiate; a setting that a class refuses is the user's mistake, not a crash."""
        with refusing():
            super().instantiate_classes()
        folder = self.trainer.log_dir if self.subcommand == "fit" else None
        is_trial = bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        if folder and self.trainer.is_global_zero and not is_trial:
            self.held.enter_context(locked(Path(folder)))
            if self.goes_on:
                check_writable(Run(Path(folder)).checkpoint().parent)
        if folder and not self.goes_on and Run(Path(folder)).config.is_file():
            raise UserError(f"{folder} already holds a run; go on with it, or name another")
        if self.trainer.world_size > 1 and sys.argv[1:2] != [self.subcommand]:
            # The other ranks repeat the process's command line, whatever it is.
            raise UserError(
                f"trainer.devices: start `prunerob {self.subcommand}` from a shell to use several"
            )
        check_strategy(self.trainer)

    # The commands

    def fit(self, model: Classifier, datamodule: ImageDataModule, ckpt_path: str | None) -> None:
        """Train, prune, fine-tune."""
        if ckpt_path is not None:
            # Already found, unless a configuration that repeats a branched run names it.
            file = (self.weights or find_weights(ckpt_path)).file
            # A run that was killed in its last moments has no summary: fit brings it to its end.
            run = self.weights.run if self.weights and self.goes_on else None
            ends = run is not None and not run.summary.is_file()
            check_training_state(model.network, file, self.trainer.max_epochs, ends=ends)
            ckpt_path = str(file)
        elif model.weights is not None:
            load_weights(model.network, Path(model.weights), key="model.weights")
        with told(self.trainer, model), restoring(ckpt_path):
            self.trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=True)

    def validate(self, model: Classifier, datamodule: ImageDataModule, **_: object) -> None:
        """Measure on the validation images."""
        self._load(model, datamodule)
        if datamodule.validation_size == 0:
            raise UserError("data.validation_size: 0 leaves no images to validate on")
        self.trainer.validate(model, datamodule=datamodule)

    def test(self, model: Classifier, datamodule: ImageDataModule, **_: object) -> None:
        """Attack the test images with the whole suite and write the table."""
        weights = self._load(model, datamodule)
        if self.curve:
            self._draw_curve(model, datamodule, weights)
            return
        if model.scrutinized_images and not self.artefact:
            model.before_pruning = network_before_pruning(model.network, weights)
        model.test_name = weights.result("test").name.replace("_", " ", 1)
        config = self.plain_config()
        record = {g: config["model"][g] for g in ("attacks", "worst_case_attacks")}
        of = {"suite": record, "seed": model.seed, **{k: config[k] for k in ("data", "trainer")}}
        model.journal = self.held.enter_context(open_journal(weights, model.network, of))
        self.trainer.test(model, datamodule=datamodule, verbose=False)
        if model.robustness is None:
            raise UserError("trainer.limit_test_batches: 0 leaves nothing to test")
        suite, training = model.suite, model.adversarial_training.attack
        warnings = review(model.robustness, suite.attacks, training=training)
        if self.artefact:
            warnings += self.artefact.review(model.robustness)
            model.robustness = self.artefact.told(model.robustness)
        about = {"seed": model.seed, **about_machine(model.device), "suite": record}
        images = len(datamodule.test_dataloader().index)
        about |= {"test_size": datamodule.test_size, "test_images": images, "warnings": warnings}
        about["test_on"] = datamodule.test_on
        if not self.trainer.is_global_zero:
            return
        model.journal.remove()  # all ranks have given theirs
        if (tested := len(model.robustness.index)) < images:
            show(model.robustness, weights, warnings, suite)
            rank_zero_info(
                f"Not written: {tested} of {images:,} test images are a trial; "
                "data.test_size chooses fewer for good"
            )
            return
        files = write(model.robustness, weights, about)
        log_robustness(self.trainer, model.test_name, model.robustness, config)
        show(model.robustness, weights, warnings, suite)
        note_test(weights.file, files[-1])
        rank_zero_info("Written: " + ", ".join(str(file) for file in files))

    def _draw_curve(self, model: Classifier, data: ImageDataModule, weights: Weights) -> None:
        if self.trainer.world_size > 1:
            raise UserError("trainer.devices: --curve takes one")
        data.prepare_data()
        data.setup("test")
        model.to(self.trainer.strategy.root_device)
        checks.choose_layout(model.network, data.image_shape, model.device)
        checks.check_images(model.network, data.test_dataloader(), self.trainer)
        files = draw_curves(model, data, weights)
        rank_zero_info("Written: " + ", ".join(str(file) for file in files))

    def predict(self, model: Classifier, datamodule: ImageDataModule, **_: object) -> None:
        """Classify images into a CSV file."""
        weights = self._load(model, datamodule)
        batches = cast(Any, self.trainer.predict(model, datamodule=datamodule))
        together = [batch for part in gather(batches or []) for batch in part if len(batch[0])]
        if not self.trainer.is_global_zero:
            return
        together.sort(key=lambda batch: int(batch[0][0]))
        file = weights.folder / f"{weights.result('predictions').name}.{self.form.suffix}"
        names, classes = datamodule.predict_names, datamodule.class_names
        write_predictions(file, together, names, classes, self.form)
        rank_zero_info(f"Written: {file}")

    def _load(self, model: Classifier, data: ImageDataModule) -> Weights:
        """Load the weights, or let the model answer from the file that they were exported to."""
        assert self.weights is not None
        self.artefact = load_artefact(self.weights.file, model.network, model.suite, data)
        if self.artefact:
            model.network, model.suite = self.artefact.network, self.artefact.suite
        else:
            load_weights(model.network, self.weights.file)
        return self.weights

    def plain_config(self) -> dict[str, Any]:
        """The whole configuration of the command, in plain values."""
        parser = self._parser(self.subcommand)
        dumped = parser.dump(self.config[self.subcommand], skip_none=False)
        return cast(dict[str, Any], yaml.safe_load(dumped))
