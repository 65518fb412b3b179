"""Sweeps on Ray: the same results as on this machine alone, whoever dies meanwhile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import pytest

from prunerob.commands.reading import resolve
from prunerob.errors import UserError
from prunerob.sweeps.cluster import RETRIES, RayTask, RayTasks
from prunerob.sweeps.job import Job
from prunerob.sweeps.machine import Place, Unfit
from prunerob.sweeps.make import make_sweep
from tests.conftest import TINY, assert_equal, refused, wait_for, weights

pytest.importorskip("ray", reason="an optional extra")

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="workers are found by their numbers"),
]

SWEEP = [sys.executable, "-m", "prunerob", "sweep", "--config", TINY, "--executor", "ray"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # As a launcher of many tasks would say it; runs of a sweep are none of them.
    monkeypatch.setenv("SLURM_JOB_NAME", "ray")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")


def start(*args: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*SWEEP, *args], stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def worker_of(run: Path) -> int:
    """The process that is at a run, in its second epoch."""
    log = run / "log.txt"
    wait_for(lambda: (run / "checkpoints" / "last.ckpt").is_file())
    return int(re.findall(r"process (\d+)", log.read_text())[-1])


def status(process: int) -> list[str]:
    """What Linux says of a process: its state, its parent, and more; nothing once it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return []


def accuracies(run: Path) -> list[str]:
    """A table without the seconds that it took."""
    return [line.rpartition(",")[0] for line in (run / "robustness.csv").read_text().splitlines()]


