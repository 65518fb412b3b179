"""The fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunerob.attacks.attack import Attack
from prunerob.attacks.pgd import climb
from prunerob.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """The fast gradient sign method (Goodfellow et al., arXiv:1412.6572): one step to the edge.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255.
        label: the label to move away from: the "true" one, or the one the network "predicted",
            which keeps training from leaking the true label into the perturbation (Kurakin et
            al., arXiv:1611.01236).
    """

    eps: Pixels = Pixels(0.3)
    label: Literal["true", "predicted"] = "true"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Pixels(self.eps))

    @property
    def gradient_steps(self) -> int:
        """One."""
        return 1

    @property
    def is_projected(self) -> bool:
        """Yes: the gradient does not depend on the radius. Of a subclass nobody knows."""
        return type(self) is FGSM

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Perturb images; see `Attack.__call__`."""
        radius = self.eps if eps is None else eps
        if self.label == "predicted":
            with torch.no_grad():
                y = network(x).argmax(1)
        # In float32: no later step would correct a sign that bfloat16 got wrong.
        return climb(network, x, y, x, radius, radius, 1, torch.float32)[0]
