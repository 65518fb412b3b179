"""What cannot be trained is refused before it is."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from prunerob.cli import main
from prunerob.data import MNIST
from prunerob.errors import UserError
from prunerob.networks import MnistCNN, ResNet18
from prunerob.networks.narrow import narrow
from prunerob.networks.rewrite import layout_of
from prunerob.training import checks
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.checks import check_last_batch, choose_layout
from tests.conftest import FILTERS, NARROW, RUN, TINY, refused


def test_a_network_that_does_not_fit_the_images_is_refused_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--model.network.init_args.classes", "5"]
    told = refused(capsys, "fit", "--config", TINY, *few)
    assert "model.network: MnistCNN has 5 classes, but the data 10" in told
    wide = ["--model.network", "prunerob.networks.WideResNet", "--model.network.depth", "10"]
    told = refused(capsys, "fit", "--config", TINY, *wide)
    assert "WideResNet does not take images (1, 28, 28): images have 1 channels" in told
    inner = ["--pruning.reading", "parameters"]
    told = refused(capsys, "fit", "--config", TINY, *wide, *FILTERS, *NARROW, *inner)
    assert "pruning.narrow: a trial of one step failed: images have 1 channels" in told
    bad = ["--model.fine_tuning.optimizer.init_args.lr", "-1"]
    told = refused(capsys, "fit", "--config", TINY, *bad, *FILTERS, *NARROW)
    assert "pruning.narrow: a trial of one step failed: Invalid learning rate" in told
    assert not Path("lightning_logs/tiny/version_0/checkpoints").exists()


def test_settings_of_both_phases_are_checked_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = refused(capsys, "fit", "--config", TINY, "--model.optimizer.lr", "-1")
    assert "model.optimizer or model.schedule: Invalid learning rate" in told
    told = refused(capsys, "fit", "--config", TINY, "--model.fine_tuning.optimizer.lr", "-1")
    assert "model.fine_tuning: Invalid learning rate" in told
    told = refused(capsys, "fit", "--config", TINY, "--model.schedule.warmup", "1")
    assert "warmup of OneCycle: 1.0 lies outside (0, 1)" in told
    told = refused(capsys, "fit", "--config", TINY, "--pruning.criterion", "math.sqrt")
    assert "math.sqrt is no function of a network and a seed" in told
    assert not Path("lightning_logs/tiny/version_0/checkpoints").exists()


def test_true_half_precision_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["test", "--ckpt_path", str(run)], ["fit", "--config", TINY]):
        told = refused(capsys, *command, "--trainer.precision", "bf16-true")
        assert "bf16-true would make adversarial examples in another precision" in told


@pytest.mark.parametrize("is_fast", [True, False])
def test_slow_mixed_precision_is_told(is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a CPU lacks the instructions, in training alone; float32 is never slow."""
    monkeypatch.setattr(checks, "has_bfloat16", lambda device: is_fast)

    def told(precision: str, stage: TrainerFn) -> list[str]:
        trainer = Trainer(accelerator="cpu", devices=1, precision=precision, logger=False)  # type: ignore[arg-type]
        trainer.state.fn = stage
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checks.check_precision(trainer)
        return [str(warning.message) for warning in caught]

    assert not told("32-true", TrainerFn.FITTING)
    assert not told("bf16-mixed", TrainerFn.TESTING)
    messages = told("bf16-mixed", TrainerFn.FITTING)
    assert len(messages) == (0 if is_fast else 1)
    assert all("CPU has no instructions for bfloat16" in message for message in messages)
    assert all("--trainer.precision 32-true" in message for message in messages)


@pytest.mark.parametrize(
    ("warmup", "epochs", "prune_epoch", "acts"),
    [(2.9, 3, None, True), (3, 3, None, False), (3, 4, 1, False), (2.5, 4, 1, True)],
)
def test_weights_are_perturbed_in_some_phase(
    warmup: float, epochs: int, prune_epoch: int | None, acts: bool
) -> None:
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, logger=False)
    training = AdversarialTraining(weight_perturbation=0.1, weight_perturbation_warmup=warmup)
    with nullcontext() if acts else pytest.raises(UserError, match="never begins"):
        checks.check_training(trainer, MnistCNN(), {}, training, prune_epoch)


def test_mixed_precision_trains_and_tests(run: Path) -> None:
    main(["fit", "--config", TINY, "--trainer.precision", "bf16-mixed"])
    main(["test", "--ckpt_path", "lightning_logs/tiny/version_1"])
    # What is counted is counted in float32: a pixel of bfloat16 is off by up to half of 1/255.
    images = Path("lightning_logs/tiny/version_1/robustness_images.csv")
    mixed = images.read_text()
    main(["test", "--ckpt_path", "lightning_logs/tiny/version_1", "--trainer.precision", "32-true"])
    assert images.read_text() == mixed


def test_training_that_diverged_ends_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e30"]
    wild += ["--model.schedule", "prunerob.schedules.Constant"]
    told = refused(capsys, "fit", "--config", TINY, *wild)
    assert "training diverged: in epoch 1, conv1.weight is no longer finite" in told
    assert not list(Path().rglob("*.ckpt"))


class Masking(MnistCNN):
    """Holds what is not finite on purpose, as a mask of an attention layer."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))
        self.register_buffer("beyond", torch.full((2,), -torch.inf))


def test_what_was_never_finite_has_not_diverged() -> None:
    main(["fit", "--config", TINY, "--model.network", f"{__name__}.Masking"])
    assert (RUN / "summary.json").is_file()


class Normalised(MnistCNN):
    """Cannot train on a single image."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(super().forward(x))
        return out


def test_a_last_batch_of_one_image_is_told_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = ["--data.train_size", "321", "--model.network", f"{__name__}.Normalised"]
    one += ["--model.adversarial_training.weight", "1.0"]  # together with clean ones they are two
    told = refused(capsys, "fit", "--config", TINY, *one)
    assert "the last batch has one image for a device, which Normalised cannot" in told
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize(("size", "devices", "fits"), [(322, 1, True), (323, 2, False)])
def test_each_device_needs_two_images_of_the_last_batch(
    size: int, devices: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunerob.training.checks.ranks", lambda: devices)
    data = MNIST(train_size=size, batch_size=64, validation_size=0)
    data.setup("fit")
    with nullcontext() if fits else pytest.raises(UserError, match="one image for a device"):
        check_last_batch(Normalised(), data.train_dataloader(), torch.device("cpu"))


def test_networks_of_tutorials_run_as_they_are() -> None:
    main(["fit", "--config", TINY, "--model.network", "tests.conftest.LeNet"])
    assert (RUN / "pruning.json").is_file()
    main(["test"])
    main(["validate"])
    main(["predict"])
    assert (RUN / "predictions.csv").is_file()


@pytest.mark.parametrize(("width", "layout"), [(7, "plain"), (8, "channels-last")])
def test_a_network_that_a_processor_cannot_train_channels_last_is_laid_out_plainly(
    width: int, layout: str
) -> None:
    """oneDNN's AVX2 gradient of a 1x1 convolution of stride 2 that reads fewer than 8 channels."""
    network = ResNet18(width)
    choose_layout(network, torch.Size((3, 32, 32)), torch.device("cpu"))
    expected = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    assert layout_of(network) == expected
    assert layout_of(narrow(network.to(memory_format=torch.channels_last))) == expected
