"""Evaluation of any network on any images, from Python."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunerob.attacks import Attack
from prunerob.attacks.suite import Suite
from prunerob.data.given import GivenImages
from prunerob.errors import UserError
from prunerob.networks.attacked import AttackedNetwork
from prunerob.networks.modes import evaluating
from prunerob.networks.narrow import find_narrowing
from prunerob.robustness.measure import Measurement
from prunerob.robustness.table import Robustness


def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Attack | Mapping[str, Attack],
    *,
    batch_size: int = 250,
    scrutinized_images: int = 0,
    seed: int = 0,
) -> Robustness:
    """Attack images with each attack and count what is left.

    Robust accuracy, without another word, is what `AutoAttack` leaves.

    Args:
        network: from images (B, C, H, W), pixels in [0, 1], to logits (B, classes); it is attacked
            on its device, in evaluation mode, and left as it was found.
        images: float, (N, C, H, W), in [0, 1]; or uint8, of 256 shades.
        labels: true classes, integers, (N,).
        attacks: one, or several by the names of their rows.
        batch_size: images that are attacked at once.
        scrutinized_images: number of images on which to look into how far the attacks can be
            trusted (`Robustness.scrutiny`); 0 for none.
        seed: of the attacks' noise.

    Returns:
        a row for clean images, for each attack and for the worst case over all of them, each with
        its number of images and 95 % interval; `print` shows the table.

    Raises:
        UserError: images and labels are not as they should be, or the network's answers are not.
    """
    named = attacks if isinstance(attacks, Mapping) else {type(attacks).__name__: attacks}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    data = GivenImages(images, labels, batch_size=batch_size)
    with evaluating(network), torch.no_grad():
        answers = network(data.test_sample(1).x.to(device))
        if answers.dim() != 2 or answers.shape[1] <= int(labels.max()):
            raise UserError(
                f"network: its answers are {tuple(answers.shape)}; logits of "
                f"{int(labels.max()) + 1} classes or more were expected, (B, classes)"
            )
        measurement = Measurement(
            Suite(dict(named)),
            attacked=AttackedNetwork(network, find_narrowing(network)),
            data=data,
            device=device,
            scrutinized_images=scrutinized_images,
            seed=seed,
        )
        measurement.begin()
        for batch in data.test_dataloader():
            measurement.step(type(batch)(*(column.to(device) for column in batch)))
        return measurement.end()
