"""Validation in every epoch."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunerob.attacks import PGD, NoAttack
from prunerob.cli import main
from prunerob.data.batches import Batch
from prunerob.networks import MnistCNN
from prunerob.pixels import Pixels
from prunerob.training.classifier import Classifier
from prunerob.training.validation import PROBED, Validation, describe_masking, masks_gradients
from tests.conftest import TINY, newest_run


def test_training_without_validation_images() -> None:
    main(["fit", "--config", TINY, "--data.validation_size", "0"])
    run = Path("lightning_logs/tiny/version_0")
    assert (run / "summary.json").is_file()
    assert not (run / "checkpoints" / "best.ckpt").exists()


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


class Scaled(nn.Module):
    """Logits so far apart that the cross-entropy of a right answer is 0, and its gradient."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.network(x)
        return logits


@pytest.mark.parametrize(("scale", "masked"), [(1.0, False), (1e5, True)])
def test_a_probe_tells_masked_gradients_from_robustness(
    scale: float, masked: bool, trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    network = Scaled(copy.deepcopy(trained).eval(), scale)
    validation = Validation(
        PGD(eps=Pixels(0.1), step_size=Pixels(0.02), steps=10),
        NoAttack(),
        attacked_images=60,
        probed_images=40,
        attacked=lambda x: network,
        seed=0,
    )
    x, y = digits[0][:90], digits[1][:90]
    for first in range(0, 90, 30):
        part = slice(first, first + 30)
        validation.step(Batch(x[part], y[part], torch.arange(90)[part]), first)
    counts = validation.counts()
    assert counts["clean"][1] == 90
    assert counts["robust"][1] == 60
    (left, images), (right, also) = counts["probe"], counts[PROBED]
    assert images == also == 40
    assert left <= right <= counts["robust"][0]
    assert masks_gradients(counts) == masked
    warning = describe_masking(counts, 3)
    assert (warning is not None) == masked
    if warning:
        assert f"in epoch 3, {right} of 40" in warning
        assert f"but {left} after" in warning


def test_a_network_that_hides_its_gradients_wins_no_contest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The epoch of the highest robust accuracy is not the best, if the probe finds far less."""

    def counts(self: Validation) -> dict[str, tuple[int, int]]:
        robust, probe = {1: (30, 29), 2: (50, 10)}.get(epochs[-1], (0, 0))
        return {
            "clean": (90, 100),
            "robust": (robust, 50),
            "probe": (probe, 50),
            PROBED: (robust, 50),
        }

    epochs: list[int] = []
    original = Classifier.on_validation_epoch_end

    def end(self: Classifier) -> None:
        epochs.append(self.current_epoch + 1)
        original(self)

    monkeypatch.setattr(Validation, "counts", counts)
    monkeypatch.setattr(Classifier, "on_validation_epoch_end", end)
    short = ["--trainer.max_epochs", "2", "--pruning.epoch", "null"]
    with pytest.warns(UserWarning, match="gradients are masked: in epoch 2, 50 of 50"):
        main(["fit", "--config", TINY, *short])
    best = torch.load(newest_run() / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0


def test_a_run_says_what_the_probe_found() -> None:
    main(["fit", "--config", TINY, "--model.validation_probe_images", "100"])
    found = json.loads((newest_run() / "summary.json").read_text())["validation"]
    assert found["probe"]["images"] == found[PROBED]["images"] == 100
    assert found["probe"]["correct"] <= found[PROBED]["correct"]
