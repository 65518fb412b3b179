"""What is finished, and what is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prunerob.cli import main
from tests.conftest import SWEEP, TINY, assert_equal, refused, times, weights


def test_what_is_finished_is_not_run_again_and_more_can_be_added(
    started: Path, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(started)
    main([*SWEEP, "--seed", "0,1", "--scratch"])
    assert times(started) == before
    assert "12 of 12 runs finished" in capsys.readouterr().out

    main(["sweep", "--config", TINY, "--amount", "0.5,0.7", "--seed", "1"])
    after = times(started)
    assert all(after[file] == when for file, when in before.items())
    assert {f.relative_to(started).parts[:2] for f in after.keys() - before.keys()} == {
        ("seed1", "weight-0.7")
    }

    control = started / "seed0" / "control"  # stopped before its first epoch
    shutil.rmtree(control / "checkpoints")
    (control / "summary.json").unlink()
    (started / "seed0" / "filter-0.5" / "robustness.json").unlink()  # stopped in its test
    main([*SWEEP, "--seed", "0"])
    assert_equal(weights(control), weights(sweep / "seed0" / "control"))
    assert (started / "seed0" / "filter-0.5" / "robustness.json").is_file()


def test_other_attacks_are_tested_anew_without_training(started: Path) -> None:
    main([*SWEEP, "--seed", "0", "--model.attacks.PGD.init_args.steps", "4"])
    run = started / "seed0" / "weight-0.5"
    suite = json.loads((run / "robustness.json").read_text())["suite"]
    assert suite["attacks"]["PGD"]["init_args"]["steps"] == 4
    assert (run / "summary.json").stat().st_mtime < (run / "robustness.json").stat().st_mtime


def test_other_training_needs_another_folder(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(started)
    told = refused(capsys, *SWEEP, "--seed", "0", "--model.adversarial_training.weight", "1.0")
    assert "model.adversarial_training.weight 0.5, but this sweep has 1.0" in told
    assert times(started) == before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("summary.json", b"", "is damaged; remove it, and the run goes on from its checkpoint"),
        ("config.yaml", b"", "is damaged; remove"),
        ("config.yaml", b"\xff\xfe\x00", "is damaged; remove"),
    ],
)
def test_damaged_records_are_told(
    started: Path, name: str, content: bytes, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started / "seed0" / "weight-0.5"
    (run / name).write_bytes(content)
    command = ["sweep", "--config", TINY, "--amount", "0.5", "--folder", str(started)]
    assert f"{run / name} {told}" in refused(capsys, *command)
    if name == "summary.json":  # as the message says
        (run / name).unlink()
        main(command)
        assert json.loads((run / name).read_text())["seconds"] > 0


def test_a_test_of_a_part_is_done_again_in_full(started: Path) -> None:
    run = started / "seed0" / "control"
    part = ["--trainer.limit_test_batches", "1", "--data.init_args.eval_batch_size", "20"]
    main(["test", "--ckpt_path", str(run), *part])
    file = run / "robustness.json"
    found = json.loads(file.read_text())
    assert found["rows"][0]["images"] == 60, "a trial is not written"
    found["rows"][0]["images"] = 20  # as versions before wrote one
    file.write_text(json.dumps(found))
    main([*SWEEP, "--seed", "0"])
    assert json.loads(file.read_text())["rows"][0]["images"] == 60


def test_finished_results_are_never_thrown_away(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(started / "seed0" / "weight-0.5" / "checkpoints")
    before = times(started)
    main([*SWEEP, "--seed", "0"])  # its table is there, and nothing else is asked for
    assert "4 of 4 runs finished" in capsys.readouterr().out
    assert times(started) == before
    told = refused(capsys, *SWEEP, "--seed", "0", "--model.scrutinized_images", "0")
    assert "weight-0.5 has finished, but its checkpoint is gone" in told
    assert times(started) == before
    shutil.rmtree(started / "seed0" / "dense" / "checkpoints")
    more = ["sweep", "--config", TINY, "--amount", "0.5,0.7", "--seed", "0"]
    told = refused(capsys, *more)
    assert "dense has finished, but its checkpoint is gone, and weight-0.7, seed 0 builds" in told
