"""A test, end to end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
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
    again.put("a/b", {"x": torch.arange(3)})
    again.put("other", {"x": torch.arange(4)})
    one, two = (folder / "rank 0 of 1").glob("*.safetensors")
    shutil.copy(one, two)
    found = [again.get("a/b"), again.get("other")]
    assert sum(entry is None for entry in found) == 1, "each is of its own name"
    assert Journal(folder, {"seed": 1}).entries == 0
    again.remove()
    assert not folder.exists()
    nothing = Journal(None, {})
    nothing.put("a", {"x": torch.arange(3)})
    assert nothing.get("a") is None


HUGE = 1 << 40


def damaged(about: Path, kind: str) -> None:
    """Put something else in place of a journal's about.json."""
    whole = about.read_bytes()
    about.unlink()
    if kind == "huge":
        with about.open("wb") as opened:
            opened.truncate(HUGE)  # without a byte of the disk
    elif kind == "folder":
        about.mkdir()
    elif kind == "link to itself":
        about.symlink_to(about)
    else:
        contents = {"cut": whole[:-9], "binary": b"\xff\x00\xfe", "list": b"[]", "empty": b""}
        about.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind", ["cut", "binary", "list", "empty", "huge", "folder", "link to itself"]
)
def test_a_damaged_journal_is_begun_again_and_says_so(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "journal"
    Journal(folder, {"seed": 0}).put("a", {"x": torch.arange(3)})
    damaged(folder / "rank 0 of 1" / "about.json", kind)
    with caplog.at_level("INFO"):
        again = Journal(folder, {"seed": 0})
    assert "beginning again" in caplog.text
    assert again.entries == 0
    again.put("a", {"x": torch.arange(3)})
    assert Journal(folder, {"seed": 0}).entries == 1
    again.remove()
    assert not folder.exists()


def test_a_damaged_entry_of_a_journal_is_done_again_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every bit of it counts: a changed one could be a result that nobody measured."""
    journal = Journal(tmp_path / "journal", {"seed": 0})
    (tmp_path / "file").touch()
    entry = {"x": torch.arange(3), "seconds": torch.tensor(0.5, dtype=torch.float64)}
    journal.put("a", entry)
    (file,) = (tmp_path / "journal").rglob("*.safetensors")
    whole = file.read_bytes()
    contents = [b"", b"[]", (1 << 62).to_bytes(8, "little") + b"{}", whole[:-1], whole + b"x"]
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 1
        contents.append(bytes(changed))
    with caplog.at_level("INFO"):
        for content in contents:
            caplog.clear()
            file.write_bytes(content)
            if (found := journal.get("a")) is None:
                assert "is damaged: attacking its images again" in caplog.text
            else:  # in what is no part of the entry, as the case of a key
                assert all(torch.equal(found[key], entry[key]) for key in entry)
                raise AssertionError("all of the file is part of it")
    file.unlink()
    file.mkdir()
    assert journal.get("a") is None
    journal.put("a", entry)
    found = journal.get("a")
    assert found is not None
    assert torch.equal(found["x"], entry["x"])


@pytest.mark.parametrize("place", ["robustness.unfinished", "robustness.unfinished/rank 0 of 1"])
def test_a_file_in_the_place_of_a_journal(
    place: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).write_text("x")
    if "/" in place:
        main(["test"])
        assert not (run / "robustness.unfinished").exists()
    else:
        told = refused(capsys, "test")
        assert told.endswith("robustness.unfinished cannot be written (File exists)")


def test_one_test_at_a_time_of_the_same_weights(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is told who has them, and takes nothing away; the first ends as if alone."""
    main(["test", "--ckpt_path", str(run)])
    alone = (run / "robustness_images.csv").read_text()
    (run / "robustness_images.csv").unlink()
    test = ["test", "--ckpt_path", str(run)]
    code = "import os, signal\nfrom prunerob.attacks import PGD\nfrom prunerob.cli import main\n"
    code += f"import torch\ntorch.set_num_threads({torch.get_num_threads()})\n"
    code += "real, stopped = PGD.perturb, []\ndef perturb(*args, **others):\n"
    code += "    stopped or stopped.append(os.kill(os.getpid(), signal.SIGSTOP))\n"
    code += f"    return real(*args, **others)\nPGD.perturb = perturb\nmain({test!r})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = run / "robustness.unfinished"
    try:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1]), "it ended"
        before = sorted(journal.rglob("*"))
        told = refused(capsys, *test)
        holder = f"{journal.relative_to(Path.cwd())}", f" is in use by process {process.pid} on "
        assert all(part in told for part in holder)
        assert sorted(journal.rglob("*")) == before
        main(["test", "--ckpt_path", str(run / "checkpoints" / "before_pruning.ckpt")])
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(300) == 0
    finally:
        process.kill()
        process.wait()
    assert (run / "robustness_images.csv").read_text() == alone
    assert not journal.exists()
