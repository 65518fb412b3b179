"""Several ranks do what one does: on the CPU, by gloo, each command in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prunerob.attacks import PGD, Attack, NoAttack
from prunerob.data import MNIST
from prunerob.data.batches import Batch, Batches, Images
from prunerob.errors import UserError
from prunerob.networks import WideResNet
from prunerob.pixels import Pixels
from prunerob.runs import ranks
from prunerob.training.adversarial import AdversarialTraining
from tests.conftest import classifier, on_one_thread

TINY = str(Path(__file__).parent / "tiny.yaml")
ZOO = Path(__file__).parent.parent / "zoo"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(*args: str, devices: int = 1) -> subprocess.Popen[str]:
    """Begin a command on so many ranks, one thread each, in a process group of its own."""
    several = ["--trainer.strategy", "ddp"] if devices > 1 else []
    return subprocess.Popen(
        [sys.executable, "-m", "prunerob", *args, "--trainer.devices", str(devices), *several],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*args: str, devices: int = 1, status: int = 0) -> str:
    """Run a command to its end; what it printed."""
    process = start(*args, devices=devices)
    out, _ = process.communicate()
    assert process.returncode == status, out
    return out


def weights(folder: str, name: str = "last") -> dict[str, Tensor]:
    """The weights of a run's checkpoint."""
    file = Path("lightning_logs") / folder / "checkpoints" / f"{name}.ckpt"
    state: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return state


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [5, 24, 101])
def test_every_image_is_served_to_one_rank(ranks: int, images: int) -> None:
    pixels = torch.arange(images).view(-1, 1, 1, 1).to(torch.uint8)
    data = Images(pixels, torch.arange(images))
    for shuffle_seed in (None, 3):
        parts = [
            Batches(
                data, torch.arange(images), size=12, shuffle_seed=shuffle_seed, rank=r, ranks=ranks
            )
            for r in range(ranks)
        ]
        served = [list(part) for part in parts]
        assert [len(batches) for batches in served] == [len(part) for part in parts]
        whole = list(Batches(data, torch.arange(images), size=12, shuffle_seed=shuffle_seed))
        if shuffle_seed is None:
            seen = torch.cat([batch.indices for batches in served for batch in batches])
            assert sorted(seen.tolist()) == list(range(images))
            for rank, batches in enumerate(served):  # whole, as on one device
                assert len(batches) >= 1, "Lightning leaves ranks without batches out"
                for mine, batch in enumerate(batches):
                    first = parts[rank].first(mine)
                    assert torch.equal(batch.indices, torch.arange(images)[first : first + 12])
            continue
        assert len({len(batches) for batches in served}) == 1, "as many steps on every rank"
        for step, batch in enumerate(whole):
            mean = sum(
                part.weight(step) * batches[step].y.float().mean() / ranks
                for part, batches in zip(parts, served, strict=True)
            )
            torch.testing.assert_close(mean, batch.y.float().mean())


TEST = [
    *("--data.init_args.test_size", "101", "--data.eval_batch_size", "20"),
    "--model.attacks",
    "{FGSM: {class_path: prunerob.attacks.FGSM, init_args: {eps: 0.2}}, "
    "PGD: {class_path: prunerob.attacks.PGD, init_args: {steps: 4, step_size: 0.1, restarts: 2}}, "
    "Square: {class_path: prunerob.attacks.Square, init_args: {queries: 30, images: 45}}, "
    "black box: {class_path: prunerob.attacks.BlackBox, init_args: {images: 20, rounds: 3}}}",
    "--model.worst_case_attacks",
    "{more: {class_path: prunerob.attacks.PGD, init_args: {steps: 20, step_size: 0.02}}}",
    *("--model.scrutinized_images", "50"),
]


