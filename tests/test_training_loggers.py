"""What a test shows in loggers other than TensorBoard's, and to which loggers a command writes."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace, dict_to_namespace
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, WandbLogger
from torch import nn

from prunerob import FGSM, evaluate
from prunerob.cli import main
from prunerob.commands.loggers import loggers_of_new_run, loggers_of_run, loggers_of_test
from prunerob.robustness.drawing import RIGHT, WRONG, draw
from prunerob.robustness.measure import Examples
from prunerob.runs.folder import Run
from prunerob.training.loggers import log_examples, log_robustness

TINY = str(Path(__file__).parent / "tiny.yaml")
PATH = "pytorch_lightning.loggers"


def examples(channels: int = 1) -> Examples:
    x = torch.rand(12, channels, 8, 8)
    return Examples(
        attack="FGSM 8/255",
        x=x,
        x_adv=(x + 0.1).clamp(0, 1),
        labels=torch.arange(12) % 3,
        before=torch.arange(12) % 3,
        after=torch.zeros(12, dtype=torch.int64),
    )


class Wandb(WandbLogger):
    """W&B's logger without its service; its methods must be callable as they are called."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in ("log_image", "log_table", "log_metrics"):
            return super().__getattribute__(name)
        signature = inspect.signature(getattr(WandbLogger, name))
        told = super().__getattribute__("told")

        def call(*args: Any, **settings: Any) -> None:
            told.append((name, dict(signature.bind(self, *args, **settings).arguments)))

        return call


class MLflow(MLFlowLogger):
    """MLflow's logger with a client that writes down what it is asked for."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, str]] = []
        self.numbers: dict[str, float] = {}

    @property
    def experiment(self) -> Any:
        def log_image(run_id: str, image: object, artifact_file: str) -> None:
            self.told.append((run_id, image, artifact_file))

        return SimpleNamespace(log_image=log_image, log_text=log_image)

    @property
    def run_id(self) -> str:
        return "run"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.numbers |= metrics


def trainer_with(*loggers: object) -> Trainer:
    module = SimpleNamespace(class_names=["cat", "dog", "bird"])
    return cast(Trainer, SimpleNamespace(loggers=loggers, datamodule=module, global_step=0))


def test_others_get_images_and_tables_as_they_take_them(tmp_path: Path) -> None:
    wandb, mlflow, csv = Wandb(), MLflow(), CSVLogger(str(tmp_path))
    trainer = trainer_with(wandb, mlflow, csv)
    log_examples(trainer, "test", examples())
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    labels = network(examples().x).argmax(1)
    labels[:3] = (labels[:3] + 1) % 3
    robustness = evaluate(network, examples().x, labels, {"PGD": FGSM(eps=0)})
    log_robustness(trainer, "test", robustness, {})
    (image, shown), (numbers, logged), (table, held) = wandb.told
    assert (image, numbers, table) == ("log_image", "log_metrics", "log_table")
    assert shown["key"] == "test examples/FGSM 8/255"
    assert shown["images"][0].shape[2] == 3
    assert "dog: dog → cat" in shown["kwargs"]["caption"][0]
    assert logged["metrics"]["test/PGD"] == robustness.rows[1].accuracy
    assert held["data"][1][:2] == ["PGD", robustness.rows[1].accuracy]
    (_, picture, file), (run, text, page) = mlflow.told
    assert (run, file, page) == ("run", "test_examples_FGSM_8_255.png", "test_robustness.md")
    assert isinstance(picture, np.ndarray)
    assert "| PGD" in text
    assert mlflow.numbers["test/PGD"] == robustness.rows[1].accuracy
    csv.save()
    assert "test/PGD" in Path(csv.log_dir, "metrics.csv").read_text()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_says_what_the_network_said(channels: int) -> None:
    picture, text = draw(examples(channels), ["cat", "dog", "bird"], columns=3)
    assert text.endswith("cat: cat → cat, dog: dog → cat, bird: bird → cat")
    pixels = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    for colour in (RIGHT, WRONG):
        assert tuple(bytes.fromhex(colour[1:])) in pixels
    assert draw(examples(channels), columns=2)[1].endswith("0: 0 → 0, 1: 1 → 0")


def logger(name: str) -> Namespace:
    made: Namespace = dict_to_namespace({"class_path": f"{PATH}.{name}", "init_args": {}})
    return made


def names(loggers: Any) -> list[str]:
    listed = loggers if isinstance(loggers, list) else [loggers]
    return [made.class_path.rpartition(".")[2] for made in listed]


def test_a_run_has_a_folder_whatever_its_loggers(tmp_path: Path) -> None:
    wandb, csv, board = (logger(f"{n}Logger") for n in ("Wandb", "CSV", "TensorBoard"))
    assert loggers_of_new_run(csv) is csv
    assert loggers_of_new_run(False) is False
    assert names(loggers_of_new_run(wandb)) == ["TensorBoardLogger", "WandbLogger"]
    assert names(loggers_of_new_run([wandb, csv])) == ["CSVLogger", "WandbLogger"]
    assert names(loggers_of_run(tmp_path, board)) == ["TensorBoardLogger"]
    assert names(loggers_of_run(tmp_path, [csv, wandb])) == [
        *("TensorBoardLogger", "CSVLogger", "WandbLogger")
    ]
    assert names(loggers_of_test(tmp_path, [csv, wandb])) == ["TensorBoardLogger", "WandbLogger"]
    assert names(loggers_of_test(None, [board, wandb])) == ["WandbLogger"]
    assert loggers_of_test(None, board) is False


def test_a_resumed_run_goes_on_with_its_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(Path(TINY).read_text())
    init_args = {"save_dir": "runs", "name": "", "version": "one"}
    config["trainer"]["logger"] = {"class_path": f"{PATH}.CSVLogger", "init_args": init_args}
    Path("csv.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "csv.yaml"])
    run = Run(Path("runs/one"))
    before = (run.folder / "metrics.csv").read_text().splitlines()
    # As if it had been killed after the second epoch.
    run.checkpoint("before_pruning").replace(run.checkpoint())
    run.summary.unlink()
    main(["fit", "--ckpt_path", str(run.folder)])
    assert (run.folder / "metrics.csv").read_text().splitlines() == before
    assert len((run.folder / "csv/version_0/metrics.csv").read_text().splitlines()) > 1


def test_the_test_of_a_lone_file_leaves_its_results_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", TINY, "--trainer.max_epochs", "1", "--pruning.epoch", "null"])
    run = tmp_path / "lightning_logs" / "tiny" / "version_0"
    alone = tmp_path / "alone"
    alone.mkdir()
    (run / "weights.safetensors").rename(alone / "net.safetensors")
    (run / "config.yaml").rename(alone / "net.yaml")
    main(["test", "--ckpt_path", str(alone / "net.safetensors")])
    endings = {file.name.removeprefix("net_robustness") for file in alone.iterdir()}
    assert endings == {"net.safetensors", "net.yaml", ".csv", ".md", ".json", "_images.csv"}
