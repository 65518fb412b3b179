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


def test_autoattack_on_some_of_the_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fgsm = "{class_path: prunerob.attacks.FGSM, init_args: {eps: 0.1}}"
    settings = "init_args: {eps: 0.1, images: 25}"
    auto = f"{{class_path: prunerob.attacks.AutoAttack, {settings}}}"
    main(["test", "--model.attacks", f"{{FGSM: {fgsm}, AutoAttack: {auto}}}"])
    rows = {row["attack"]: row for row in json.loads((run / "robustness.json").read_text())["rows"]}
    assert list(rows) == ["clean", "FGSM", "AutoAttack", "worst case"]
    assert [row["images"] for row in rows.values()] == [60, 60, 25, 25]
    assert rows["AutoAttack"]["correct"] == rows["worst case"]["correct"], "it is the strongest"
    with (run / "robustness_images.csv").open() as file:
        lines = list(csv.DictReader(file))
    tried = [line for line in lines if line["AutoAttack prediction"]]
    assert len(tried) == 25
    right = [line["AutoAttack prediction"] == line["label"] for line in tried]
    assert sum(right) == rows["AutoAttack"]["correct"]
    fgsm_right = [line["FGSM prediction"] == line["label"] for line in tried]
    assert not any(a and not b for a, b in zip(right, fgsm_right, strict=True))
    capsys.readouterr()
    told = refused(capsys, "test", "--model.worst_case_attacks", f"{{auto: {auto}}}")
    assert "model.worst_case_attacks: an attack that learns before a test, or is tried on" in told


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
    """Finite weights, whose sums are not."""
    state = {name: torch.full_like(v, 3e38) for name, v in small().state_dict().items()}
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
