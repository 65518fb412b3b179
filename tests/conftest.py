"""What the tests share: random networks and real images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunerob.cli import main
from prunerob.data import MNIST
from prunerob.networks import Channels, MnistCNN


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
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep: tiny.yaml pruned in two ways, two seeds; to be read alone."""
    folder = tmp_path_factory.mktemp("sweep")
    config = str(Path(__file__).parent / "tiny.yaml")
    branches = ["--criterion", "weight,filter", "--amount", "0,0.5", "--scratch", "--seed", "0,1"]
    running = ["--folder", str(folder), "--jobs", "2", "--threads", "1"]
    main(["sweep", "--config", config, *branches, *running])
    return folder
