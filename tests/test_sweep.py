"""Sweeps: each base once, interrupted and gone on with, side by side, mistakes told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from prunerob.cli import main
from prunerob.errors import UserError
from prunerob.sweeps import processes
from prunerob.sweeps.branches import make_branches
from tests.test_cli import (
    TINY,
    assert_equal,
    masks,
    on_one_thread,
    refused,
    wait_for,
    weights,
)

SWEEP = ["sweep", "--config", TINY, "--criterion", "weight,filter", "--amount", "0,0.5"]
SWEEP += ["--threads", "1"]  # as in the fixture: bits depend on their number


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copy(sweep: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep, where a sweep of tiny.yaml goes by default."""
    return Path(shutil.copytree(sweep, tmp_path / "sweeps" / "tiny"))


def times(folder: Path) -> dict[Path, float]:
    files = [file for file in folder.rglob("*") if file.is_file() and ".locks" not in file.parts]
    return {file: file.stat().st_mtime for file in files}


def test_every_branch_grows_from_one_dense_network(sweep: Path) -> None:
    assert sorted(path.name for path in sweep.glob("[!.]*")) == ["seed0", "seed1"]
    for seed in (0, 1):
        runs = sweep / f"seed{seed}"
        expected = ["control", "dense", "filter-0.5", "filter-0.5-scratch"]
        assert sorted(p.name for p in runs.iterdir()) == [
            *expected,
            "weight-0.5",
            "weight-0.5-scratch",
        ]
        dense = weights(runs / "dense")
        assert json.loads((runs / "dense" / "summary.json").read_text())["epochs"] == 2
        for name in ("control", "weight-0.5", "filter-0.5"):
            config = yaml.safe_load((runs / name / "config.yaml").read_text())
            assert config["seed_everything"] == seed
            assert config["ckpt_path"].endswith(f"seed{seed}/dense/checkpoints/last.ckpt")
            assert not torch.equal(
                weights(runs / name)["network.conv1.weight"], dense["network.conv1.weight"]
            )
            assert (runs / name / "robustness.json").is_file()
        assert all(mask.all() for mask in masks(runs / "control").values())
        pruned, scratch = masks(runs / "filter-0.5"), masks(runs / "filter-0.5-scratch")
        assert_equal(pruned, scratch)
        held = weights(runs / "filter-0.5-scratch")
        assert all((held[f"network.{name}"][~mask] == 0).all() for name, mask in pruned.items())
        report = json.loads((runs / "filter-0.5-scratch" / "pruning.json").read_text())
        assert report["epoch"] == 0
        assert report["masks_from"].endswith("filter-0.5")


def test_a_branch_equals_the_single_run(sweep: Path) -> None:
    on_one_thread("fit", "--config", TINY, "--pruning.amount", "0.5", "--seed_everything", "1")
    single = Path("lightning_logs/tiny/version_0")
    assert_equal(weights(single, "before_pruning"), weights(sweep / "seed1" / "dense"))
    assert_equal(weights(single), weights(sweep / "seed1" / "weight-0.5"))


