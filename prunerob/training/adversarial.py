"""Adversarial training: which examples a training step adds, and how much they count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from prunerob.attacks import Attack, NoAttack
from prunerob.networks.modes import evaluating
from prunerob.noise import half_normal, mix
from prunerob.training.objectives import ADVERSARIAL, CLEAN, CrossEntropy, Objective
from prunerob.training.teacher import Teacher


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
            start of the run; 0 for none. Fine-tuning has a ramp of its own.
        objective: what is minimised: `CrossEntropy`, `TRADES` or `MART` of
            `prunerob.training.objectives`, or one of your own.
        weight_perturbation: adversarial weight perturbation (AWP; Wu et al., arXiv:2004.05884):
            how far the weights of each layer are moved up the loss in every step, as a share of
            their norm; 0.005 to 0.01 in the paper, 0 for none.
        weight_perturbation_warmup: epochs of each phase before it begins.
    """

    attack: Attack = field(default_factory=NoAttack)
    weight: float = 0.5
    eps_distribution: Literal["fixed", "half_normal"] = "fixed"
    batch_norm: Literal["joint", "separate"] = "joint"
    ramp_epochs: float = 0.0
    objective: Objective = field(default_factory=CrossEntropy)
    weight_perturbation: float = 0.0
    weight_perturbation_warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"adversarial_training.weight: {self.weight} lies outside [0, 1]")
        for name in ("ramp_epochs", "weight_perturbation", "weight_perturbation_warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"adversarial_training.{name}: {getattr(self, name)} is below 0")
        if self.attack.radius is None and (self.eps_distribution != "fixed" or self.ramp_epochs):
            raise ValueError("adversarial_training: this attack has no eps to draw or to ramp")
        check_objective(self, "adversarial_training")

    @property
    def adversarial_weight(self) -> float:
        """Weight of the adversarial examples in the loss: 0 where there is no attack."""
        return self.weight if self.attack.perturbs else 0.0

    @property
    def asks(self) -> tuple[str, ...]:
        """On which images a step asks the network: "adversarial", "clean", or both."""
        return self.objective.needs(self.adversarial_weight)

    def is_joint(self, network: nn.Module) -> bool:
        """Whether clean and adversarial examples are to be one batch: only BatchNorm would see."""
        norms = (nn.modules.batchnorm._BatchNorm,)
        return self.batch_norm == "joint" and any(isinstance(m, norms) for m in network.modules())

    def doubles_batches(self, network: nn.Module) -> bool:
        """Whether a forward pass in training takes clean and adversarial images together."""
        return len(self.asks) > 1 and self.is_joint(network)

    def ramp(self, epochs: float) -> float:
        """Share of eps that is reached, in [0, 1], after some epochs of the phase."""
        return min(1.0, epochs / self.ramp_epochs) if self.ramp_epochs else 1.0

    def perturbs_weights(self, epochs: float) -> bool:
        """Whether weights are perturbed, too, after some epochs of the phase."""
        return self.weight_perturbation > 0 and epochs >= self.weight_perturbation_warmup

    def perturb(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        key: Tensor,
        ramp: float = 1.0,
        teacher: Teacher | None = None,
    ) -> Tensor:
        """Perturb a training batch.

        Args:
            network: the network in training; left as it was found.
            x: images, float32, (B, C, H, W), pixels in [0, 1].
            y: labels, int64, (B,).
            key: int64, (B,), of each image in this epoch.
            ramp: share of eps that has been reached, in [0, 1].
            teacher: the network before pruning, if the objective needs it.

        Returns:
            adversarial examples, float32, (B, C, H, W); the images themselves where those alone
            count.
        """
        if ADVERSARIAL not in self.asks:
            return x
        # Without mixed precision, which would keep casts of weights that no gradient flows through.
        with (
            torch.no_grad(),
            evaluating(network),
            torch.autocast(x.device.type, enabled=False),
        ):
            targets = self.objective.targets(network, x, y, teacher)
        return self.attack(network, x, targets, eps=self._radius(key, ramp), key=key)

    def loss(
        self,
        network: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        teacher: Teacher | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on adversarial and clean images.

        Args:
            network: the network in training.
            x: images, float32, (B, C, H, W), pixels in [0, 1].
            x_adv: adversarial examples of them.
            y: labels, int64, (B,).
            teacher: the network before pruning, if the objective needs it.

        Returns:
            the loss, and the accuracies in [0, 1] on those that count: "adversarial", "clean".
        """
        images = [{ADVERSARIAL: x_adv, CLEAN: x}[name] for name in self.asks]
        if self.is_joint(network):
            answers = list(network(torch.cat(images)).split(len(y)))
        else:
            # One forward for each half. Where there is no BatchNorm it comes to the same, 1.1 times
            # faster on CPUs, as the smaller activations stay in the cache.
            answers = [network(half) for half in images]
        logits = dict(zip(self.asks, answers, strict=True))
        taught = teacher(x) if teacher is not None else None
        loss = self.objective(logits, y, weight=self.adversarial_weight, taught=taught)
        accuracies = {n: (answer.argmax(1) == y).float().mean() for n, answer in logits.items()}
        return loss, accuracies

    def _radius(self, key: Tensor, ramp: float) -> Tensor | None:
        """Radius of each image's ball, float32, (B,); None leaves it to the attack."""
        if self.eps_distribution == "fixed" and ramp == 1:
            return None
        largest = (self.attack.radius or 0.0) * ramp
        if self.eps_distribution == "fixed":
            return torch.full(key.shape, largest, device=key.device)
        return largest / 2 * half_normal(mix(key, "eps"), cut=2.0)


def check_objective(training: AdversarialTraining, key: str) -> None:
    """See that an attack and an objective go together.

    Args:
        training: holds both.
        key: of the configuration, for errors.

    Raises:
        ValueError: they do not.
    """
    objective, attack = training.objective, training.attack
    name, attacker = type(objective).__name__, type(attack).__name__
    if ADVERSARIAL in objective.needs(1.0) and not objective.has_weight:
        if not attack.perturbs:
            raise ValueError(f"{key}.objective: {name} needs an attack that changes images")
        if training.weight != 0.5:
            raise ValueError(
                f"{key}.weight: {name} has settings of its own in its place; leave it out"
            )
    if objective.needs_probabilities and not attack.takes_probabilities:
        raise ValueError(
            f"{key}.attack: {name} moves away from probabilities, which {attacker} cannot "
            "with these settings; take PGD with a random start and without restarts"
        )
