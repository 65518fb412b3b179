"""What would end in wrong numbers, without a word, is refused or told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.io import write_png

from prunerob.cli import main
from prunerob.data import MNIST, ImageDataModule
from prunerob.data.batches import Images
from prunerob.errors import UserError
from prunerob.networks import Channels, MnistCNN
from prunerob.networks.channels import channels_of
from prunerob.pruning import Pruning, weight_magnitude
from prunerob.pruning.criteria import name_of
from prunerob.reports.reading import read_results
from prunerob.training.classifier import Classifier
from tests.test_cli import TINY, Interrupt, newest_run, refused, weights

RUN = Path("lightning_logs/tiny/version_0")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Masks that do not hold


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


# Epochs that were not validated, or not finished


def test_best_is_an_epoch_that_was_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned, the network is worse than its last accuracy before, which still stands there."""

    def log(module: Classifier) -> None:
        module.log("validation/clean_accuracy", 0.9 if module.current_epoch < 2 else 0.1)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", log)
    main(["fit", "--config", TINY, "--trainer.check_val_every_n_epoch", "2"])
    best = torch.load(RUN / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 3, "of epochs 1 and 3, the one that is pruned"


class Stop(Callback):
    """Ends training in the middle of an epoch, as trainer.max_time does."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.current_epoch == 3 and args[2] == 2:
            trainer.should_stop = True


class Terminate(Callback):
    """Asks the process to end, as a batch system does."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.current_epoch == 1 and args[2] == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_told_to_end_does_not_pass_for_a_finished_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunerob.commands.lightning.Progress", Terminate)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", TINY])
    assert end.value.code == 143
    assert (RUN / "checkpoints" / "last.ckpt").is_file()


def test_a_test_that_was_told_to_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(small().state_dict(), "small.safetensors")
    test = ["test", "--config", TINY, "--ckpt_path", "small.safetensors"]

    def stop(signum: int) -> Callable[..., None]:
        return lambda *args: os.kill(os.getpid(), signum)

    for signum, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        monkeypatch.setattr(Classifier, "on_test_batch_start", stop(signum))
        with pytest.raises(SystemExit) as end:
            main([*test, "--data.init_args.eval_batch_size", "20"])
        assert end.value.code == status
    assert not Path("small_robustness.json").exists()


def test_a_run_that_ran_out_of_time_is_not_finished(caplog: pytest.LogCaptureFixture) -> None:
    """In its first epoch, and after it was pruned."""
    first = ["--trainer.max_time", "00:00:00:00"]
    main(["fit", "--config", TINY, *first])
    assert "Stopped in its first epoch: nothing is saved" in caplog.text
    assert "trainer.max_time counts the time of all sessions" in caplog.text
    assert "go on with" not in caplog.text
    main(["fit", "--config", TINY, "--trainer.callbacks", f"{__name__}.Stop"])
    assert "Stopped before its 4 epochs were over; go on with: prunerob fit" in caplog.text
    run = newest_run()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "pruning.json").exists()


class Dropping(MnistCNN):
    """Draws from torch's own generator while it trains."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


def test_an_epoch_that_was_cut_short_is_not_saved_and_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With dropout, which draws as it would have without the interruption."""
    fit = ["fit", "--config", TINY, "--model.network", f"{__name__}.Dropping"]
    main(fit)
    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    monkeypatch.setattr("prunerob.commands.lightning.Progress", Stop)
    main(fit)
    stopped = newest_run()
    state = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 2
    assert not (stopped / "summary.json").exists()
    monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
    main(["fit", "--ckpt_path", str(stopped)])
    for name, value in weights(RUN).items():
        assert torch.equal(weights(stopped)[name], value), name


# Numbers that are none


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


def test_answers_that_are_no_numbers_are_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: torch.full_like(v, torch.nan) for name, v in small().state_dict().items()}
    save_file(state, "nan.safetensors")
    told = refused(capsys, "test", "--config", TINY, "--ckpt_path", "nan.safetensors")
    assert "answers to clean images are not finite" in told
    assert not Path("nan_robustness.json").exists()


def small() -> MnistCNN:
    return MnistCNN((8, 8, 8))


# Images that are not what they should be


class Own(ImageDataModule):
    """A data set whose `load` returns what it is told."""

    def __init__(self, images: Images) -> None:
        super().__init__(validation_size=0)
        self.images = images

    def load(self) -> tuple[Images, Images]:
        return self.images, self.images


