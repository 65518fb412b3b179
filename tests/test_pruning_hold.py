"""Pruned weights stay 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunerob import HoldMasks, prune
from prunerob.cli import main
from prunerob.pruning import Pruning, filter_l1, weight_magnitude
from prunerob.pruning.cut import make_masks
from prunerob.pruning.hold import Hold
from tests.conftest import TINY, newest_run, random_network, refused, seeds


@settings(deadline=None, max_examples=12)
@given(
    seeds,
    st.sampled_from([weight_magnitude, filter_l1]),
    st.sampled_from(["sgd", "adam", "rmsprop"]),
)
def test_pruned_stays_pruned_through_momentum_and_weight_decay(
    seed: int, criterion: Callable[..., object], kind: str
) -> None:
    network = random_network(seed)
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    elif kind == "adam":
        optimizer = torch.optim.Adam(network.parameters(), 0.1, weight_decay=0.1)
    else:
        optimizer = torch.optim.RMSprop(network.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        for parameter in network.parameters():  # gradients of its own: no network is dead to them
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    step()  # momentum that would bring pruned weights back
    masks = make_masks(network, criterion(network, 0), 0.5)  # type: ignore[arg-type]
    Hold(network, masks).follow(optimizer)
    before = {name: p.clone() for name, p in network.named_parameters()}
    for _ in range(3):
        step()
        for name, mask in masks.items():
            assert (network.get_parameter(name)[~mask] == 0).all()
    assert any((network.get_parameter(n)[m] != before[n][m]).any() for n, m in masks.items())


class Refill(Callback):
    """Does what an average over the weights of several epochs would do."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch == 2:
            with torch.no_grad():
                pl_module.network.conv1.weight.add_(0.1)


def test_weights_that_come_back_are_never_saved_as_pruned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("EMAWeightAveraging", "StochasticWeightAveraging"):
        callback = ["--trainer.callbacks", f"pytorch_lightning.callbacks.{name}"]
        lrs = ["--trainer.callbacks.swa_lrs", "0.1"] if name.startswith("Sto") else []
        told = refused(capsys, "fit", "--config", TINY, *callback, *lrs)
        assert f"trainer.callbacks: {name} would bring pruned weights back" in told
    told = refused(capsys, "fit", "--config", TINY, "--trainer.callbacks", f"{__name__}.Refill")
    assert "after epoch 3, pruned weights of conv1.weight are not 0" in told
    state = torch.load(newest_run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 1


class Gradients(Callback):
    """Notes the largest gradient of a pruned weight."""

    largest = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        (pruning,) = (c for c in trainer.callbacks if isinstance(c, Pruning))
        for name, mask in (pruning.masks or {}).items():
            gradient = pl_module.network.get_parameter(name).grad
            if gradient is not None:
                Gradients.largest = max(Gradients.largest, float(gradient[~mask].abs().max()))


def test_pruned_weights_are_no_part_of_the_norm_that_is_clipped() -> None:
    few = ["--data.train_size", "128", "--data.validation_size", "0"]
    note = ["--trainer.callbacks", f"{__name__}.Gradients", *few]
    main(["fit", "--config", TINY, *note])
    assert Gradients.largest > 0, "they have gradients, which nothing need take away"
    Gradients.largest = 0.0
    main(["fit", "--config", TINY, *note, "--trainer.gradient_clip_val", "0.5"])
    assert Gradients.largest == 0


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.inner(batch[0]).square().sum()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9, weight_decay=0.1)


def test_a_callback_holds_masks_in_any_module_and_goes_on_with_them(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(torch.rand(8, 6)), batch_size=2)

    def trained(epochs: int, seed: int, **settings: object) -> tuple[Plain, HoldMasks]:
        torch.manual_seed(seed)
        module = Plain()
        hold = HoldMasks(module.inner, prune(module.inner, 0.5))
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=tmp_path,
            callbacks=[hold],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, data, **settings)  # type: ignore[arg-type]
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module, hold

    module, hold = trained(1, 0)
    pruned = module.inner.weight == 0
    assert torch.equal(pruned, ~hold.masks["weight"])
    assert int(pruned.sum()) == 12
    # Another's masks would be others; those of the checkpoint are held.
    module, hold = trained(2, 1, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(module.inner.weight == 0, pruned)
    assert torch.equal(hold.masks["weight"], ~pruned)
