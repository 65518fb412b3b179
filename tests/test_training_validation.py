"""Validation in every epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunerob.cli import main
from tests.conftest import TINY


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
