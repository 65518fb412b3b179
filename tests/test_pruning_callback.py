"""Pruning in a run, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunerob.cli import main
from tests.conftest import FILTERS, NARROW, TINY, masks, refused, weights


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


def test_rounding_up_to_everything_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rounded = ["--pruning.keep_multiple_of", "8"]
    told = refused(capsys, "fit", "--config", TINY, *FILTERS, *rounded)
    assert "pruning.keep_multiple_of: 8 rounds every layer up to all of its filters" in told


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


def test_an_amount_that_empties_a_layer_keeps_the_trained_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = refused(
        capsys, "fit", "--config", TINY, "--pruning.amount", "0.9999", "--trainer.max_epochs", "3"
    )
    assert "0.9999 would empty" in told
    assert Path("lightning_logs/tiny/version_0/checkpoints/before_pruning.ckpt").is_file()
