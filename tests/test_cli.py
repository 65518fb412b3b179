"""The command line, end to end, on a few hundred real images and a small network."""

from __future__ import annotations

import csv
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, cast

import pytest
import torch
import yaml
from pytorch_lightning import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.io import write_png

from prunerob.cli import main
from prunerob.networks import MnistCNN
from prunerob.statistics import wilson_interval

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run of tiny.yaml, tested before and after pruning."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", TINY])
    return folder / "lightning_logs" / "tiny" / "version_0"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in the current folder."""
    copy = tmp_path / "lightning_logs" / "tiny" / "version_0"
    shutil.copytree(finished, copy)
    return copy


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail, in one line, with status 2; return the line."""
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("prunerob: error: ")
    return told


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return checkpoint["state_dict"]  # type: ignore[no-any-return]


def masks(run: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["callbacks"]["Pruning"]["masks"]  # type: ignore[no-any-return]


def on_one_thread(*args: str) -> None:
    """Run a command here, with as many threads as other processes of the tests have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(args)
    finally:
        torch.set_num_threads(threads)


def wait_for(what: Callable[[], Any], seconds: float = 120) -> None:
    deadline = monotonic() + seconds
    while not what():
        assert monotonic() < deadline
        sleep(0.02)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# What a run leaves behind


def test_a_run_keeps_its_record_its_checkpoints_and_what_pruning_did(finished: Path) -> None:
    for name in ("last", "best", "before_pruning"):
        assert (finished / "checkpoints" / f"{name}.ckpt").is_file()
    dense, pruned = weights(finished, "before_pruning"), weights(finished)
    assert dense.keys() == pruned.keys(), "pruning renames nothing"
    held = masks(finished)
    total = sum(mask.numel() for mask in held.values())
    assert sum(int((~mask).sum()) for mask in held.values()) == round(0.7 * total)
    for name, mask in held.items():
        assert (pruned[f"network.{name}"][~mask] == 0).all()
        assert (dense[f"network.{name}"][~mask] != 0).any()
        assert not torch.equal(pruned[f"network.{name}"][mask], dense[f"network.{name}"][mask])
    report = json.loads((finished / "pruning.json").read_text())
    assert report["shares"]["weights"] == pytest.approx(0.7, abs=1 / total)
    assert set(report["validation"]) == {"before", "after", "fine-tuned"}
    assert report["validation"]["after"]["robust"]["images"] == 50
    bare = load_file(finished / "weights.safetensors")
    assert_equal({f"network.{name}": value for name, value in bare.items()}, pruned)


def test_training_and_fine_tuning_have_their_own_optimizers(finished: Path) -> None:
    def state(name: str) -> tuple[set[str], dict[str, Any], float]:
        path = finished / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        (optimizer,), (scheduler,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
        return set(optimizer["state"][0]), scheduler, optimizer["param_groups"][0]["lr"]

    names, scheduler, _ = state("before_pruning")
    assert "square_avg" in names  # RMSprop
    assert scheduler["total_steps"] == 2 * 5  # one cycle over the two epochs of training
    names, scheduler, rate = state("last")
    assert names == {"momentum_buffer"}  # SGD
    assert (scheduler["step_size"], rate) == (1, 0.0025)  # halved after each of two epochs


def test_a_run_s_own_configuration_repeats_it(run: Path) -> None:
    main(["fit", "--config", str(run / "config.yaml")])
    again = run.parent / "version_1"
    assert_equal(weights(again), weights(run))
    assert yaml.safe_load((again / "config.yaml").read_text()) == yaml.safe_load(
        (run / "config.yaml").read_text()
    )


def test_another_seed_gives_another_network_on_the_same_images(run: Path) -> None:
    main(["fit", "--config", str(run / "config.yaml"), "--seed_everything", "4"])
    assert not torch.equal(
        weights(run.parent / "version_1")["network.conv2.weight"],
        weights(run)["network.conv2.weight"],
    )


# Going on


class Interrupt(Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    epoch: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before, at and after the prune epoch, 2."""
    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, epoch))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", TINY])
    assert end.value.code == 130
    run = tmp_path / "lightning_logs" / "tiny" / "version_0"
    assert not (run / "summary.json").exists()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == epoch - 1

    monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
    main(["fit", "--ckpt_path", str(run)])
    assert_equal(weights(run), weights(finished))
    assert_equal(masks(run), masks(finished))
    assert (run / "summary.json").is_file()
    assert not (run.parent / "version_1").exists(), "it goes on in its own folder"


