"""N-FGSM: one step from strong noise, for training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunerob.attacks.attack import Attack, input_gradient, per_image
from prunerob.noise import uniform
from prunerob.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class NFGSM(Attack):
    """A gradient step of size eps from noise around the image (de Jorge et al., arXiv:2202.01181).

    Its examples lie up to (1 + noise) * eps from the image: they serve training alone, where they
    keep single-step training from overfitting to its step.

    Args:
        eps: size of the step, the radius to train for, in pixel units of [0, 1]: 0.3, or 8/255.
        noise: largest noise, in eps, above 0: 2 in the paper.
    """

    eps: Pixels = Pixels("8/255")
    noise: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Pixels(self.eps))
        if not self.noise > 0:
            raise ValueError(f"noise of NFGSM: {self.noise} is not above 0")

    @property
    def gradient_steps(self) -> int:
        """One."""
        return 1

    @property
    def takes_probabilities(self) -> bool:
        """Yes: it never starts at the image."""
        return True

    @property
    def stays_in_ball(self) -> bool:
        """No."""
        return False

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Perturb images; see `Attack.__call__`."""
        radius = per_image(self.eps if eps is None else eps, x)
        noise = self.noise * radius * (2 * uniform(key, x.shape[1:]) - 1)
        # In float32: no later step would correct a sign that bfloat16 got wrong.
        gradient, _ = input_gradient(network, (x + noise).clamp(0, 1), y, torch.float32)
        return (x + noise + radius * gradient.sign()).clamp(0, 1)
