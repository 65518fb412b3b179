"""A test, end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from prunerob.attacks import FAB, PGD, Attack
from prunerob.attacks.auto_attack.survivors import Hunt
from prunerob.cli import main
from prunerob.robustness.journal import Journal
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


@pytest.mark.parametrize(("interrupted", "call"), [("PGD", 2), ("FAB", 1)])
def test_a_test_that_was_killed_goes_on_to_the_same_table(
    interrupted: str, call: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    stop_at: list[int] = []

    def counted(kind: type[Attack]) -> None:
        original = kind.perturb

        def perturb(self: Any, network: Any, x: Tensor, y: Tensor, eps: Any, key: Any) -> Tensor:
            calls.append(kind.__name__)
            if kind.__name__ == interrupted and calls.count(interrupted) in stop_at:
                raise KeyboardInterrupt
            return original(self, network, x, y, eps, key)

        monkeypatch.setattr(kind, "perturb", perturb)

    for kind in (PGD, Hunt):
        counted(kind)
    monkeypatch.setattr(FAB, "perturb", Hunt.perturb)
    counted(FAB)
    pgd = "{class_path: prunerob.attacks.PGD, init_args: {eps: 0.1, steps: 3}}"
    auto = "{class_path: prunerob.attacks.AutoAttack, init_args: {eps: 0.1, images: 10}}"
    test = ["test", "--model.attacks", f"{{PGD: {pgd}, AutoAttack: {auto}}}"]
    test += ["--data.eval_batch_size", "20", "--model.scrutinized_images", "0"]
    main(test)
    whole, all_calls = (run / "robustness_images.csv").read_text(), len(calls)
    left = [row.get("left") for row in json.loads((run / "robustness.json").read_text())["rows"]]
    assert not (run / "robustness.unfinished").exists()

    calls.clear()
    stop_at.append(call)
    with pytest.raises(SystemExit):
        main(test)
    assert (run / "robustness.unfinished").is_dir()
    done = len(calls)
    stop_at.clear()
    main(test)
    assert (run / "robustness_images.csv").read_text() == whole
    rows = json.loads((run / "robustness.json").read_text())["rows"]
    assert [row.get("left") for row in rows] == left
    # What was interrupted, and the first batch, which is shown, are done twice.
    assert len(calls) - done <= all_calls - done + 2
    assert not (run / "robustness.unfinished").exists()


def test_a_journal_is_of_one_test_alone(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, {"seed": 0})
    journal.put("a/b", {"x": torch.arange(3)})
    again = Journal(folder, {"seed": 0})
    assert again.entries == 1
    found = again.get("a/b")
    assert found is not None
    assert torch.equal(found["x"], torch.arange(3))
    assert again.get("other") is None
    (file,) = (folder / "rank 0 of 1").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    assert Journal(folder, {"seed": 0}).get("a/b") is None, "damaged"
    assert Journal(folder, {"seed": 1}).entries == 0
    again.remove()
    assert not folder.exists()
    nothing = Journal(None, {})
    nothing.put("a", {"x": torch.arange(3)})
    assert nothing.get("a") is None