def test_a_killed_run_goes_on_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "lightning_logs" / "tiny" / "version_0"
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    code += f"from prunerob.cli import main; main(['fit', '--config', {TINY!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (run / "checkpoints" / "last.ckpt").is_file():
            assert process.poll() is None, "the run ended before it could be killed"
            sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert not (run / "summary.json").exists()
    main(["fit", "--ckpt_path", str(run)])
    assert_equal(weights(run), weights(finished))


def test_a_branch_from_before_pruning_equals_the_single_run(run: Path) -> None:
    branch = str(run / "checkpoints" / "before_pruning.ckpt")
    main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", branch])
    new = run.parent / "version_1"
    assert_equal(weights(new), weights(run))
    assert yaml.safe_load((new / "config.yaml").read_text())["ckpt_path"] == branch
    main(["fit", "--config", TINY, "--ckpt_path", branch, "--pruning.amount", "0.3"])
    held = masks(run.parent / "version_2")
    assert sum(int((~m).sum()) for m in held.values()) == round(
        0.3 * sum(m.numel() for m in held.values())
    )


def test_going_on_with_other_masks_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = str(run / "checkpoints" / "last.ckpt")
    longer = ("fit", "--config", TINY, "--ckpt_path", last, "--trainer.max_epochs", "5")
    told = refused(capsys, *longer, "--pruning.amount", "0.8")
    assert "pruned with 0.7, but the configuration says 0.8" in told
    assert "pruned with 2, but" in refused(capsys, *longer, "--pruning.epoch", "3")
    told = refused(capsys, "fit", "--ckpt_path", str(run))
    assert "has finished 4 epochs, and trainer.max_epochs is 4" in told


def test_amount_0_fine_tunes_with_empty_masks_and_null_never_prunes() -> None:
    main(["fit", "--config", TINY, "--pruning.amount", "0"])
    main(["fit", "--config", TINY, "--pruning.epoch", "null"])
    control = Path("lightning_logs/tiny/version_0")
    assert all(mask.all() for mask in masks(control).values())
    dense = torch.load("lightning_logs/tiny/version_1/checkpoints/last.ckpt", weights_only=True)
    assert "Pruning" not in dense["callbacks"]
    assert not Path("lightning_logs/tiny/version_1/checkpoints/before_pruning.ckpt").exists()


def test_filters_stay_silent_through_fine_tuning() -> None:
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1"]
    share = ["--pruning.amount", "0.5", "--pruning.reading", "parameters"]
    main(["fit", "--config", TINY, *filters, *share])
    run = Path("lightning_logs/tiny/version_0")
    held = masks(run)
    assert {"conv1.bias", "conv3.bias", "linear.weight"} <= set(held)
    assert all((weights(run)[f"network.{n}"][~mask] == 0).all() for n, mask in held.items())
    assert json.loads((run / "pruning.json").read_text())["shares"]["parameters"] >= 0.5


FILTERS = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.6"]
NARROW = ["--pruning.narrow", "true"]


def fine_tune(base: Path, *args: str, checkpoint: str = "before_pruning") -> Path:
    """Branch from a checkpoint of a run, on clean images; return the new run's folder."""
    file = str(base / "checkpoints" / f"{checkpoint}.ckpt")
    clean = ["--model.adversarial_training.weight", "0"]
    main(["fit", "--config", TINY, "--ckpt_path", file, *FILTERS, *clean, *args])
    return newest_run()


def newest_run() -> Path:
    folders = Path("lightning_logs/tiny").glob("version_*")
    return max(folders, key=lambda folder: int(folder.name.removeprefix("version_")))


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4, msg=name)