@pytest.mark.parametrize(
    ("pixels", "labels", "told"),
    [
        (torch.zeros(3, 1, 4, 4), torch.zeros(3).long(), r"pixels of torch.float32, \(3, 1, 4, 4"),
        (torch.zeros(3, 4, 4).byte(), torch.zeros(3).long(), "should have torch.uint8, .N, C, H"),
        (torch.zeros(3, 1, 4, 4).byte(), torch.zeros(3).int(), "labels of torch.int32"),
        (torch.zeros(3, 1, 4, 4).byte(), torch.zeros(2).long(), "are 3, their labels 2"),
        (torch.zeros(0, 1, 4, 4).byte(), torch.zeros(0).long(), "are 0"),
        (torch.zeros(3, 1, 4, 4).byte(), torch.tensor([0, 1, -1]), "a label below 0"),
    ],
)
def test_a_data_set_must_be_of_bytes_and_classes(pixels: Tensor, labels: Tensor, told: str) -> None:
    with pytest.raises(UserError, match=rf"Own\.load: the training images .*{told}"):
        Own(Images(pixels, labels)).setup("fit")


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
    module = Classifier(
        network=Normalised(), optimizer=partial(torch.optim.SGD, lr=0.1), attacks={}
    )
    data = MNIST(train_size=size, batch_size=64, validation_size=0)
    data.setup("fit")
    with nullcontext() if fits else pytest.raises(UserError, match="one image for a device"):
        module._check_last_batch(data.train_dataloader())


def test_images_that_do_not_fit_the_network_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    save_file(small().state_dict(), "small.safetensors")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = Path("colour", split, name)
            folder.mkdir(parents=True)
            for i in range(3):
                write_png(torch.zeros(3, 28, 28, dtype=torch.uint8), str(folder / f"{i}.png"))
    data = ["--data", "prunerob.data.ImageFolder", "--data.folder", "colour"]
    data += ["--data.validation_size", "2", "--data.train_size", "null", "--data.test_size", "null"]
    for command in ("test", "validate", "predict"):
        told = refused(capsys, command, "--config", TINY, "--ckpt_path", "small.safetensors", *data)
        assert "MnistCNN does not take images (3, 28, 28)" in told


class LeNet(nn.Module):
    """As tutorials have it: `view`, which takes the plain layout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.linear = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        out: Tensor = self.linear(x.view(x.shape[0], -1))
        return out

    def channels(self) -> dict[str, Channels]:
        return {
            "conv1": Channels(readers=("conv2",)),
            "conv2": Channels(readers=("linear",)),
        }


def test_networks_of_tutorials_run_as_they_are() -> None:
    main(["fit", "--config", TINY, "--model.network", f"{__name__}.LeNet"])
    assert (RUN / "pruning.json").is_file()
    main(["test"])
    main(["validate"])
    main(["predict"])
    assert (RUN / "predictions.csv").is_file()


def test_networks_of_tutorials_run_without_their_silent_channels(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.4"]
    filters += ["--model.network", f"{__name__}.LeNet"]
    monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, 3))
    with pytest.raises(SystemExit):
        main(["fit", "--config", TINY, *filters])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    main(["fit", "--ckpt_path", str(RUN)])
    main(["fit", "--config", TINY, *filters, "--pruning.narrow", "true"])
    main(["test", "--ckpt_path", str(RUN)])
    assert (RUN / "robustness.json").is_file()
    assert not [w for w in recwarn if "depends on its number of channels" in str(w.message)]


# Tests of a part


def test_a_trial_does_not_replace_results(capsys: pytest.CaptureFixture[str]) -> None:
    save_file(small().state_dict(), "small.safetensors")
    test = ["test", "--config", TINY, "--ckpt_path", "small.safetensors"]
    main(test)
    file = Path("small_robustness.json")
    whole = file.read_text()
    part = ["--data.init_args.eval_batch_size", "20", "--trainer.limit_test_batches"]
    main([*test, *part, "1"])
    assert file.read_text() == whole
    assert "limit_test_batches: 0 leaves nothing" in refused(capsys, *test, *part, "0")


# Settings


class Power:
    """A criterion with a setting, as an object."""

    def __init__(self, power: int = 2) -> None:
        self.power = power

    def __call__(self, network: nn.Module, seed: int) -> dict[str, Tensor]:
        scores = weight_magnitude(network, seed)
        return {name: score**self.power for name, score in scores.items()}


@dataclass(frozen=True, slots=True)
class Slotted:
    """The same without a dictionary."""

    power: int = 2


def test_a_criterion_is_known_by_its_settings() -> None:
    assert name_of(Slotted(3)) == f"{__name__}.Slotted(power=3)"  # type: ignore[arg-type]
    assert name_of(weight_magnitude) == "prunerob.pruning.criteria.weight_magnitude"
    assert name_of(Power(3)) == name_of(Power(3)) == f"{__name__}.Power(power=3)"
    assert name_of(Power(3)) != name_of(Power(2))
    assert name_of(partial(weight_magnitude, seed=1)).endswith("weight_magnitude(seed=1)")


def mixed(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores filters of one layer and weights of another."""
    scores = weight_magnitude(network, seed)
    return {**scores, "conv1.weight": scores["conv1.weight"].flatten(1).mean(1)}


