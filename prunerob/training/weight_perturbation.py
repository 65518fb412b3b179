"""Adversarial weight perturbation: the loss at the worst weights nearby (arXiv:2004.05884)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunerob.runs.ranks import ranks

Forward = Callable[[], Tensor]


class WeightPerturbation:
    """Moves weights up the loss for one backward pass, and back to the same bits.

    The perturbation of a layer's weight w is size * ‖w‖ * g / ‖g‖, g the loss's gradient.
    Tensors of one dimension (biases, normalisations) are left out, as in the paper; so are weights
    that are exactly 0, as pruned ones are.

    Args:
        size: gamma, 0 or more: 0.005 to 0.01 in the paper; 0 for none.
    """

    def __init__(self, size: float) -> None:
        self.size = size
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def perturb(self, network: nn.Module, loss: Forward, *, share: float = 1.0) -> None:
        """Move the weights; all ranks together, by the same.

        Args:
            network: its buffers are left as they were.
            loss: of the training step, at the network's weights whenever it is called.
            share: of this rank's batch in the gradient, if there are several.
        """
        weights = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            for weight, gradient in zip(weights, gradients, strict=True):
                g = torch.zeros_like(weight) if gradient is None else gradient.float() * share
                if ranks() > 1:
                    dist.all_reduce(g)
                g = g * (weight != 0)
                self._before.append((weight, weight.clone()))
                weight.add_(g, alpha=float(self.size * weight.norm() / (g.norm() + 1e-12)))
        # Mixed precision keeps casts of weights, which are now others.
        torch.clear_autocast_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Move the weights back, after the backward pass; nothing happens if they are there."""
        for weight, before in self._before:
            weight.copy_(before)
        self._before = []
