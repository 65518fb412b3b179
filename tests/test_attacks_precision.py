"""bfloat16 against float32 in the attack on a wide residual network; test_demo has MnistCNN's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.speed import best_layout, in_colour, minute_of_training
from prunerob.attacks import PGD
from prunerob.attacks.attack import has_bfloat16
from prunerob.data import MNIST
from prunerob.data.batches import Images
from prunerob.networks import WideResNet
from prunerob.noise import image_keys
from prunerob.pixels import Pixels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_bfloat16("cpu"), reason="bfloat16 would be emulated, for an hour"),
]


@pytest.fixture(scope="module")
def mnist() -> tuple[Images, Images]:
    return MNIST().load()


def accuracy_left(network: nn.Module, attack: PGD, images: Images) -> float:
    """Accuracy in percent, counted in float32 on the final iterates."""
    right = 0
    for index in torch.arange(len(images.labels)).split(250):
        x, y = images.pixels[index].float() / 255, images.labels[index]
        x_adv = attack(network, x, y, key=image_keys(index, seed=0, purpose="test"))
        with torch.no_grad():
            right += int((network(x_adv).argmax(1) == y).sum())
    return 100 * right / len(images.labels)


def compare(network: nn.Module, attack: PGD, images: Images) -> None:
    half, full = (
        accuracy_left(
            network,
            PGD(
                eps=attack.eps, step_size=attack.step_size, steps=attack.steps, precision=precision
            ),
            images,
        )
        for precision in ("bfloat16", "float32")
    )
    print(f"eps {attack.eps}: {full:.2f} % left in float32, {half:.2f} % in bfloat16")
    assert 5 < full < 99.5, "neither broken at once nor out of reach"
    assert half <= full + 0.2


@pytest.mark.timeout(1800)
def test_wide_resnet(mnist: tuple[Images, Images]) -> None:
    torch.manual_seed(0)
    quick = PGD(eps=Pixels("8/255"), step_size=Pixels("8/255"), steps=1)
    colour = in_colour(mnist[0], 6400)
    network = best_layout(minute_of_training(WideResNet(16, 1), colour, quick, 60))
    attack = PGD(eps=Pixels("8/255"), step_size=Pixels("2/255"), steps=7)
    compare(network, attack, in_colour(mnist[1], 10_000))