def assert_same(runs: Path, sweep: Path, *seeds: str) -> None:
    """That sweeps came to the same weights, to the bit, and the same tables."""
    for seed in seeds:
        for name in ("dense", "weight-0.5"):
            mine, theirs = runs / seed / name, sweep / seed / name
            assert_equal(weights(mine), weights(theirs))
            assert accuracies(mine) == accuracies(theirs)
            assert list(mine.glob("events.out.tfevents*"))


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_the_results_are_the_same(
    sweep: Path, tmp_path: Path
) -> None:
    process = start("--amount", "0.5", "--seed", "0,1")
    runs = tmp_path / "sweeps" / "tiny"
    os.kill(worker_of(runs / "seed0" / "dense"), signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "dense, seed 0: its worker died; it is begun again from its last epoch" in out
    assert "4 of 4 runs finished" in out
    assert_same(runs, sweep, "seed0", "seed1")
    log = (runs / "seed0" / "dense" / "log.txt").read_text()
    assert log.count("$ prunerob fit") == 2
    assert "Epoch 2/2 (training)" in log
    assert f"--ckpt_path {Path('sweeps/tiny/seed0/dense')}" in log  # not from the start
    assert not list(runs.glob(".shared-*"))


class Cluster:
    """A head without CPUs, and machines of one CPU, all of them here."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        out = self._ray("--head", "--port", "0", "--num-cpus", "0", "--include-dashboard", "false")
        self.address = re.findall(r"--address='([^']+)'", out)[0]

    def add(self, *resources: str, **environment: str) -> None:
        self._ray("--address", self.address, "--num-cpus", "1", *resources, **environment)

    def _ray(self, *args: str, **environment: str) -> str:
        command = [Path(sys.executable).with_name("ray"), "start", "--block", *args]
        process = subprocess.Popen(
            [*map(str, command), "--object-store-memory", "80000000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        self.processes.append(process)
        assert process.stdout
        out = ""
        for line in process.stdout:
            out += line
            if "--block" in line:
                return out
        raise AssertionError(out)

    def close(self) -> None:
        for process in reversed(self.processes):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


@pytest.mark.slow
def test_a_machine_that_is_lost_is_made_up_for(
    cluster: Cluster, sweep: Path, tmp_path: Path
) -> None:
    cluster.add()
    cluster.add()
    process = start("--amount", "0.5", "--seed", "0,1", "--ray-address", cluster.address)
    runs = tmp_path / "sweeps" / "tiny"
    worker = worker_of(runs / "seed0" / "dense")
    os.kill(int(status(worker)[1]), signal.SIGKILL)  # what there is of Ray on that machine
    os.kill(worker, signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "2 machines: room for 2 runs, each with 1 CPU." in out
    assert "dense, seed 0: its machine was lost; it is begun again" in out
    assert_same(runs, sweep, "seed0", "seed1")


@pytest.mark.slow
def test_a_machine_that_joins_later_and_is_unlike_gets_no_runs(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add()
    process = start("--amount", "0.5", "--seed", "0,1", "--ray-address", cluster.address)
    worker_of(tmp_path / "sweeps" / "tiny" / "seed0" / "dense")
    other = tmp_path / "other" / "numpy-0.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0\n")
    cluster.add(PYTHONPATH=str(other.parent))
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "1 machine: room for 1 run, each with 1 CPU." in out
    assert out.count("install the same. It gets no runs.") == 1
    assert "has numpy 0.0, here is " in out
    assert "4 of 4 runs finished" in out


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_sweep_and_it_goes_on(
    how: signal.Signals, cluster: Cluster, sweep: Path, tmp_path: Path
) -> None:
    cluster.add("--num-gpus", "1")  # said to be there: no network of tiny.yaml goes on one
    args = ["--amount", "0.5", "--ray-address", cluster.address, "--gpus", "0.5"]
    process = start(*args)
    runs = tmp_path / "sweeps" / "tiny"
    worker = worker_of(runs / "seed0" / "dense")
    environment = Path(f"/proc/{worker}/environ").read_text()
    os.kill(process.pid, how)
    process.communicate()
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[how]
    wait_for(lambda: status(worker)[:1] in ([], ["Z"]), 20)
    assert "SLURM_PROCID=1" in environment  # as the cluster was started

    process = start(*args)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert (
        "1 machine: room for 1 run, each with 1 CPU and 0.5 GPU." in out
    )  # one CPU, though two would share the GPU
    assert_same(runs, sweep, "seed0")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    options = {"config": TINY, "criterion": ["weight"], "amount": [0.5], "seed": [0]}
    options |= {"folder": str(tmp_path / "runs"), "scratch": False, "settings": []}
    return make_sweep(options, resolve=resolve).jobs()[0]


class Dying(RayTasks):
    """An executor whose workers all die: the first after so many epochs, the second, ..."""

    def __init__(self, *epochs: int) -> None:
        super().__init__(address=None, at_once=None, threads=1, gpus=None, accelerators={"cpu"})
        self.epochs = epochs
        self.begun = 0

    def submit(self, job: Job) -> None:
        done = self.epochs[min(self.begun, len(self.epochs) - 1)]
        file = job.run.checkpoint()
        file.parent.mkdir(parents=True, exist_ok=True)
        if done:
            file.write_text("x" * done)
            os.utime(file, (done, done))
        self.begun += 1

    def outcome(self, ref: None) -> str | Unfit | None:
        raise ChildProcessError("its worker died")


@pytest.mark.parametrize(("epochs", "begun"), [((0,), 1 + RETRIES), ((1, 2, 5), 3 + 1 + RETRIES)])
def test_a_run_that_dies_again_and_again_without_an_epoch_is_given_up(
    job: Job, epochs: tuple[int, ...], begun: int
) -> None:
    said: list[str] = []
    executor = Dying(*epochs)
    task = RayTask(executor, job, said.append)
    while not task.has_ended():
        pass
    assert executor.begun == begun
    assert task.failure() == f"its worker died, {1 + RETRIES} times without finishing an epoch"
    assert len(said) == begun - 1


def test_a_machine_that_is_unlike_is_refused(tmp_path: Path) -> None:
    place = Place(directory=str(tmp_path), token=".shared-1", import_path=["/x"], versions={})
    sweeps = [tmp_path / "runs"]
    with pytest.raises(UserError, match="runs is another folder than here"):
        place.enter(sweeps)
    sweeps[0].mkdir()
    (sweeps[0] / ".shared-1").touch()
    place.enter(sweeps)
    with pytest.raises(UserError, match=r"has torch [0-9.]+, here is 1\.0: install the same"):
        replace(place, versions={"torch": "1.0"}).enter(sweeps)
    with pytest.raises(UserError, match=r"cannot enter .*none \(No such file"):
        replace(place, directory=str(tmp_path / "none")).enter(sweeps)
    sys.path.remove("/x")


@pytest.mark.parametrize(
    ("gpus", "resources", "room"),
    [
        (0.0, {"CPU": 5.0}, 2),
        (0.0, {"memory": 1e9}, 0),
        (1.0, {"CPU": 8.0}, 0),
        (1.0, {"CPU": 8.0, "GPU": 2.0}, 2),
        (0.25, {"CPU": 100.0, "GPU": 2.0}, 8),
        (0.4, {"CPU": 100.0, "GPU": 2.0}, 4),
        (0.1, {"CPU": 100.0, "GPU": 1.0}, 10),
        (0.2, {"CPU": 100.0, "GPU": 1.0}, 5),
    ],
)
def test_room_is_what_both_cpus_and_gpus_give(
    gpus: float, resources: dict[str, float], room: int
) -> None:
    executor = RayTasks(address=None, at_once=None, threads=2, gpus=gpus, accelerators={"auto"})
    assert executor._room_on({"NodeID": "a", "Resources": resources}) == room


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--executor", "slurm"], "argument --executor: invalid choice: 'slurm'"),
        (["--ray-address", "auto"], "--ray-address is for --executor ray"),
        (["--gpus", "1"], "--gpus is for --executor ray"),
        (["--executor", "ray", "--gpus", "2"], "--gpus: 2 is not 0 or 0.01 to 1"),
        (
            ["--executor", "ray", "--gpus", "0", "--trainer.accelerator", "gpu"],
            "--gpus: 0, but trainer.accelerator asks for one",
        ),
        (
            ["--executor", "ray", "--ray-address", "127.0.0.1:9"],
            "Ray at 127.0.0.1:9 cannot be reached ([Errno 111]",
        ),
    ],
)
def test_mistakes_are_told(args: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, "sweep", "--config", TINY, "--amount", "0.5", *args)


def test_without_ray_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = refused(capsys, "sweep", "--config", TINY, "--amount", "0.5", "--executor", "ray")
    assert told.endswith("Ray is not installed; pip install 'prunerob[ray]'")