def of_everything(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores weights and biases alike."""
    return {name: value.detach().abs() for name, value in network.named_parameters()}


def of_outputs(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Scores the outputs of a layer that is no convolution of the network's map."""
    return {"linear.weight": weight_magnitude(network, seed)["linear.weight"].mean(1)}


def energy(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """A score for each filter, by a name that does not say so."""
    scores = weight_magnitude(network, seed)
    return {f"{n}.weight": scores[f"{n}.weight"].flatten(1).mean(1) for n in channels_of(network)}


def test_a_criterion_that_scores_what_cannot_be_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    for criterion, told in (
        ("mixed", "scores some layers by filter and others by weight"),
        ("of_outputs", "scores the filters of linear.weight, which MnistCNN.channels() does not"),
    ):
        name = f"{__name__}.{criterion}"
        assert told in refused(capsys, "fit", "--config", TINY, "--pruning.criterion", name)
        sweep = ["sweep", "--config", TINY, "--criterion", name, "--amount", "0.5"]
        assert told in refused(capsys, *sweep)
        assert not Path("sweeps").exists()
    # What is left out is not looked at.
    args = ["--pruning.criterion", f"{__name__}.mixed", "--pruning.exclude", "[conv1]"]
    main(["fit", "--config", TINY, *args])
    # A bias has a score for each of its numbers, too.
    main(["fit", "--config", TINY, "--pruning.criterion", f"{__name__}.of_everything"])
    masks = torch.load(newest_run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert "conv1.bias" in masks["callbacks"]["Pruning"]["masks"]


def test_what_a_criterion_prunes_is_told_by_its_scores() -> None:
    args = ["--pruning.criterion", f"{__name__}.energy", "--pruning.amount", "0.5"]
    main(["fit", "--config", TINY, *args, "--pruning.reading", "parameters"])
    main(["test"])
    (row,) = (r for r in read_results([str(RUN)]).all if not r.point.is_dense)
    assert (row.unit, row.point.method) == ("filters", "energy (parameters)")


def test_masks_of_another_run_must_be_of_the_same_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.5"]
    even = ["--pruning.keep_multiple_of", "2"]
    main(["fit", "--config", TINY, *filters, *even])
    report = json.loads((RUN / "pruning.json").read_text())
    again = ["fit", "--config", TINY, *filters, "--pruning.epoch", "0"]
    again += ["--pruning.masks_from", str(RUN)]
    told = refused(capsys, *again)
    assert "pruning.keep_multiple_of: 1, but" in told
    main([*again, *even])
    kept = json.loads((newest_run() / "pruning.json").read_text())["parameters_kept_by_rounding_up"]
    assert kept == report["parameters_kept_by_rounding_up"]


class Tied(MnistCNN):
    """Two names for the same weights."""

    def __init__(self) -> None:
        super().__init__((8, 8, 8))
        self.again = self.conv3


def test_tied_weights_are_saved_under_both_names() -> None:
    main(["fit", "--config", TINY, "--model.network", f"{__name__}.Tied"])
    saved = load_file(RUN / "weights.safetensors")
    assert torch.equal(saved["again.weight"], saved["conv3.weight"])
    main(["test"])
    assert json.loads((RUN / "robustness.json").read_text())["rows"][0]["images"] == 60


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--model.scrutinized_images", "-3"], "model.scrutinized_images: -3 is below 0"),
        (["--model.validation_attack_images", "-1"], "validation_attack_images: -1 is below 0"),
        (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run: stops before anything is"),
        (
            ["--pruning.epoch", "null", "--trainer.max_epochs", "-1", "--trainer.max_steps", "3"],
            "trainer.max_epochs: phases are counted in epochs",
        ),
    ],
)
def test_settings_that_cannot_be_meant(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "fit", "--config", TINY, *args)


@pytest.mark.parametrize(
    ("leads", "told"),
    [
        ({"conv9": Channels()}, "'conv9' is no layer of it"),
        ({"conv1": Channels(readers=("conv4",))}, "'conv4' is no layer of it"),
        ({"conv1": Channels(norms=("conv3",))}, "conv3 is of 5 channels"),
        ({"conv3": Channels(readers=("conv2",))}, "conv2 reads 8 channels, which cannot be the 5"),
    ],
)
def test_a_map_of_channels_must_fit_the_network(leads: dict[str, Channels], told: str) -> None:
    class Mapped(MnistCNN):
        def channels(self) -> dict[str, Channels]:
            return leads

    with pytest.raises(UserError, match=rf"Mapped\.channels\(\): .*{told}"):
        channels_of(Mapped((8, 16, 5)))


def test_a_map_of_channels_may_name_a_normalisation_without_weights() -> None:
    class Mapped(MnistCNN):
        def __init__(self, width: int) -> None:
            super().__init__((8, 16, 5))
            self.norm = nn.BatchNorm2d(width, affine=False)

        def channels(self) -> dict[str, Channels]:
            return {"conv1": Channels(readers=("conv2",), norms=("norm",))}

    assert channels_of(Mapped(8)).keys() == {"conv1"}
    with pytest.raises(UserError, match="norm is of 9 channels, conv1 of 8"):
        channels_of(Mapped(9))


def test_the_shipped_data_set_is_as_it_should_be() -> None:
    data = MNIST()
    data.setup("fit")
    assert len(data._images()[0].labels) == 60_000
