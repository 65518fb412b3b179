"""The commands fit, validate, test and predict."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torchvision.io import write_png

from prunerob.cli import main
from prunerob.training.classifier import Classifier
from tests.conftest import TINY, small


def test_validate_and_predict(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["validate"])
    assert "validation_clean" in capsys.readouterr().out
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
    place = ["--ckpt_path", str(run), "--data.predict_folder", str(tmp_path)]
    main(["predict", *place, "--json", "--top_k", "2"])
    (found,) = json.loads((run / "predictions.json").read_text())
    assert found["image"] == str(tmp_path / "black.png")
    assert found["class"] == row["class"] == found["classes"][0]["class"]
    assert found["classes"][0]["probability"] == float(row[f"probability of {row['class']}"])
    assert len(found["classes"]) == 2


def test_the_progress_bar_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", TINY, "--trainer.enable_progress_bar", "false"])
    assert "━" not in capsys.readouterr().out


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


def test_every_setting_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    for args, text in (
        (["--help", "all"], "share to prune, in [0, 1)"),
        (["--help", "all"], "number of validation images that it attacks"),
        (["--data.help", "prunerob.data.MNIST"], "training images per optimizer step"),
        (["--model.validation_attack.help", "prunerob.attacks.PGD"], "number of gradient steps"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *args])
        shown = " ".join(capsys.readouterr().out.split())
        assert text in shown


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


def test_a_signal_that_is_ignored_interrupts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell starts background jobs so: an interruption of the terminal is not meant for them."""
    save_file(small().state_dict(), "small.safetensors")
    test = ["test", "--config", TINY, "--ckpt_path", "small.safetensors"]

    def interrupt(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Classifier, "on_test_batch_start", interrupt)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        main([*test, "--data.init_args.eval_batch_size", "20"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert Path("small_robustness.json").exists()
