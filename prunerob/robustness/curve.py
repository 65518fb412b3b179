"""The security curve: accuracy against the attacker's radius, from clean images to none left."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

import torch
from torch import Tensor, nn

from prunerob.attacks import APGD, Attack, Square
from prunerob.networks.modes import evaluating
from prunerob.pixels import Pixels
from prunerob.robustness.measure import in_float32
from prunerob.statistics import wilson_interval

PARTS = 8
"""Of the radius that the network is tested at, between two points of the curve up to there."""
GROWTH = 1.25
"""From each radius to the next one beyond."""
QUERIES = 1000
"""Of Square, at each radius."""


@dataclass(frozen=True, kw_only=True)
class SecurityCurve:
    """How many images are left at which radius.

    Args:
        radii: of the L-infinity ball, in pixel units of [0, 1], rising from 0.
        right: images that are classified right at each of them and at all before, falling.
        images: number of images.
    """

    radii: Sequence[float]
    right: Sequence[int]
    images: int

    def accuracy(self, radius: float) -> float:
        """Accuracy at one of the radii, in [0, 1]; 0 beyond the last if nothing is left there."""
        known = dict(zip(self.radii, self.right, strict=True))
        return known.get(radius, 0 if radius > self.radii[-1] else self.images) / self.images


def security_curve(
    network: nn.Module, x: Tensor, y: Tensor, *, radius: float, key: Tensor, batch_size: int = 250
) -> SecurityCurve:
    """Attack images at rising radii, each time those that are left, until none is.

    At each radius APGD on the cross-entropy and on targets, then Square, all shorter than in
    AutoAttack: the curve is an upper bound, and falls by definition, as what fools a network within
    a ball does so within a larger one.

    Args:
        network: from pixels in [0, 1] to logits; left exactly as it was found.
        x: images, float32, (N, C, H, W), pixels in [0, 1].
        y: true labels, int64, (N,).
        radius: that the network is tested at, in (0, 1]; points lie an eighth of it apart
            up to there, and a quarter of their own radius beyond.
        key: int64, (N,), what each image's noise is a function of.
        batch_size: images that are attacked at once.
    """
    with evaluating(network), in_float32(x.device):
        with torch.no_grad():
            logits = torch.cat([network(part) for part in torch.split(x, batch_size)])
        left = logits.argmax(1) == y
        radii, right = [0.0], [int(left.sum())]
        while right[-1] and radii[-1] < 1:
            reached = radii[-1] >= radius * (1 - 1e-9)
            eps = min(1.0, GROWTH * radii[-1] if reached else radius * len(radii) / PARTS)
            for attack in _attacks(eps, classes=logits.shape[1]):
                (place,) = left.nonzero(as_tuple=True)
                lost = attack.fools(
                    network, x[place], y[place], key=key[place], batch_size=batch_size
                )
                left[place[lost]] = False
            radii.append(eps)
            right.append(int(left.sum()))
    return SecurityCurve(radii=radii, right=right, images=len(y))


def _attacks(eps: float, *, classes: int) -> list[Attack]:
    ball = Pixels(eps)
    targeted = [APGD(eps=ball, loss="targeted_dlr", steps=25, targets=3)] if classes > 3 else []
    return [APGD(eps=ball, steps=50), *targeted, Square(eps=ball, queries=QUERIES)]


def curves_to_csv(curves: Mapping[str, SecurityCurve]) -> str:
    """A line for each network and radius: accuracy in [0, 1] with its 95 % interval."""
    file = StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["network", "eps", "accuracy", "low", "high", "images"])
    for name, curve in curves.items():
        for radius, right in zip(curve.radii, curve.right, strict=True):
            bounds = [f"{bound:.6f}" for bound in wilson_interval(right, curve.images)]
            accuracy = f"{right / curve.images:.6f}"
            table.writerow([name, f"{radius:.6g}", accuracy, *bounds, curve.images])
    return file.getvalue()


def curves_to_json(curves: Mapping[str, SecurityCurve]) -> str:
    """The same for programs, with counts in place of shares."""
    plain = {
        name: {"eps": list(c.radii), "right": list(c.right), "images": c.images}
        for name, c in curves.items()
    }
    return json.dumps(plain, indent=2) + "\n"
