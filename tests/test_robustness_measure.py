"""A test, end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prunerob.cli import main
from tests.conftest import TINY, refused, small


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


def test_answers_that_are_no_numbers_are_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: torch.full_like(v, torch.nan) for name, v in small().state_dict().items()}
    save_file(state, "nan.safetensors")
    told = refused(capsys, "test", "--config", TINY, "--ckpt_path", "nan.safetensors")
    assert "answers to clean images are not finite" in told
    assert not Path("nan_robustness.json").exists()


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