@pytest.mark.parametrize("several", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_table_is_the_same_on_any_number_of_ranks(several: int, tmp_path: Path) -> None:
    """To the image and to the bit: 101 of them, in six batches."""
    name = "mnist_pgd_weight-0.94"
    tables, images = [], []
    for devices in (1, several):
        place = tmp_path / str(devices)
        place.mkdir()
        for kind in ("safetensors", "yaml"):
            (place / f"{name}.{kind}").write_bytes((ZOO / f"{name}.{kind}").read_bytes())
        test = ["test", "--ckpt_path", str(place / f"{name}.safetensors"), *TEST]
        if devices == 1:
            on_one_thread(*test)
        else:
            run(*test, devices=devices)
        found = json.loads((place / f"{name}_robustness.json").read_text())
        for row in [*found["rows"], *found["worst case attacks"]]:
            del row["seconds"]
        tables.append(found)
        images.append((place / f"{name}_robustness_images.csv").read_text())
    assert tables[0] == tables[1]
    assert images[0] == images[1]
    rows = {row["attack"]: row for row in tables[0]["rows"]}
    assert rows["clean"]["images"] == 101
    assert rows["black box"]["images"] == 81
    assert rows["Square"]["images"] == 45
    assert tables[0]["worst case attacks"][0]["images"] > 20
    assert tables[0]["scrutiny"]["images"] == 50


def test_two_ranks_train_as_one() -> None:
    """320 images in batches of 66: the last one is shared out unevenly.

    With plain gradient steps: RMSprop's blow up what rounding leaves of a gradient near 0.
    """
    fit = ["fit", "--config", TINY, "--data.batch_size", "66", "--data.eval_batch_size", "20"]
    fit += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.05"]
    fit += ["--model.averaging", "0.5"]
    name = "--trainer.logger.init_args.version"
    on_one_thread(*fit, name, "one")
    out = run(*fit, name, "two", devices=2)
    assert out.count("Run: lightning_logs/tiny/two") == 1, "said once"
    one, two = weights("tiny/one"), weights("tiny/two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-3, rtol=1e-3, msg=key)
    reports = [
        json.loads(Path(f"lightning_logs/tiny/{n}/pruning.json").read_text())
        for n in ("one", "two")
    ]
    assert reports[0]["layers"] == reports[1]["layers"]
    images = [report["validation"]["fine-tuned"]["clean"]["images"] for report in reports]
    assert images == [100, 100], "each counted once"


@pytest.mark.slow
def test_two_ranks_go_on_to_the_same_weights() -> None:
    """Killed after the third epoch, which is pruned."""
    fit = ["fit", "--config", TINY]
    name = "--trainer.logger.init_args.version"
    run(*fit, name, "two", devices=2)
    two = weights("tiny/two")
    process = start(*fit, name, "killed", devices=2)
    last = Path("lightning_logs/tiny/killed/checkpoints/last.ckpt")
    deadline = monotonic() + 240
    while monotonic() < deadline and process.poll() is None:
        if last.is_file() and torch.load(last, weights_only=True)["epoch"] == 2:
            break
        sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("lightning_logs/tiny/killed/summary.json").exists(), "killed in the middle"
    run("fit", "--ckpt_path", "lightning_logs/tiny/killed", devices=2)
    resumed = weights("tiny/killed")
    for key, value in two.items():
        assert torch.equal(resumed[key], value), key


def machine(number: int, launcher: str, port: int) -> tuple[list[str], dict[str, str]]:
    """How a launcher begins the one process of one of two machines: by which words, told what."""
    if launcher == "torchrun":
        where = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        size = ["--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "1"]
        return [str(Path(sys.executable).with_name("torchrun")), *size, *where], {}
    told = {"JOB_NAME": "x", "JOB_ID": "1", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2"}
    told |= {"NODEID": str(number), "PROCID": str(number), "LOCALID": "0", "NODELIST": "127.0.0.1"}
    variables = {f"SLURM_{name}": value for name, value in told.items()}
    return [sys.executable], {**variables, "MASTER_PORT": str(port)}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "SLURM"])
def test_two_machines_train_as_two_devices(launcher: str, tmp_path: Path) -> None:
    """Machines of this address; SLURM's variables without SLURM."""
    run("fit", "--config", TINY, devices=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fit = ["-m", "prunerob", "fit", "--config", TINY, "--trainer.num_nodes", "2"]
    fit += ["--trainer.devices", "1", "--trainer.strategy", "ddp"]
    processes = []
    for number in range(2):
        begin, told = machine(number, launcher, port)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **told}
        processes.append(subprocess.Popen([*begin, *fit], env=environment))
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(path.name for path in Path("lightning_logs/tiny").iterdir()) == [
        "version_0",
        "version_1",
    ]
    one, two = weights("tiny/version_0"), weights("tiny/version_1")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_narrow_networks_train_on_two_ranks() -> None:
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.6"]
    fit = ["fit", "--config", TINY, *filters, "--pruning.narrow", "true"]
    name = "--trainer.logger.init_args.version"
    run(*fit, name, "one")
    run(*fit, name, "two", devices=2)
    one, two = weights("tiny/one"), weights("tiny/two")
    before = weights("tiny/two", "before_pruning")
    assert not torch.equal(before["network.linear.weight"], two["network.linear.weight"])
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-3, rtol=1e-3, msg=key)


def test_batches_that_cannot_be_shared_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "ranks", 3)
    data = MNIST(batch_size=128)
    data.setup("test")  # whose batches are dealt out whole
    with pytest.raises(UserError, match=r"batch_size: 128 images cannot .* among 3 devices"):
        data.setup("fit")


class Step(nn.Module):
    """A training step as DDP sees it: its forward pass is the whole step."""

    def __init__(self, attack: Attack) -> None:
        super().__init__()
        network = WideResNet(10, 1)
        self.module = classifier(network, AdversarialTraining(attack=attack))

    def forward(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch, 0)


def test_an_attack_costs_no_communication(tmp_path: Path) -> None:
    """As many collective calls in a step against PGD as in one on clean images."""
    pgd = PGD(eps=Pixels("8/255"), step_size=Pixels("2/255"), steps=3)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    counts = []
    init = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    try:
        for attack in (NoAttack(), pgd):
            step = DistributedDataParallel(Step(attack))
            step(Batch(x, y, y)).backward()  # the first one also builds the buckets
            with torch.profiler.profile() as seen:
                step(Batch(x, y, y)).backward()
            calls = [e.name for e in seen.events() or () if e.name.startswith("c10d::")]
            counts.append(sorted(calls))
    finally:
        torch.distributed.destroy_process_group()
    assert any("allreduce" in call for call in counts[0])
    assert counts[0] == counts[1]


def test_ranks_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"conv1.weight": torch.ones(2, 2), "bias": torch.tensor(0.0)}
    fingerprints: list[dict[str, str]] = []
    monkeypatch.setattr(ranks, "ranks", lambda: 3)

    def gather(value: dict[str, str]) -> list[dict[str, str]]:
        fingerprints.append(value)
        return [fingerprints[0], fingerprints[0], value]

    monkeypatch.setattr(ranks, "gather", gather)
    ranks.check_agreement("after epoch 1", mine)
    ranks.check_agreement("after epoch 2", {n: v.clone() for n, v in mine.items()})
    other = {**mine, "conv1.weight": torch.nextafter(torch.ones(2, 2), torch.zeros(()))}
    with pytest.raises(
        UserError, match=r"after epoch 3, rank 2 differs from rank 0 in conv1\.weight"
    ):
        ranks.check_agreement("after epoch 3", other)
    with pytest.raises(UserError, match="in bias"):
        ranks.check_agreement("at the end", {"conv1.weight": mine["conv1.weight"]})
