"""An attack of one's own: the best of several random signs, which needs no gradient."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunerob
from prunerob.attacks import Attack
from prunerob.attacks.attack import per_image
from prunerob.data import MNIST
from prunerob.noise import uniform
from prunerob.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class RandomSigns(Attack):
    """Tries corners of the ball and keeps, of each image, the one with the largest loss."""

    eps: Pixels
    tries: int = 10

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Perturb images, float32, (B, C, H, W)."""
        radius = per_image(self.eps if eps is None else eps, x)
        best, worst = x, x.new_zeros(len(x))
        for attempt in range(self.tries):
            signs = (uniform(key + attempt, x.shape[1:]) - 0.5).sign()
            x_adv = (x + radius * signs).clamp(0, 1)
            loss = F.cross_entropy(network(x_adv), y, reduction="none")
            best, worst = torch.where(per_image(loss > worst, x), x_adv, best), worst.maximum(loss)
        return best


x, y, _ = MNIST().test_sample(100)
print(prunerob.evaluate(prunerob.load("zoo/mnist_pgd_dense"), x, y, RandomSigns(eps=Pixels(0.1))))
