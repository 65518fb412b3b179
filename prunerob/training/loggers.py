"""What runs show in whatever loggers they have, beyond the numbers of an epoch.

Each shows what it can: TensorBoard everything; W&B and MLflow numbers, images and tables; CSV files
numbers. In TensorBoard, which sorts by name, curves come first: accuracy, loss, pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

from prunerob.robustness.drawing import draw
from prunerob.robustness.measure import Examples
from prunerob.robustness.table import Robustness
from prunerob.training.tensorboard import hyper_parameters

SHOW_IMAGES = (TensorBoardLogger, WandbLogger, MLFlowLogger)


def log_step(module: LightningModule) -> None:
    """Give an epoch's numbers their step, so that Lightning adds no curve `epoch`."""
    if module.trainer.state.fn == TrainerFn.FITTING:
        module.log("step", float(module.trainer.global_step))


def log_numbers(trainer: Trainer, numbers: Mapping[str, float]) -> None:
    """Numbers at the present step, by the tag of their curve."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(numbers), step=trainer.global_step)


@rank_zero_only
def log_examples(trainer: Trainer, test: str, examples: Examples) -> None:
    """Images and adversarial examples of them, with what the network says.

    Args:
        trainer: says where to write.
        test: the test's name; a tag has the attack's, too.
        examples: of one batch.
    """
    if not any(isinstance(logger, SHOW_IMAGES) for logger in trainer.loggers):
        return
    names = cast(Any, trainer).datamodule.class_names
    picture, text = draw(examples, names)
    tag = f"{test} examples/{examples.attack}"
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, dataformats="HWC")
            logger.experiment.add_text(tag, text)
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [picture], caption=[text])
        elif isinstance(logger, MLFlowLogger):
            file = f"{_file_name(tag)}.png"
            logger.experiment.log_image(logger.run_id, picture, file)


@rank_zero_only
def log_robustness(
    trainer: Trainer, name: str, robustness: Robustness, config: Mapping[str, Any]
) -> None:
    """The table of a test; in TensorBoard, the hyper-parameters that led to it, too.

    Args:
        trainer: says where to write.
        name: of the test.
        robustness: its result.
        config: the configuration, in plain values.
    """
    for logger in trainer.loggers:
        _log_table(logger, name, robustness, config)


def _log_table(
    logger: Logger, name: str, robustness: Robustness, config: Mapping[str, Any]
) -> None:
    title, text = f"{name} robustness", robustness.to_markdown()
    if isinstance(logger, TensorBoardLogger):  # which shows accuracies among hyper-parameters
        logger.experiment.add_text(title, text)
        results = {f"test/{row.attack}": row.accuracy for row in robustness.rows}
        logger.experiment.add_hparams(hyper_parameters(config), results, run_name=name)
        return
    logger.log_metrics({f"{name}/{row.attack}": row.accuracy for row in robustness.rows}, step=0)
    if isinstance(logger, WandbLogger):
        columns = ["attack", "accuracy", "low", "high", "images"]
        rows = [[r.attack, r.accuracy, *r.interval, r.images] for r in robustness.rows]
        logger.log_table(title, columns=columns, data=rows)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, f"{_file_name(title)}.md")


def _file_name(tag: str) -> str:
    """A tag as the name of a file."""
    return "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in tag)
