"""Training the narrow network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pytorch_lightning import Callback
from safetensors.torch import load_file
from torch import Tensor

from prunerob.cli import main
from prunerob.networks import MnistCNN
from tests.conftest import (
    FILTERS,
    NARROW,
    TINY,
    Interrupt,
    assert_equal,
    masks,
    newest_run,
    refused,
    weights,
)


def fine_tune(base: Path, *args: str, checkpoint: str = "before_pruning") -> Path:
    """Branch from a checkpoint of a run, on clean images; return the new run's folder."""
    file = str(base / "checkpoints" / f"{checkpoint}.ckpt")
    clean = ["--model.adversarial_training.weight", "0"]
    main(["fit", "--config", TINY, "--ckpt_path", file, *FILTERS, *clean, *args])
    return newest_run()


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
    args = ["fit", "--config", TINY, "--model.network", f"{__name__}.Counting", *FILTERS]
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


SAVING = ["--trainer.callbacks", f"{__name__}.Saving"]
