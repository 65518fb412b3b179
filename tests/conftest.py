"""What the tests share: random networks and real images."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from hypothesis import settings
from hypothesis import strategies as st
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn

from prunerob.cli import main
from prunerob.data import MNIST
from prunerob.networks import Channels, MnistCNN
from prunerob.reports.paper import TABLES, Recipe
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.classifier import Classifier

# Where they are ignored, as in a background job of a shell or under nohup, a test could not
# interrupt anything.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The quick tests see the same examples each time; `make test-all` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


class SmallCNN(nn.Module):
    """Two convolutions with BatchNorm and dropout: state that an attack must leave alone."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 5, 3, stride=2)
        self.linear = nn.Linear(5 * ((size - 3) // 2 + 1) ** 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm1(self.conv1(x)).relu())
        out: Tensor = self.linear(self.conv2(x).relu().flatten(1))
        return out

    def channels(self) -> dict[str, Channels]:
        return {
            "conv1": Channels(readers=("conv2",), norms=("norm1",)),
            "conv2": Channels(readers=("linear",)),
        }


@pytest.fixture
def network() -> MnistCNN:
    torch.manual_seed(0)
    return MnistCNN()


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The first 300 real test images and their labels."""
    _, test = MNIST().load()
    return test.pixels[:300].float() / 255, test.labels[:300]


@pytest.fixture(scope="session")
def trained(digits: tuple[Tensor, Tensor]) -> MnistCNN:
    """An MnistCNN after some 100 steps on real images: gradients as attacks meet them."""
    train, _ = MNIST().load()
    torch.manual_seed(0)
    network = MnistCNN()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for chosen in torch.randperm(12800).split(128):
        x, y = train.pixels[chosen].float() / 255, train.labels[chosen]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of a finished sweep: tiny.yaml pruned in two ways, two seeds; to be read alone."""

    def make(folder: Path) -> None:
        branches = ["--criterion", "weight,filter", "--amount", "0,0.5", "--scratch"]
        running = ["--folder", str(folder), "--jobs", "2", "--threads", "1", "--seed", "0,1"]
        main(["sweep", "--config", TINY, *branches, *running])

    return made_once("sweep", make, tmp_path_factory, worker_id)


def made_once(
    name: str,
    make: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
    worker_id: str,
) -> Path:
    """A folder that one worker of the tests makes, and all read."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.with_suffix(".made").exists():
            folder.mkdir()
            make(folder)
            folder.with_suffix(".made").touch()
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins in an empty folder."""
    monkeypatch.chdir(tmp_path)


def classifier(network: nn.Module, training: AdversarialTraining) -> Classifier:
    module = Classifier(
        network=network,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
        attacks={},
        adversarial_training=training,
        seed=5,
    )
    # A step needs to know the epoch and the number of batches, and logs; no more of a Trainer.
    trainer = type("Steps", (Trainer,), {"num_training_batches": 10, "current_epoch": 3})
    module._trainer = object.__new__(trainer)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module


TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of one finished run of tiny.yaml; to be read alone."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            main(["fit", "--config", TINY])

    folder = made_once("finished", make, tmp_path_factory, worker_id)
    return folder / "lightning_logs" / "tiny" / "version_0"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in the current folder."""
    copy = tmp_path / "lightning_logs" / "tiny" / "version_0"
    shutil.copytree(finished, copy)
    return copy


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail, in one line, with status 2; return the line."""
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("prunerob: error: ")
    return told


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return checkpoint["state_dict"]  # type: ignore[no-any-return]


def masks(run: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["callbacks"]["Pruning"]["masks"]  # type: ignore[no-any-return]


def on_one_thread(*args: str) -> None:
    """Run a command here, with as many threads as other processes of the tests have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(args)
    finally:
        torch.set_num_threads(threads)


def wait_for(what: Callable[[], Any], seconds: float = 120) -> None:
    deadline = monotonic() + seconds
    while not what():
        assert monotonic() < deadline
        sleep(0.02)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class Interrupt(Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            raise KeyboardInterrupt


FILTERS = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.6"]


NARROW = ["--pruning.narrow", "true"]


def newest_run() -> Path:
    folders = Path("lightning_logs/tiny").glob("version_*")
    return max(folders, key=lambda folder: int(folder.name.removeprefix("version_")))


seeds = st.integers(0, 2**31)


amounts = st.floats(0, 0.97)


readings = st.sampled_from(["filters", "weights", "parameters"])


def random_network(seed: int) -> SmallCNN | MnistCNN:
    torch.manual_seed(seed)
    if seed % 2:
        return SmallCNN(1 + seed % 3, 9)
    return MnistCNN(filters=(3 + seed % 5, 8, 5))


CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def swept(sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sweep, tmp_path / "copy"))


def accuracy(run: Path, attack: str) -> float:
    rows = json.loads((run / "robustness.json").read_text())["rows"]
    return float(next(row["accuracy"] for row in rows if row["attack"] == attack))


RUN = Path("lightning_logs/tiny/version_0")


def small() -> MnistCNN:
    return MnistCNN((8, 8, 8))


class LeNet(nn.Module):
    """As tutorials have it: `view`, which takes the plain layout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.linear = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        out: Tensor = self.linear(x.view(x.shape[0], -1))
        return out

    def channels(self) -> dict[str, Channels]:
        return {
            "conv1": Channels(readers=("conv2",)),
            "conv2": Channels(readers=("linear",)),
        }


SWEEP = [
    *("sweep", "--config", TINY, "--criterion", "weight,filter", "--amount", "0,0.5"),
    *("--threads", "1"),
]


@pytest.fixture
def started(sweep: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep, where a sweep of tiny.yaml goes by default."""
    return Path(shutil.copytree(sweep, tmp_path / "sweeps" / "tiny"))


def times(folder: Path) -> dict[Path, float]:
    files = [file for file in folder.rglob("*") if file.is_file() and ".locks" not in file.parts]
    return {file: file.stat().st_mtime for file in files}


def recipe_of(table: str, name: str) -> Recipe:
    """One of the recipes of a table of the paper."""
    return next(recipe for recipe in TABLES[table].recipes if recipe.name == name)
