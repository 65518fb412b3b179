"""How many images short attacks of training leave, by what they attack and through which ReLUs.

    python scripts/short_attacks.py zoo/mnist_robust_90.safetensors

On 1,000 validation images, eps 0.3, ten steps of 0.05 from a uniform start, in float32:
docs/train.md quotes it. It takes some ten seconds for each network on one CPU core.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

import prunerob
from prunerob.attacks import PGD
from prunerob.data import MNIST
from prunerob.pixels import Pixels
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.objectives import TRADES

IMAGES = 1000
PLAIN = PGD(step_size=Pixels(0.05), steps=10, precision="float32")
RELUS = {
    "ReLU's own derivative": PLAIN,
    "every other step smooth": replace(PLAIN, relu_temperature=0.1),
    "nine of ten steps smooth": replace(PLAIN, relu_temperature=0.1, relu_own_every=10),
}


def main(*networks: str) -> None:
    """Print a line for each network and attack.

    Args:
        networks: files of weights, each beside its configuration.
    """
    images = MNIST(test_on="validation").test_sample(IMAGES)
    key = torch.arange(IMAGES)
    for file in networks:
        network = prunerob.load(file).eval()
        for attacked in ("probabilities", "labels"):
            for relus, attack in RELUS.items():
                training = AdversarialTraining(attack=attack, objective=TRADES(attacked=attacked))
                x_adv = training.perturb(network, images.x, images.y, key=key)
                with torch.no_grad():
                    left = int((network(x_adv).argmax(1) == images.y).sum())
                print(f"{file}: {attacked}, {relus}: {left:,} of {IMAGES:,} left", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