def test_what_is_finished_is_not_run_again_and_more_can_be_added(
    copy: Path, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(copy)
    main([*SWEEP, "--seed", "0,1", "--scratch"])
    assert times(copy) == before
    assert "12 of 12 runs finished" in capsys.readouterr().out

    main(["sweep", "--config", TINY, "--amount", "0.5,0.7", "--seed", "1"])
    after = times(copy)
    assert all(after[file] == when for file, when in before.items())
    assert {f.relative_to(copy).parts[:2] for f in after.keys() - before.keys()} == {
        ("seed1", "weight-0.7")
    }

    control = copy / "seed0" / "control"  # stopped before its first epoch
    shutil.rmtree(control / "checkpoints")
    (control / "summary.json").unlink()
    (copy / "seed0" / "filter-0.5" / "robustness.json").unlink()  # stopped in its test
    main([*SWEEP, "--seed", "0"])
    assert_equal(weights(control), weights(sweep / "seed0" / "control"))
    assert (copy / "seed0" / "filter-0.5" / "robustness.json").is_file()


def test_other_attacks_are_tested_anew_without_training(copy: Path) -> None:
    main([*SWEEP, "--seed", "0", "--model.attacks.PGD.init_args.steps", "4"])
    run = copy / "seed0" / "weight-0.5"
    suite = json.loads((run / "robustness.json").read_text())["suite"]
    assert suite["attacks"]["PGD"]["init_args"]["steps"] == 4
    assert (run / "summary.json").stat().st_mtime < (run / "robustness.json").stat().st_mtime


def test_other_training_needs_another_folder(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(copy)
    told = refused(capsys, *SWEEP, "--seed", "0", "--model.adversarial_training.weight", "1.0")
    assert "model.adversarial_training.weight 0.5, but this sweep has 1.0" in told
    assert times(copy) == before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("summary.json", b"", "is damaged; remove it, and the run goes on from its checkpoint"),
        ("config.yaml", b"", "is damaged; remove"),
        ("config.yaml", b"\xff\xfe\x00", "is damaged; remove"),
    ],
)
def test_damaged_records_are_told(
    copy: Path, name: str, content: bytes, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy / "seed0" / "weight-0.5"
    (run / name).write_bytes(content)
    command = ["sweep", "--config", TINY, "--amount", "0.5", "--folder", str(copy)]
    assert f"{run / name} {told}" in refused(capsys, *command)
    if name == "summary.json":  # as the message says
        (run / name).unlink()
        main(command)
        assert json.loads((run / name).read_text())["seconds"] > 0


def test_a_kill_ends_every_process_and_the_sweep_goes_on(sweep: Path, tmp_path: Path) -> None:
    args = ["sweep", "--config", TINY, "--amount", "0,0.5", "--threads", "1", "--seed", "1"]
    command = [sys.executable, "-m", "prunerob", *args]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "sweeps" / "tiny" / "seed1"
    begun = folder / "control" / "config.yaml"
    wait_for(lambda: begun.is_file() or process.poll() is not None)
    assert process.poll() is None
    process.kill()  # its children are not told: they must notice
    process.wait()
    wait_for(lambda: not group_is_alive(process.pid), 20)  # no child goes on without its sweep
    assert not (folder / "weight-0.5").exists()
    dense = (folder / "dense" / "summary.json").stat().st_mtime

    main([*args, "--jobs", "2"])
    assert (folder / "dense" / "summary.json").stat().st_mtime == dense
    for name in ("dense", "control", "weight-0.5"):
        assert_equal(weights(folder / name), weights(sweep / "seed1" / name))
        assert (folder / name / "robustness.json").is_file()


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_fails_is_told_and_the_others_go_on(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branches = ["--amount", "0.9999,0.6", "--scratch"]  # one would empty a layer
    with pytest.raises(SystemExit) as error:
        main(["sweep", "--config", TINY, *branches, "--jobs", "2"])
    assert error.value.code == 1
    told = capsys.readouterr().out
    assert "weight-0.9999, seed 0: failed: pruning.amount: 0.9999 would empty" in told
    assert "weight-0.9999-scratch, seed 0: left out, weight-0.9999, seed 0 failed" in told
    assert "3 of 5 runs finished, 2 failed" in told
    assert (copy / "seed0" / "weight-0.6-scratch" / "robustness.json").is_file()


def test_a_failed_base_leaves_its_branches_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["sweep", "--config", TINY, "--amount", "0.5", "--model.optimizer.init_args.lr", "-1"])
    assert error.value.code == 1
    told = capsys.readouterr().out
    assert "dense, seed 3: failed" not in told
    assert "dense, seed 0: failed: model.optimizer or model.schedule: Invalid learning rate" in told
    assert "weight-0.5, seed 0: left out, dense, seed 0 failed" in told


def test_a_file_says_the_same(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "config": TINY,
        "folder": str(sweep),
        "amount": {"weight": [0, 0.5], "filter": [0.5]},
        "seed": [0, 1],
        "scratch": True,
        "settings": {"trainer.accelerator": "cpu"},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(options))
    before = times(sweep)
    main(["sweep", "sweep.yaml"])
    assert times(sweep) == before
    assert "12 of 12 runs finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--amount", "0.5,0.5"], "amount: 0.5 is there twice"),
        (["--amount", "0.5,1"], "amount: 1.0 lies outside [0, 1)"),
        (["--amount", "-0.1"], "amount: -0.1 lies outside"),
        (["--amount", "half"], "argument --amount: invalid list of numbers value: 'half'"),
        (["--amount", ""], "amount: the list is empty"),
        ([], "--amount is missing"),
        (["--amount", "0.5", "--seed", "1,1"], "seed: 1 is there twice"),
        (["--amount", "0.5", "--criterion", "size"], "criterion: size is unknown"),
        (["--amount", "0.5", "--criterion", "filter:most"], "the readings are filters"),
        (["--amount", "0,0.95", "--criterion", "filter"], "0.95 of the weights cannot be pruned"),
        (
            [
                *("--amount", "0.5", "--data", "prunerob.data.ImageFolder"),
                *("--data.folder", "gone", "--data.augmentation", "prunerob.data.CropAndFlip"),
            ],
            "data.folder: there is no folder gone/train",
        ),
        (["--amount", "0.5", "--trainer.devices", "2"], "trainer.devices: each run of a sweep"),
        (["--amount", "0.5", "--criterion", "filter:weights:go"], "streams have one of keep"),
        (["--amount", "0.5", "--jobs", "0"], "--jobs and --threads are 1 or more"),
        (["--amount", "0.5", "--config", "none.yaml"], "--config: there is no file none.yaml"),
        (["--amount", "0.5", "--pruning.epoch", "null"], "pruning.epoch of"),
        (["--amount", "0.5", "--pruning.epoch", "4"], "pruning.epoch of"),
        (["--amount", "0.5", "--model.depth", "3"], "model.depth"),
    ],
)
def test_mistakes_cost_nothing(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "sweep", "--config", TINY, *args)
    assert not Path("sweeps").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("amount: [0.5]\namounts: [1]", "amounts is unknown"),
        ("amount: 0.5", "amount is a list"),
        ("seed: [a]", "seed is a list of int"),
        ("- 1", "is no sweep"),
        ("a: [", "is no YAML file"),
        ("settings: [1]", "settings are keys"),
    ],
)
def test_mistakes_in_a_file(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file none.yaml" in refused(capsys, "sweep", "none.yaml")
    Path("sweep.yaml").write_text(options)
    assert told in refused(capsys, "sweep", "sweep.yaml", "--config", TINY)


def test_branches_have_one_control_and_names_of_their_own() -> None:
    branches = make_branches(["weight", "filter", "filter:parameters"], [0.0, 0.94, 0.5])
    names = [branch.name for branch in branches]
    pruned = [
        f"{kind}-{n}" for kind in ("weight", "filter", "filter-parameters") for n in (0.94, 0.5)
    ]
    assert names == ["control", *pruned]
    (branch,) = make_branches(["filter:weights:silence"], [0.6])
    assert branch.name == "filter-weights-silence-0.6"
    assert branch.settings()[-4:] == [
        "--pruning.reading",
        "weights",
        "--pruning.residual",
        "silence",
    ]
    with pytest.raises(UserError, match="twice"):
        make_branches(["weight", "weight"], [0.5])


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_two_sweeps_do_not_share_a_folder(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    with (copy / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        told = refused(capsys, *SWEEP, "--seed", "0")
    assert told.endswith("another sweep is running in sweeps/tiny")
    main([*SWEEP, "--seed", "0"])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (["--trainer.max_epochs", "3"], "trainer.max_epochs 4, but this sweep has 3"),
        (["--pruning.epoch", "1"], "trainer.max_epochs 2, but this sweep has 1"),
        (["--pruning.reading", "filters"], "pruning.reading weights, but this sweep has filters"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision"),
    ],
)
def test_a_trial_does_not_pass_for_the_real_thing(
    setting: list[str], told: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, *SWEEP, "--seed", "0", *setting)


def test_a_test_of_a_part_is_done_again_in_full(copy: Path) -> None:
    run = copy / "seed0" / "control"
    part = ["--trainer.limit_test_batches", "1", "--data.init_args.eval_batch_size", "20"]
    main(["test", "--ckpt_path", str(run), *part])
    file = run / "robustness.json"
    found = json.loads(file.read_text())
    assert found["rows"][0]["images"] == 60, "a trial is not written"
    found["rows"][0]["images"] = 20  # as versions before wrote one
    file.write_text(json.dumps(found))
    main([*SWEEP, "--seed", "0"])
    assert json.loads(file.read_text())["rows"][0]["images"] == 60


def test_masks_of_another_run_must_be_those_that_were_asked_for(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def masks_from(run: str, *args: str) -> str:
        place = ["--pruning.masks_from", str(sweep / "seed0" / run), "--pruning.epoch", "0"]
        return refused(capsys, "fit", "--config", TINY, *place, *args)

    told = masks_from("weight-0.5")
    assert "pruning.amount: 0.7, but" in told
    assert told.endswith("was pruned with 0.5")
    told = masks_from("filter-0.5", "--pruning.amount", "0.5")
    assert "pruning.criterion: prunerob.pruning.criteria.weight_magnitude, but" in told
    assert "holds no masks: it is not of a pruned run" in masks_from("dense")
    narrower = ["--pruning.amount", "0.5", "--model.network.init_args.filters", "[8, 8, 4]"]
    assert "is of another network (conv3.weight)" in masks_from("weight-0.5", *narrower)
    assert "there is no file or folder" in masks_from("none")


def test_finished_results_are_never_thrown_away(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "seed0" / "weight-0.5" / "checkpoints")
    before = times(copy)
    told = refused(capsys, *SWEEP, "--seed", "0")
    assert "weight-0.5 has finished, but its checkpoint is gone" in told
    assert times(copy) == before


@pytest.mark.parametrize(
    "setting",
    [
        ["--seed_everything", "3"],
        ["--ckpt_path", "x"],
        ["--pruning.amount", "0.5"],
        ["--trainer.limit_test_batches", "2"],
        ["--trainer.limit_test_batches", "1"],
        ["--trainer.limit_test_batches", "0"],
        ["--trainer.limit_test_batches", "0.0"],
        ["--trainer.fast_dev_run", "true"],
    ],
)
def test_what_a_sweep_sets_itself_is_no_setting(
    setting: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, *SWEEP, *setting)
    assert setting[0].removeprefix("--") in told


@pytest.mark.parametrize(
    "criteria", ["filter,filter:weights", "weight,prunerob.pruning.criteria.weight_magnitude"]
)
def test_the_same_pruning_by_two_names_is_refused(
    criteria: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "sweep", "--config", TINY, "--criterion", criteria, "--amount", "0,0.4")
    assert "are the same pruning" in told
    assert not Path("sweeps").exists()


def test_images_that_a_data_set_refuses_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    augmentation = ["--data.augmentation", "prunerob.data.CropAndFlip"]
    augmentation += ["--data.augmentation.init_args.padding", "-1"]
    assert "padding of CropAndFlip: -1 is below 0" in refused(capsys, *SWEEP, *augmentation)


def test_each_run_is_tested_with_its_own_settings(sweep: Path) -> None:
    for name, method in (("weight-0.5", "weight_magnitude"), ("filter-0.5-scratch", "filter_l1")):
        log = (sweep / "seed0" / name / "log.txt").read_text()
        tested = log.split("$ prunerob test")[1].splitlines()[0]
        assert f"--pruning.amount 0.5 --pruning.criterion prunerob.pruning.{method}" in tested


def test_runs_side_by_side_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable that CUDA reads in each process; the processes here are stand-ins."""
    seen: dict[int, str] = {}
    ended: set[int] = set()

    class Stub:
        def __init__(self, target: Any, args: tuple[int, int, str], daemon: bool) -> None:
            self.run, self.args = target, args

        def start(self) -> None:
            with pytest.raises(SystemExit):
                self.run(*self.args)

        def is_alive(self) -> bool:
            return self.args[0] not in ended

    def work(job: int, threads: int) -> bool:
        seen[job] = os.environ["CUDA_VISIBLE_DEVICES"]
        return False

    monkeypatch.setattr(processes, "work", work)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for visible, names in (("", ("0", "1")), ("3,5", ("3", "5"))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        executor = processes.Processes(at_once=3, threads=1)
        executor.prepare([], print)
        executor._context = SimpleNamespace(Process=Stub)
        ended.clear()
        for number in range(3):
            executor.begin(number, print)  # type: ignore[arg-type]
        ended.add(1)
        executor.begin(3, print)  # type: ignore[arg-type]
        first, second = names
        assert seen == {0: first, 1: second, 2: first, 3: second}
