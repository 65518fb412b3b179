"""Objectives: what a training step minimises, from the answers on clean and adversarial images.

An objective also says what the attack of training moves away from: the labels, or probabilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.training.teacher import Teacher

CLEAN, ADVERSARIAL = "clean", "adversarial"


@dataclass(frozen=True)
class Objective(ABC):
    """A loss of a batch, and what its adversarial examples are made against."""

    needs_teacher: ClassVar[bool] = False
    """Whether the network as it was before pruning teaches: then it is one of fine-tuning."""
    has_weight: ClassVar[bool] = False
    """Whether `adversarial_training.weight` mixes clean and adversarial images in it."""

    @property
    def needs_probabilities(self) -> bool:
        """Whether the attack moves away from probabilities, which not every attack can."""
        return False

    def needs(self, weight: float) -> tuple[str, ...]:
        """On which images it asks the network, in order: "adversarial", "clean", or both.

        Args:
            weight: of the adversarial examples, in [0, 1].
        """
        return (ADVERSARIAL, CLEAN)

    def targets(self, network: nn.Module, x: Tensor, y: Tensor, teacher: Teacher | None) -> Tensor:
        """What the attack moves away from.

        Args:
            network: in evaluation mode, without autograd.
            x: images, float32, (B, C, H, W), pixels in [0, 1].
            y: labels, int64, (B,).
            teacher: the network before pruning, if this objective needs it.

        Returns:
            labels, int64, (B,), or probabilities, float32, (B, classes).
        """
        return y

    @abstractmethod
    def __call__(
        self, logits: Mapping[str, Tensor], y: Tensor, *, weight: float, taught: Tensor | None
    ) -> Tensor:
        """The loss.

        Args:
            logits: (B, classes), on the images that it `needs`, by name.
            y: labels, int64, (B,).
            weight: of the adversarial examples, in [0, 1]; of those that have one.
            taught: the teacher's logits on clean images, (B, classes), if it needs them.

        Returns:
            a number, the mean over the batch.
        """


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy, mixed: weight * adversarial + (1 - weight) * clean (Kurakin et al.)."""

    has_weight = True

    def needs(self, weight: float) -> tuple[str, ...]:
        """Those whose weight is not 0."""
        return tuple(n for n, w in ((ADVERSARIAL, weight), (CLEAN, 1 - weight)) if w > 0)

    def __call__(
        self, logits: Mapping[str, Tensor], y: Tensor, *, weight: float, taught: Tensor | None
    ) -> Tensor:
        """The loss; see `Objective.__call__`."""
        weights = {ADVERSARIAL: weight, CLEAN: 1 - weight}
        loss = torch.zeros((), device=y.device)
        for name, answers in logits.items():
            loss = loss + weights[name] * F.cross_entropy(answers, y)
        return loss


@dataclass(frozen=True, kw_only=True)
class TRADES(Objective):
    """TRADES (Zhang et al., arXiv:1901.08573): CE(f(x), y) + beta * KL(f(x) ‖ f(x')).

    The attack maximises the divergence, which is flat at the image: give it a random start, as
    `PGD(start_std=0.001)`, the paper's.

    Args:
        beta: weight of the divergence, 0 or more: 6 on CIFAR-10, 1 on MNIST in the paper.
        attacked: what the attack moves away from: "probabilities", the network's own on clean
            images, as in the paper, or "labels". The divergence grows, too, where an image's
            own class becomes more probable, so that an attack on it is the weaker one.
    """

    beta: float = 6.0
    attacked: Literal["probabilities", "labels"] = "probabilities"

    def __post_init__(self) -> None:
        _check("beta of TRADES", self.beta)

    @property
    def needs_probabilities(self) -> bool:
        """Unless it is the labels that are attacked."""
        return self.attacked == "probabilities"

    def targets(self, network: nn.Module, x: Tensor, y: Tensor, teacher: Teacher | None) -> Tensor:
        """The network's own probabilities on clean images, or the labels."""
        return _probabilities(network, x) if self.needs_probabilities else y

    def __call__(
        self, logits: Mapping[str, Tensor], y: Tensor, *, weight: float, taught: Tensor | None
    ) -> Tensor:
        """The loss; see `Objective.__call__`."""
        clean, adversarial = logits[CLEAN], logits[ADVERSARIAL]
        return F.cross_entropy(clean, y) + self.beta * divergence(clean, adversarial).mean()