def test_fine_tuning_the_narrow_network_is_fine_tuning_the_masked_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked, narrow = fine_tune(run), fine_tune(run, *NARROW)
    assert_close(weights(narrow), weights(masked))
    assert_equal(masks(narrow), masks(masked))
    for key in ("shares", "layers", "amount"):
        told = [json.loads((r / "pruning.json").read_text())[key] for r in (masked, narrow)]
        assert told[0] == told[1]
    assert_equal(
        {f"network.{n}": v for n, v in load_file(narrow / "weights.safetensors").items()},
        weights(narrow),
    )
    states = [
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (masked, narrow)
    ]
    moments = [state["optimizer_states"][0]["state"] for state in states]
    for position, kept in moments[0].items():
        torch.testing.assert_close(
            moments[1][position]["momentum_buffer"], kept["momentum_buffer"], atol=1e-5, rtol=1e-3
        )

    # Interrupted in its last epoch, either goes on as the other, and as itself to the bit.
    original = __import__("prunerob.commands.lightning", fromlist=["Progress"]).Progress
    for first, args, other in ((masked, [], NARROW), (narrow, NARROW, [])):
        monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, 3))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fine_tune(run, *args)
        monkeypatch.setattr("prunerob.commands.lightning.Progress", original)
        interrupted = newest_run()
        assert not (interrupted / "summary.json").exists()
        assert_close(weights(fine_tune(interrupted, *other, checkpoint="last")), weights(masked))
        main(["fit", "--ckpt_path", str(interrupted)])
        assert_equal(weights(interrupted), weights(first))


def test_narrow_fine_tuning_against_an_attack_learns_and_is_tested(run: Path) -> None:
    rounded = ["--pruning.keep_multiple_of", "3"]
    base = str(run / "checkpoints" / "before_pruning.ckpt")
    main(["fit", "--config", TINY, "--ckpt_path", base, *FILTERS, *NARROW, *rounded])
    new = run.parent / "version_1"
    layers = json.loads((new / "pruning.json").read_text())["layers"][:3]
    assert all(layer["channels_after"] in (3, 6, 8) for layer in layers)
    held = masks(new)
    assert all((weights(new)[f"network.{n}"][~mask] == 0).all() for n, mask in held.items())
    changed = [
        (weights(new)[f"network.{n}"] != weights(run, "before_pruning")[f"network.{n}"])[mask]
        for n, mask in held.items()
    ]
    assert torch.cat(changed).float().mean() > 0.9
    main(["test", "--ckpt_path", str(new)])
    assert (new / "robustness.json").is_file()


def test_narrow_and_rounding_up_are_for_filters(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("narrow", "true"), ("keep_multiple_of", "8")):
        told = refused(capsys, "fit", "--config", TINY, f"--pruning.{option}", value)
        assert f"pruning.{option}: is about filters" in told
    assert "below 1" in refused(
        capsys, "fit", "--config", TINY, *FILTERS, "--pruning.keep_multiple_of", "0"
    )


