"""Papernot's black-box attack: learn a substitute from labels alone, then attack that."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.attacks.attack import Attack
from prunerob.attacks.fgsm import FGSM
from prunerob.errors import UserError
from prunerob.networks.modes import evaluating
from prunerob.pixels import Pixels

Labelled = tuple[Tensor, Tensor, Tensor]
"""Images, float32, (B, C, H, W), their labels and their positions in the data set, int64, (B,)."""


@dataclass(frozen=True, kw_only=True)
class BlackBox(Attack):
    """The substitute attack (Papernot et al., arXiv:1602.02697): no gradient of the network.

    The attacker has a few images and may ask the network, the oracle, for labels. It trains a
    substitute on them, moves each point by `augmentation_step` along the sign of the substitute's
    gradient of the logit of its label, asks for the labels of the new points, trains on all, and so
    on. FGSM examples of the substitute are then shown to the network. The images that the attacker
    holds are not attacked, so its row counts on the others.

    The paper on pruned networks gives no settings. The defaults are those of cleverhans' tutorial
    `mnist_blackbox`, but for two: that tutorial labels FGSM's examples with the substitute's own
    predictions and turns the sign of the augmentation around halfway.

    Args:
        eps: radius of FGSM's L-infinity ball, in pixel units of [0, 1].
        label: the label FGSM moves away from: the "true" one, or the one the substitute
            "predicted".
        images: number of test images the attacker holds: of MNIST and CIFAR-10 the first ones, of
            other data a draw stratified by class.
        rounds: trainings of the substitute; the points double between two of them.
        augmentation_step: change of each pixel from a point to the new one made from it, in units
            of [0, 1]; the sum is not clipped, as in the tutorial.
        turn_after: augmentations after which augmentation_step changes its sign, and again after
            as many more; 0 for never, 3 for the tutorial's +, +, +, -, -.
        hidden: units of the substitute's two hidden layers; it is a perceptron with ReLU.
        epochs: epochs of each training of the substitute.
        batch_size: of its training.
        learning_rate: of its training, by Adam, begun anew in each round.
        seed: of the substitute's first weights and of the order of its training: attacks that
            differ in nothing else show how much the accuracy hangs on the substitute.
    """

    eps: Pixels = Pixels(0.3)
    label: Literal["true", "predicted"] = "true"
    images: int = 150
    rounds: int = 6
    augmentation_step: float = 0.1
    turn_after: int = 0
    hidden: int = 200
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Pixels(self.eps))
        for name in ("images", "rounds", "hidden", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of BlackBox: {getattr(self, name)} is below 1")
        if self.turn_after < 0:
            raise ValueError(f"turn_after of BlackBox: {self.turn_after} is below 0")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate of BlackBox: {self.learning_rate} is not above 0")

    @property
    def learns(self) -> bool:
        """True: it learns a substitute first."""
        return True

    def prepare(self, network: nn.Module, batches: Iterable[Labelled]) -> Transfer:
        """Learn a substitute for a network.

        It learns on the CPU in float32, whatever device the network is on, from a generator of its
        own: with the same labels it is the same one everywhere.

        Args:
            network: the oracle, asked for labels alone; left exactly as it was found.
            batches: all test images; the attacker takes the first of them, the others measure the
                substitute.

        Returns:
            the attack that the network is then put to.

        Raises:
            UserError: there are not more images than the attacker takes.
        """
        with evaluating(network), torch.inference_mode(False), torch.enable_grad():
            oracle = _Oracle(network)
            x, held = _first(self.images, batches)
            substitute = self._learn(oracle, x.cpu()).to(x.device)
            accuracy, agreement = _compare(substitute, oracle, batches, held)
        return Transfer(
            eps=self.eps,
            label=self.label,
            substitute=substitute,
            held=held,
            accuracy=accuracy,
            agreement=agreement,
            queries=self.images * 2 ** (self.rounds - 1),
        )

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Refuse: without a substitute there is nothing to attack with."""
        raise UserError("BlackBox learns a substitute before a test: it belongs to model.attacks")

    def _learn(self, oracle: _Oracle, x: Tensor) -> nn.Module:
        """Train the substitute: in each round on all points so far, then make as many new ones."""
        generator = torch.Generator().manual_seed(self.seed)
        y = oracle.label(x)
        substitute = self._new_substitute(x[0].numel(), oracle.classes, generator)
        for augmentations in range(self.rounds):
            self._train(substitute, x, y, generator)
            if augmentations + 1 < self.rounds:
                new = x + self._signed_step(augmentations) * _slope(substitute, x, y).sign()
                x, y = torch.cat([x, new]), torch.cat([y, oracle.label(new)])
        return substitute.requires_grad_(False).eval()

    def _new_substitute(self, pixels: int, classes: int, generator: torch.Generator) -> nn.Module:
        """A perceptron with PyTorch's initial weights, drawn from a generator."""
        layers: list[nn.Module] = [nn.Flatten()]
        widths = (pixels, self.hidden, self.hidden, classes)
        for inputs, outputs in pairwise(widths):
            with torch.random.fork_rng(devices=()):  # what is drawn here is not used
                layer = nn.Linear(inputs, outputs)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def _train(
        self, substitute: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> None:
        optimizer = torch.optim.Adam(substitute.parameters(), self.learning_rate)
        for _ in range(self.epochs):
            for part in torch.split(torch.randperm(len(x), generator=generator), self.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(substitute(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def _signed_step(self, augmentations: int) -> float:
        """The step of the next augmentation after some."""
        turned = self.turn_after and augmentations // self.turn_after % 2
        return -self.augmentation_step if turned else self.augmentation_step


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer(Attack):
    """FGSM examples of a substitute, shown to the network: what `BlackBox` prepares.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1].
        label: that FGSM moves away from.
        substitute: from pixels to logits.
        held: positions of the images that the attacker holds, int64, (n,).
        accuracy: the substitute's, on the images that the attacker does not hold, in [0, 1].
        agreement: share of those that it classifies as the network does, in [0, 1].
        queries: labels that the network was asked for.
    """

    eps: Pixels
    label: Literal["true", "predicted"]
    substitute: nn.Module
    held: Tensor
    accuracy: float
    agreement: float
    queries: int

    @property
    def learned(self) -> dict[str, float]:
        """What is to be reported about the substitute."""
        return {
            "substitute accuracy": self.accuracy,
            "substitute agreement": self.agreement,
            "queries": self.queries,
        }

    @torch.inference_mode(False)
    def to(self, device: torch.device) -> Transfer:
        """The same with its substitute on a device."""
        substitute = copy.deepcopy(self.substitute).to(device)
        return replace(self, substitute=substitute, held=self.held.to(device))

    def leaves_out(self, index: Tensor) -> Tensor:
        """The attacker's own images, bool, (B,)."""
        return torch.isin(index, self.held)

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Perturb images; see `Attack.__call__`."""
        return FGSM(eps=self.eps, label=self.label).perturb(self.substitute, x, y, eps, key)


class _Oracle:
    """A network of which one learns labels only."""

    CHUNK = 250

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._device = next(network.parameters()).device
        self.classes = 0

    @torch.no_grad()
    def label(self, x: Tensor) -> Tensor:
        """Label images, float32, (N, C, H, W), on any device: int64, (N,), on the same."""
        labels = []
        for part in torch.split(x, self.CHUNK):
            logits = self._network(part.to(self._device))
            self.classes = logits.shape[1]
            labels.append(logits.argmax(1).to(x.device))
        return torch.cat(labels)


def _first(images: int, batches: Iterable[Labelled]) -> tuple[Tensor, Tensor]:
    """The first images and their positions, of more than as many."""
    parts: list[Labelled] = []
    for batch in batches:
        parts.append(batch)
        if sum(len(index) for _, _, index in parts) > images:
            x, _, index = (torch.cat(column)[:images] for column in zip(*parts, strict=True))
            return x, index
    raise UserError(
        f"images of BlackBox: the attacker takes {images}, and there are no more to test on; set "
        "its images, or raise data.test_size"
    )


def _slope(substitute: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the logit of each image's label with respect to its pixels, (N, C, H, W)."""
    x = x.detach().requires_grad_()
    logits = substitute(x).gather(1, y[:, None])
    return torch.autograd.grad(logits.sum(), x)[0]


@torch.no_grad()
def _compare(
    substitute: nn.Module, oracle: _Oracle, batches: Iterable[Labelled], held: Tensor
) -> tuple[float, float]:
    """Accuracy of a substitute and its agreement with the oracle, where no image is held."""
    right = agreed = total = 0
    for x, y, index in batches:
        free = ~torch.isin(index, held)
        if not free.any():
            continue
        predicted = substitute(x[free]).argmax(1)
        right += int((predicted == y[free]).sum())
        agreed += int((predicted == oracle.label(x[free])).sum())
        total += int(free.sum())
    return right / total, agreed / total