@dataclass(frozen=True, kw_only=True)
class MART(Objective):
    """MART (Wang et al., ICLR 2020): misclassified images count more.

    BCE(f(x'), y) + beta * mean of KL(f(x) ‖ f(x')) * (1 - p_y(x)), where BCE = CE(f(x'), y) -
    log(1.0001 - max p_j(x') over the other classes j). It is known to gain under PGD and to lose
    under AutoAttack: judge it by the latter.

    Args:
        beta: weight of the divergence, 0 or more: 5 in the paper.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        _check("beta of MART", self.beta)

    def __call__(
        self, logits: Mapping[str, Tensor], y: Tensor, *, weight: float, taught: Tensor | None
    ) -> Tensor:
        """The loss; see `Objective.__call__`."""
        clean, adversarial = logits[CLEAN], logits[ADVERSARIAL]
        probabilities = adversarial.float().softmax(1)
        other = probabilities.scatter(1, y[:, None], 0).amax(1)
        boosted = F.cross_entropy(adversarial, y) - (1.0001 - other).log().mean()
        right = clean.float().softmax(1).gather(1, y[:, None]).squeeze(1)
        return boosted + self.beta * (divergence(clean, adversarial) * (1 - right)).mean()


@dataclass(frozen=True, kw_only=True)
class ARD(Objective):
    """Adversarially robust distillation (Goldblum et al., arXiv:1905.09747).

    alpha * t^2 * KL(T(x) ‖ S(x')) + (1 - alpha) * CE(S(x), y), the first at temperature t. The
    teacher T is the network before pruning, so that it is an objective of fine-tuning.

    Args:
        alpha: weight of the teacher, in [0, 1].
        temperature: above 0.
    """

    alpha: float = 1.0
    temperature: float = 1.0
    needs_teacher = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha of ARD: {self.alpha} lies outside [0, 1]")
        if not self.temperature > 0:
            raise ValueError(f"temperature of ARD: {self.temperature} is not above 0")

    def needs(self, weight: float) -> tuple[str, ...]:
        """Clean images only where the labels count."""
        return (ADVERSARIAL, CLEAN) if self.alpha < 1 else (ADVERSARIAL,)

    def __call__(
        self, logits: Mapping[str, Tensor], y: Tensor, *, weight: float, taught: Tensor | None
    ) -> Tensor:
        """The loss; see `Objective.__call__`."""
        assert taught is not None
        t = self.temperature
        loss = self.alpha * t**2 * divergence(taught / t, logits[ADVERSARIAL] / t).mean()
        if CLEAN in logits:
            loss = loss + (1 - self.alpha) * F.cross_entropy(logits[CLEAN], y)
        return loss


@dataclass(frozen=True, kw_only=True)
class RSLAD(Objective):
    """Robust soft-label distillation (Zi et al., arXiv:2108.07969).

    share * KL(T(x) ‖ S(x')) + (1 - share) * KL(T(x) ‖ S(x)), where x' maximises the first. The
    teacher T is the network before pruning, so that it is an objective of fine-tuning.

    Args:
        share: of the adversarial part, in [0, 1]: 5/6 in the paper.
    """

    share: float = 5 / 6
    needs_teacher = True

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share of RSLAD: {self.share} lies outside [0, 1]")

    @property
    def needs_probabilities(self) -> bool:
        """Those of the teacher."""
        return True

    def targets(self, network: nn.Module, x: Tensor, y: Tensor, teacher: Teacher | None) -> Tensor:
        """The teacher's probabilities on clean images."""
        assert teacher is not None
        return _probabilities(teacher, x)

    def __call__(
        self, logits: Mapping[str, Tensor], y: Tensor, *, weight: float, taught: Tensor | None
    ) -> Tensor:
        """The loss; see `Objective.__call__`."""
        assert taught is not None
        parts = {ADVERSARIAL: self.share, CLEAN: 1 - self.share}
        loss = torch.zeros((), device=y.device)
        for name, share in parts.items():
            loss = loss + share * divergence(taught, logits[name]).mean()
        return loss


def divergence(of: Tensor, to: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p ‖ q) of the probabilities that two networks give.

    Args:
        of: logits of p, (B, classes).
        to: logits of q, (B, classes).

    Returns:
        float32, (B,), 0 or more.
    """
    p, q = of.float().log_softmax(1), to.float().log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def _probabilities(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return network(x).float().softmax(1)


def _check(name: str, weight: float) -> None:
    if not weight >= 0:
        raise ValueError(f"{name}: {weight} is below 0")
