"""How much adversarial training slows training down: `python -m benchmarks.slow_down`.

One step of the MNIST network on a batch of 128, as `training_step` does it: the attack, then one
loss on clean and adversarial images and RMSprop's update; standard training has the clean images
alone. The ways of training take turns; CPU time of one thread, so other programs disturb little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from prunerob.attacks import FGSM, PGD, Attack, NoAttack
from prunerob.data import MNIST
from prunerob.networks import MnistCNN
from prunerob.training.adversarial import AdversarialTraining


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    images = MNIST().load()[0]
    x, y = images.pixels[:128].float() / 255, images.labels[:128]

    pgd = PGD(precision="float32")
    attacks: dict[str, Attack] = {
        "standard": NoAttack(),
        "FGSM": FGSM(),
        "PGD, 7 steps": replace(pgd, steps=7),
        "PGD, 40 steps": pgd,
        "PGD, 40 steps, attack in bfloat16 where there is": PGD(),
    }
    steps = {name: _step(attack, x, y) for name, attack in attacks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if i:  # the first warms up
                seconds[name].append(time.process_time() - start)
    standard = statistics.median(seconds["standard"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:<50}{1000 * median:8.1f} ms{median / standard:8.1f}x")


def _step(attack: Attack, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One training step against an attack."""
    torch.manual_seed(0)
    network = MnistCNN().to(memory_format=torch.channels_last)
    optimizer = torch.optim.RMSprop(network.parameters(), 0.001)
    training = AdversarialTraining(attack=attack)
    key = torch.arange(len(y))

    def step() -> None:
        batches = [x]
        if training.adversarial_weight:
            batches.append(training.perturb(network, x, y, key=key))
        loss = torch.stack([F.cross_entropy(network(batch), y) for batch in batches]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