class Counting(MnistCNN):
    """A network whose forward depends on its number of channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(x).relu()).relu()).relu()
        return cast(Tensor, self.linear(x.view(-1, 8)))


def test_a_network_that_cannot_lose_channels_keeps_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["fit", "--config", TINY, "--model.network", "tests.test_cli.Counting", *FILTERS]
    args += ["--model.network.init_args.filters", "[8, 8, 8]"]
    assert "Counting depends on its number of channels" in refused(capsys, *args, *NARROW)
    with pytest.warns(UserWarning, match="those that are silent stay in it"):
        main(args)
    with pytest.warns(UserWarning, match="those that are silent stay in it"):
        main(["test"])
    assert (newest_run() / "robustness.json").is_file()


def test_an_optimizer_whose_state_cannot_lose_channels_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    optimizer = ["--model.fine_tuning.optimizer", "torch.optim.Adafactor"]
    told = refused(capsys, "fit", "--config", TINY, *optimizer, *FILTERS, *NARROW)
    assert "pruning.narrow: Adafactor keeps more than numbers by weight" in told
    assert not Path("lightning_logs/tiny/version_0/checkpoints").exists()


def test_a_layer_of_one_filter_is_no_hindrance_to_being_narrow() -> None:
    filters = ["--model.network.init_args.filters", "[1, 8, 8]"]
    main(["fit", "--config", TINY, *filters, *FILTERS, *NARROW])
    assert (newest_run() / "summary.json").is_file()


def test_rounding_up_to_everything_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rounded = ["--pruning.keep_multiple_of", "8"]
    told = refused(capsys, "fit", "--config", TINY, *FILTERS, *rounded)
    assert "pruning.keep_multiple_of: 8 rounds every layer up to all of its filters" in told


def test_a_narrow_run_killed_in_its_last_moments_is_brought_to_its_end(run: Path) -> None:
    new = fine_tune(run, *NARROW)
    before = load_file(new / "weights.safetensors")
    for name in ("summary.json", "weights.safetensors", "pruning.json"):
        (new / name).unlink()
    main(["fit", "--ckpt_path", str(new)])
    assert_equal(load_file(new / "weights.safetensors"), before)
    assert (new / "pruning.json").is_file()


def test_checkpoints_of_every_kind_hold_the_full_shape(run: Path) -> None:
    """Weights alone while the narrow network trains, and all of it after training."""
    new = fine_tune(run, *NARROW, *SAVING)
    shapes = {name: value.shape for name, value in weights(run).items()}
    for file in ("while.ckpt", "after.ckpt"):
        state = torch.load(new / file, weights_only=True)
        assert {name: value.shape for name, value in state["state_dict"].items()} == shapes
    moments = state["optimizer_states"][0]["state"]
    assert [m["momentum_buffer"].shape for m in moments.values()] == list(shapes.values())


class Saving(Callback):
    """Saves weights alone in the middle of fine-tuning, and everything after training."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 3:
            trainer.save_checkpoint(Path(trainer.log_dir) / "while.ckpt", weights_only=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(Path(trainer.log_dir) / "after.ckpt", weights_only=False)


SAVING = ["--trainer.callbacks", "tests.test_cli.Saving"]


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


def test_filter_pruned_wide_resnets_are_attacked_tested_and_validated() -> None:
    """Evaluation runs in inference mode, whose tensors autograd refuses."""
    network = ["--model.network", "prunerob.networks.WideResNet", "--model.network.depth", "10"]
    network += ["--model.network.widen_factor", "1", "--model.network.mean", "[0.1]"]
    network += ["--model.network.std", "[0.3]", "--data.train_size", "64"]
    network += ["--pruning.reading", "parameters"]
    main(["fit", "--config", TINY, *network, *FILTERS, "--data.init_args.test_size", "20"])
    for command in ("test", "validate"):
        main([command])
    main(["test", "--model.worst_case_attacks", "{more: {class_path: prunerob.attacks.FGSM}}"])


RESNET = [
    *("--model.network", "prunerob.networks.ResNet18", "--model.network.width", "4"),
    *("--model.network.mean", "[0.1]", "--model.network.std", "[0.3]"),
    *("--data.train_size", "128", "--data.init_args.test_size", "20"),
]


@pytest.mark.parametrize("residual", ["silence", "remove"])
def test_filters_on_residual_streams_go_by_request(
    residual: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--pruning.residual", residual, "--pruning.amount", "0.6"]
    main(["fit", "--config", TINY, *RESNET, *FILTERS, *NARROW, *asked])
    run = Path("lightning_logs/tiny/version_0")
    report = json.loads((run / "pruning.json").read_text())
    assert report["residual"] == residual
    kept = {layer["name"]: layer["channels_after"] for layer in report["layers"]}
    groups = [
        ["stem", "stage1.0.conv2", "stage1.1.conv2"],
        *([f"stage{n}.0.shortcut", f"stage{n}.0.conv2", f"stage{n}.1.conv2"] for n in (2, 3, 4)),
    ]
    agreed = [len({kept[name] for name in group}) == 1 for group in groups]
    assert all(agreed) if residual == "remove" else not all(agreed)
    assert sum(kept[name] for group in groups for name in group) < 3 * 4 * (1 + 2 + 4 + 8)
    main(["test", "--ckpt_path", str(run)])
    other = "silence" if residual == "remove" else "remove"
    longer = ["--trainer.max_epochs", "5", "--pruning.residual", other]
    told = refused(capsys, "fit", "--ckpt_path", str(run), *longer)
    assert f"pruning.residual: the checkpoint was pruned with {residual}" in told
    main(["report", str(run), "--partial"])
    assert f"filter (weights, {residual})" in capsys.readouterr().out


def test_checkpoints_from_before_there_was_a_setting_had_its_default(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["callbacks"]["Pruning"]["settings"]["residual"]
    torch.save(checkpoint, "old.ckpt")
    fit = ["fit", "--config", TINY]
    for masks_from in ([], ["--pruning.masks_from", "old.ckpt", "--pruning.epoch", "0"]):
        start = masks_from or ["--ckpt_path", "old.ckpt", "--trainer.max_epochs", "5"]
        main([*fit, *start])
        told = refused(capsys, *fit, *start, "--pruning.residual", "remove")
        assert "pruning.residual: " in told


def test_training_without_validation_images() -> None:
    main(["fit", "--config", TINY, "--data.validation_size", "0"])
    run = Path("lightning_logs/tiny/version_0")
    assert (run / "summary.json").is_file()
    assert not (run / "checkpoints" / "best.ckpt").exists()


# Test


def test_bare_test_takes_the_newest_finished_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["test", "--ckpt_path", "before_pruning"])
    main(["test"])
    shown = capsys.readouterr().out
    assert "before pruning" in shown
    assert "worst case" in shown

    result = json.loads((run / "robustness.json").read_text())
    rows = {row["attack"]: row for row in result["rows"]}
    assert list(rows) == ["clean", "FGSM 8/255", "PGD", "worst case"]
    with (run / "robustness_images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len({image["index"] for image in images}) == 60
    for name, row in rows.items():
        attacks = ["clean", "FGSM 8/255", "PGD"] if name == "worst case" else [name]
        right = sum(all(i[f"{a} prediction"] == i["label"] for a in attacks) for i in images)
        assert (row["correct"], row["images"]) == (right, 60)
        assert row["accuracy"] == right / 60
        assert tuple(row["interval"]) == wilson_interval(right, 60)
    for image in images:
        for attack in ("clean", "FGSM 8/255", "PGD"):
            wrong = image[f"{attack} prediction"] != image["label"]
            assert wrong == (float(image[f"{attack} margin"]) < 0)
    assert (run / "robustness.md").read_text().count("\n| ") == 4
    assert len((run / "robustness.csv").read_text().splitlines()) == 5
    assert (run / "robustness_before_pruning.json").is_file()

    main(["test", "--model.attacks.PGD.steps", "4"])
    lines = capsys.readouterr().out.splitlines()
    before = {line.split()[1]: line.split("│")[2].strip() for line in lines if line[:1] == "│"}
    assert before["clean"].endswith("%")
    assert before["FGSM"].endswith("%")
    assert (before["PGD"], before["worst"]) == ("-", "-"), "tested with other steps"


def test_attacks_in_the_worst_case_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test"])
    plain = json.loads((run / "robustness.json").read_text())["rows"]
    capsys.readouterr()
    attack = (
        "{class_path: prunerob.attacks.PGD, init_args: {eps: 0.05, step_size: 0.01, steps: 20}}"
    )
    main(["test", "--ckpt_path", str(run), "--model.worst_case_attacks", f"{{more: {attack}}}"])
    result = json.loads((run / "robustness.json").read_text())
    assert [row["correct"] for row in result["rows"][:-1]] == [row["correct"] for row in plain[:-1]]
    (more,) = result["worst case attacks"]
    assert more["attack"] == "more"
    assert more["images"] == plain[-1]["correct"]
    assert result["rows"][-1]["correct"] == plain[-1]["correct"] - more["fooled"]
    assert "In the worst case alone: more got" in " ".join(capsys.readouterr().out.split())
    with (run / "robustness_images.csv").open() as file:
        fooled = [
            row for row in csv.DictReader(file) if row["fooled in the worst case by"] == "more"
        ]
    assert len(fooled) == more["fooled"]
    told = refused(capsys, "test", "--model.worst_case_attacks", f"{{PGD: {attack}}}")
    assert "'PGD' is the name of something else already" in told


def test_the_same_weights_give_the_same_table_however_they_are_named(run: Path) -> None:
    results = []
    for place in (run, run / "checkpoints" / "last.ckpt", run / "weights.safetensors"):
        main(["test", "--ckpt_path", str(place)])
        results.append((run / "robustness_images.csv").read_text())
        (run / "robustness.json").unlink()
    main(["test", "--config", str(run / "config.yaml")])
    results.append((run / "robustness_images.csv").read_text())
    assert len(set(results)) == 1


def test_bare_weights_bring_their_configuration_and_get_results_beside_them(
    run: Path, tmp_path: Path
) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    shutil.copy(run / "weights.safetensors", zoo / "small.safetensors")
    shutil.copy(run / "config.yaml", zoo / "small.yaml")
    main(["test", "--ckpt_path", str(zoo / "small.safetensors")])
    assert (zoo / "small_robustness.json").is_file()


def test_validate_and_predict(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["validate"])
    assert "clean_accuracy" in capsys.readouterr().out
    main(["predict"])
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    for row in rows:
        probabilities = [float(row[f"probability of {c}"]) for c in range(10)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert probabilities.index(max(probabilities)) == int(row["class"])

    write_png(torch.zeros(1, 28, 28, dtype=torch.uint8), str(tmp_path / "black.png"))
    main(["predict", "--ckpt_path", str(run), "--data.predict_folder", str(tmp_path)])
    with (run / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == str(tmp_path / "black.png")


def test_untrained_weights_are_never_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert "untrained weights are never tested" in refused(capsys, "test", "--config", TINY)
    assert "no finished run" in refused(capsys, "test")


# Files from strangers


class Crafted:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
@pytest.mark.parametrize("by_url", [False, True])
def test_a_crafted_checkpoint_runs_no_code(
    command: str, by_url: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, crafted = tmp_path / "code-ran", tmp_path / "crafted.ckpt"
    good = torch.load(run / "checkpoints" / "before_pruning.ckpt", weights_only=True)
    torch.save({**good, "hyper_parameters": Crafted(mark)}, crafted)
    place = str(crafted)
    if by_url:
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/crafted.ckpt"
    try:
        told = refused(capsys, command, "--config", TINY, "--ckpt_path", place)
    finally:
        if by_url:
            server.shutdown()
    assert "was refused" in told
    assert not mark.exists()
    torch.load(crafted, weights_only=False)
    assert mark.exists(), "the test's own checkpoint does nothing"


def test_weights_come_from_a_url(run: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(run))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/weights.safetensors?download=true"
    main(["validate", "--config", TINY, "--ckpt_path", url])
    server.shutdown()


def test_foreign_and_damaged_files_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    (tmp_path / "short.ckpt").write_bytes(last.read_bytes()[:5000])
    (tmp_path / "text.ckpt").write_text("weights")
    (tmp_path / "short.safetensors").write_bytes(b"\x10" * 30)
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    torch.save({"state_dict": {"network.other": torch.zeros(3)}}, tmp_path / "foreign.ckpt")
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with (tmp_path / "pickle.ckpt").open("wb") as file:
        pickle.dump({"a": 1}, file)
    torch.save(
        {"a": torch.zeros(9)}, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False
    )
    legacy = bytearray((tmp_path / "legacy.ckpt").read_bytes())
    legacy[60:90] = b"\x93" * 30
    (tmp_path / "legacy.ckpt").write_bytes(legacy)
    for name, message in {
        "short.ckpt": "not a readable checkpoint",
        "text.ckpt": "was refused: it is damaged",
        "short.safetensors": "is damaged",
        "tensor.ckpt": "not a checkpoint of prunerob",
        "foreign.ckpt": "is for another network: conv1.bias is only in the network",
        "foreign.safetensors": "is for another network",
        "pickle.ckpt": "was refused",
        "legacy.ckpt": "ckpt_path: ",
        "missing.ckpt": "there is no file or folder",
    }.items():
        told = refused(capsys, "test", "--config", TINY, "--ckpt_path", str(tmp_path / name))
        assert message in told, name
        assert name in told
        refused(capsys, "fit", "--config", TINY, "--ckpt_path", str(tmp_path / name))
    told = refused(
        capsys, "test", "--ckpt_path", str(run), "--model.network.init_args.filters", "[4,8,8]"
    )
    assert "conv1.bias is (8,), not (4,)" in told
    assert not (run / "robustness.json").exists()


# Mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.nonsense", "1"], "unrecognized arguments: --model.nonsense"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs: expected int"),
        (["--model.adversarial_training.attack.eps", "8"], "eps: 8 lies outside [0, 1]"),
        (["--model.adversarial_training.attack.eps", "-0.1"], "eps: -0.1 lies outside"),
        (["--model.adversarial_training.attack", "Nope"], "attack: no such class: Nope"),
        (["--model.adversarial_training.weight", "2"], "adversarial_training.weight: 2.0 lies"),
        (["--model.network", "Nope"], "model.network: no such class: Nope"),
        (["--data", "Nope"], "data: no such class: Nope"),
        (["--pruning.criterion", "prunerob.pruning.nope"], "pruning.criterion: "),
        (["--pruning.amount", "1"], "pruning.amount: 1.0 lies outside [0, 1)"),
        (["--pruning.epoch", "4"], "pruning.epoch: 4 is never reached in this run of 4 epochs"),
        (["--pruning.exclude", "[conv9]"], "pruning.exclude: no prunable layer 'conv9'"),
        (["--data.batch_size", "0"], "data.batch_size: 0 is below 1"),
        (["--trainer.devices", "2"], "trainer.devices: "),
        (["--ckpt_path", "nowhere"], "there is no file or folder nowhere"),
        (["--trainer.logger.init_args.save_dir", TINY], "Not a directory"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "fit", "--config", TINY, *args)


def test_more_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.yaml").write_text("just text")
    assert "no such command" in refused(capsys, "train")
    assert "required: model.network" in refused(capsys, "fit").replace("fit.", "")
    assert "File does not exist" in refused(capsys, "fit", "--config", "nowhere.yaml")
    assert "Unexpected config" in refused(capsys, "fit", "--config", "text.yaml")
    (tmp_path / "null.yaml").write_text("model: {fine_tuning: null}")
    told = refused(capsys, "fit", "--config", TINY, "--config", "null.yaml")
    assert "model.fine_tuning: is null" in told
    assert "of which run?" in refused(capsys, "fit", "--ckpt_path", "last")


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


def test_a_run_killed_in_its_last_moments_is_brought_to_its_end(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "pruning.json").unlink()
    before = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").unlink()
    main(["fit", "--ckpt_path", str(run)])
    assert (run / "weights.safetensors").read_bytes() == before
    report = json.loads((run / "pruning.json").read_text())
    assert report["validation"]["fine-tuned"]["clean"]["images"] == 100
    assert (run / "summary.json").is_file()


def test_a_run_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(
        capsys,
        "fit",
        "--config",
        TINY,
        "--trainer.logger.version",
        "version_0",
        "--seed_everything",
        "9",
    )
    assert "already holds a run" in told
    assert "a run needs one" in refused(
        capsys, "fit", "--config", TINY, "--trainer.logger", "false"
    )


def test_schedules_and_prune_epochs_that_do_not_fit_a_checkpoint_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = str(run / "checkpoints" / "before_pruning.ckpt")
    again = ("fit", "--config", TINY, "--ckpt_path", branch)
    constant = ("--model.schedule", "prunerob.schedules.Constant")
    told = refused(capsys, *again, *constant, "--pruning.epoch", "1")
    assert "1 is behind the checkpoint, which has 2 epochs" in told
    told = refused(capsys, *again, "--pruning.epoch", "3")
    assert "runs over 10 steps, but this configuration's over 15" in told


def test_the_progress_bar_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", TINY, "--trainer.enable_progress_bar", "false"])
    assert "━" not in capsys.readouterr().out


def test_rows_of_the_table_keep_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(
        capsys,
        "fit",
        "--config",
        TINY,
        "--model.attacks",
        "{clean: {class_path: prunerob.attacks.FGSM}}",
    )
    assert "model.attacks: 'clean' is the name of something else already" in told


def test_an_amount_that_empties_a_layer_keeps_the_trained_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = refused(
        capsys, "fit", "--config", TINY, "--pruning.amount", "0.9999", "--trainer.max_epochs", "3"
    )
    assert "0.9999 would empty" in told
    assert Path("lightning_logs/tiny/version_0/checkpoints/before_pruning.ckpt").is_file()


def test_true_half_precision_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["test", "--ckpt_path", str(run)], ["fit", "--config", TINY]):
        told = refused(capsys, *command, "--trainer.precision", "bf16-true")
        assert "bf16-true would make adversarial examples in another precision" in told


def test_mixed_precision_trains_and_tests(run: Path) -> None:
    main(["fit", "--config", TINY, "--trainer.precision", "bf16-mixed"])
    main(["test", "--ckpt_path", "lightning_logs/tiny/version_1"])
    # What is counted is counted in float32: a pixel of bfloat16 is off by up to half of 1/255.
    images = Path("lightning_logs/tiny/version_1/robustness_images.csv")
    mixed = images.read_text()
    main(["test", "--ckpt_path", "lightning_logs/tiny/version_1", "--trainer.precision", "32-true"])
    assert images.read_text() == mixed


# Attacks on the command line


def test_switching_an_attack_leaves_no_settings_of_the_other_behind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Settings of one name are carried over, so the same name must mean the same: only eps is."""
    key = "--model.adversarial_training.attack"

    def configured(*args: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", TINY, *args, "--print_config"])
        assert not end.value.code
        config = yaml.safe_load(capsys.readouterr().out)
        return config["model"]["adversarial_training"]["attack"]  # type: ignore[no-any-return]

    own = {
        "PGD": {"steps": 5, "step_size": "0.2", "restarts": 2, "precision": "float32"},
        "FGSM": {"label": "predicted"},
        "NoAttack": {},
    }
    for first, settings in own.items():
        changed = [
            word for name, value in settings.items() for word in (f"{key}.{name}", str(value))
        ]
        for second in own:
            if second == first:
                continue
            eps = [f"{key}.eps", "0.1"] if first != "NoAttack" else []
            switched = configured(
                key, f"prunerob.attacks.{first}", *changed, *eps, key, f"prunerob.attacks.{second}"
            )
            keeps_eps = "NoAttack" not in (first, second)
            fresh = configured(
                *(key, "prunerob.attacks.NoAttack", key, f"prunerob.attacks.{second}"),
                *([f"{key}.eps", "0.1"] if keeps_eps else []),
            )
            assert switched == fresh, (first, second)


# Help


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_answer_before_heavy_imports(option: str) -> None:
    code = (
        "import sys\n"
        "from prunerob.cli import main\n"
        f"main([{option!r}])\n"
        "heavy = {'torch', 'pytorch_lightning', 'jsonargparse', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert perf_counter() - start < 1
    assert "prunerob" in done.stdout


def test_every_setting_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    for args, text in (
        (["--help"], "share to prune, in [0, 1)"),
        (["--help"], "number of validation images that it attacks"),
        (["--data.help", "prunerob.data.MNIST"], "training images per optimizer step"),
        (["--model.validation_attack.help", "prunerob.attacks.PGD"], "number of gradient steps"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *args])
        shown = " ".join(capsys.readouterr().out.split())
        assert text in shown


@pytest.mark.parametrize(
    "config", sorted(Path(__file__).parent.parent.joinpath("configs").glob("*.yaml")), ids=str
)
def test_every_shipped_configuration_parses_and_says_what_to_expect(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = config.read_text().splitlines()
    assert lines[0] == f"# prunerob fit --config configs/{config.name}"
    assert re.match(r"# Expect.*\d", lines[1]), "the measured result"
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), "--print_config"])
    assert not end.value.code
    written = yaml.safe_load(config.read_text())
    assert written["trainer"]["devices"] == 1, "a machine with many devices changes nothing"
    assert (
        yaml.safe_load(capsys.readouterr().out)["pruning"]["epoch"] == written["pruning"]["epoch"]
    )


# Catastrophic overfitting


@pytest.mark.parametrize(
    "judge",
    [
        [],
        ["--model.validation_attack", "NoAttack"],
        ["--model.validation_attack.init_args.eps", "0.1"],  # which says nothing about 0.3
    ],
)
def test_training_against_one_step_is_probed_each_epoch(
    judge: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def overfits(robust: int, one_step: int) -> bool:
        seen.append((robust, one_step))
        return True

    monkeypatch.setattr("prunerob.training.validation.overfits_to_one_step", overfits)
    attack = "--model.adversarial_training.attack"
    one_step = [attack, "PGD", f"{attack}.steps", "1", f"{attack}.step_size", "0.375"]
    with pytest.warns(UserWarning, match="catastrophic overfitting: in epoch") as warned:
        main(["fit", "--config", TINY, *one_step, *judge])
    told = [str(w.message) for w in warned if "catastrophic" in str(w.message)]
    assert [text.split(",")[0][-1] for text in told] == ["1", "3"], "once in each phase"
    run = Path("lightning_logs/tiny/version_0")
    found = json.loads((run / "summary.json").read_text())["validation"]
    assert found["one_step"]["images"] == found["clean"]["images"] == 100
    assert ("many_steps" in found) == bool(judge)
    assert all(0 <= robust <= 50 and 0 <= right <= 50 for robust, right in seen)
    assert len(seen) >= 2
