"""What Lightning costs: the CPU time of a training step through the Trainer against a bare loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, Trainer

from prunerob.attacks import PGD, NoAttack
from prunerob.data import MNIST
from prunerob.networks import MnistCNN
from prunerob.noise import image_keys
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.classifier import Classifier
from prunerob.training.progress import Progress

pytestmark = pytest.mark.slow

STEPS, WARM_UP = 60, 10


class Clock(Callback):
    """Notes the process's CPU time at the start of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: object) -> None:
        self.times.append(process_time())


def per_step(times: list[float]) -> float:
    return statistics.median(
        b - a for a, b in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)
    )


def by_trainer(data: MNIST, folder: Path) -> float:
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=STEPS,
        limit_val_batches=0,
        accelerator="cpu",
        callbacks=[clock, Progress()],
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = Classifier(
        network=MnistCNN(),
        optimizer=partial(torch.optim.RMSprop, lr=1e-3),
        attacks={},
        adversarial_training=AdversarialTraining(attack=NoAttack()),
    )
    trainer.fit(module, datamodule=data)
    return per_step(clock.times)


def by_loop(data: MNIST) -> float:
    network = MnistCNN().to(memory_format=torch.channels_last)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3)
    times = []
    for step, (x, y, _) in enumerate(data.train_dataloader()):
        times.append(process_time())
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        if step == STEPS:
            break
    return per_step(times)


def by_attack(data: MNIST) -> float:
    network = MnistCNN().to(memory_format=torch.channels_last)
    x, y, index = next(iter(data.train_dataloader()))
    key = image_keys(index, seed=0, purpose="training")
    attack: Callable[..., object] = PGD()
    times = []
    for _ in range(3):
        start = process_time()
        attack(network, x, y, key=key)
        times.append(process_time() - start)
    return statistics.median(times)


def test_lightning_costs_under_5_percent_of_a_pgd_training_step(tmp_path: Path) -> None:
    data = MNIST()
    data.setup("fit")
    rounds = [(by_trainer(data, tmp_path), by_loop(data), by_attack(data)) for _ in range(5)]
    trainer, loop, attack = (statistics.median(column) for column in zip(*rounds, strict=True))
    overhead = (trainer - loop) / (attack + 2 * loop)
    print(f"{1000 * (trainer - loop):.2f} ms of Lightning in a PGD-40 step, {overhead:.2%}")
    assert overhead < 0.05
