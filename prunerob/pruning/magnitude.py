"""Magnitudes that can be compared across layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunerob.pruning.scores import Scores, weights_of


def lamp(network: nn.Module, seed: int) -> Scores:
    """Each weight's square as a share of those in its layer that are no smaller.

    LAMP (Lee et al., arXiv:2010.07611): with a layer's weights in ascending order of magnitude,
    the score of u is w_u^2 over the sum of w_v^2 for all v from u on. Every layer's largest weight
    scores 1, so that no layer vanishes, and one threshold makes a budget for each layer.

    Args:
        network: its convolutions and linear layers take part, biases and normalisations do not.
        seed: not used.

    Returns:
        scores in [0, 1], float64, on the CPU, in each weight's shape.
    """
    return {name: _lamp(weight.detach()) for name, weight in weights_of(network)}


def _lamp(weight: Tensor) -> Tensor:
    # float64, in which sums over millions of weights are exact enough, is not on every device.
    squares, order = weight.cpu().double().square().flatten().sort(stable=True)
    left = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = torch.where(left > 0, squares / left, 0.0)
    scores[order[-1]] = 1.0  # also in a layer of zeros
    return scores.view(weight.shape)
