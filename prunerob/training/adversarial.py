"""Adversarial training: which examples a training step adds, and how much they count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.attacks import Attack, NoAttack
from prunerob.noise import half_normal, mix


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """Adversarial training: an attack, its radius per image, and the mix with clean images.

    Args:
        attack: what perturbs each training batch; NoAttack trains on clean images.
        weight: weight of the adversarial examples in the loss, in [0, 1]; the clean images have
            the rest. 0.5 is the mean over clean and adversarial images together, 1 trains on
            adversarial examples alone.
        eps_distribution: "fixed" takes the attack's own eps; "half_normal" draws one for each
            image from a Gaussian truncated to [0, eps] with standard deviation eps/2, as the
            paper's FGSM training does (Kurakin et al., arXiv:1611.01236).
        batch_norm: how clean and adversarial examples meet BatchNorm: "joint" normalises both by
            the statistics of one batch that holds both, as in the paper's "feed both clean and
            perturbed data"; "separate" each half by its own, one after the other. Networks without
            BatchNorm do not see the difference.
        ramp_epochs: epochs over which eps (and with it the step) grows linearly from 0, from the
            start of the run; 0 for none.
    """

    attack: Attack = field(default_factory=NoAttack)
    weight: float = 0.5
    eps_distribution: Literal["fixed", "half_normal"] = "fixed"
    batch_norm: Literal["joint", "separate"] = "joint"
    ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"adversarial_training.weight: {self.weight} lies outside [0, 1]")
        if self.ramp_epochs < 0:
            raise ValueError(f"adversarial_training.ramp_epochs: {self.ramp_epochs} is below 0")
        if self.attack.radius is None and (self.eps_distribution != "fixed" or self.ramp_epochs):
            raise ValueError("adversarial_training: this attack has no eps to draw or to ramp")

    @property
    def adversarial_weight(self) -> float:
        """Weight of the adversarial examples in the loss: 0 where there is no attack."""
        return self.weight if self.attack.perturbs else 0.0

    def is_joint(self, network: nn.Module) -> bool:
        """Whether clean and adversarial examples are to be one batch: only BatchNorm would see."""
        norms = (nn.modules.batchnorm._BatchNorm,)
        return self.batch_norm == "joint" and any(isinstance(m, norms) for m in network.modules())

    def doubles_batches(self, network: nn.Module) -> bool:
        """Whether a forward pass in training takes clean and adversarial images together."""
        return 0 < self.adversarial_weight < 1 and self.is_joint(network)

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, *, key: Tensor, epochs: float
    ) -> Tensor:
        """Perturb a training batch.

        Args:
            network: the network in training; left as it was found.
            x: images, float32, (B, C, H, W), pixels in [0, 1].
            y: labels, int64, (B,).
            key: int64, (B,), of each image in this epoch.
            epochs: epochs since the start of the run, with their fraction.

        Returns:
            adversarial examples, float32, (B, C, H, W); the images themselves where those alone
            count.
        """
        if self.adversarial_weight == 0:
            return x
        return self.attack(network, x, y, eps=self._radius(key, epochs), key=key)

    def loss(
        self, network: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of adversarial and clean images, by their weights.

        Args:
            network: the network in training.
            x: images, float32, (B, C, H, W), pixels in [0, 1].
            x_adv: adversarial examples of them.
            y: labels, int64, (B,).

        Returns:
            the loss, and the accuracies in [0, 1] on those that count: "adversarial", "clean".
        """
        weight = self.adversarial_weight
        parts = [("adversarial", weight, x_adv), ("clean", 1 - weight, x)]
        parts = [part for part in parts if part[1] > 0]
        images = [part[2] for part in parts]
        if self.is_joint(network):
            answers = list(network(torch.cat(images)).split(len(y)))
        else:
            # One forward for each half. Where there is no BatchNorm it comes to the same, 1.1 times
            # faster on CPUs, as the smaller activations stay in the cache.
            answers = [network(half) for half in images]
        loss, accuracies = torch.zeros((), device=x.device), {}
        for (name, share, _), logits in zip(parts, answers, strict=True):
            loss = loss + share * F.cross_entropy(logits, y)
            accuracies[name] = (logits.argmax(1) == y).float().mean()
        return loss, accuracies

    def _radius(self, key: Tensor, epochs: float) -> Tensor | None:
        """Radius of each image's ball, float32, (B,); None leaves it to the attack."""
        ramp = min(1.0, epochs / self.ramp_epochs) if self.ramp_epochs else 1.0
        if self.eps_distribution == "fixed" and ramp == 1:
            return None
        largest = (self.attack.radius or 0.0) * ramp
        if self.eps_distribution == "fixed":
            return torch.full(key.shape, largest, device=key.device)
        return largest / 2 * half_normal(mix(key, "eps"), cut=2.0)
