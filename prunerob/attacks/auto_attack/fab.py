"""FAB: the fast adaptive boundary attack, which looks for the nearest decision boundary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunerob.attacks.attack import per_image
from prunerob.attacks.auto_attack.survivors import (
    Flat,
    Hunt,
    Survivors,
    Tensors,
    advanced,
    check_counts,
    is_wrong,
    joined,
)
from prunerob.noise import mix, uniform

TINY = 1e-12
"""In denominators, for networks whose gradient vanishes."""


@dataclass(frozen=True, kw_only=True)
class FAB(Hunt):
    """Targeted FAB (Croce and Hein, arXiv:1907.02044): steps onto the linearised boundary.

    Each step goes to where the network, linearised at the iterate, takes image and target class
    for equally likely: from the iterate, and to a part from the image itself, which keeps it near.
    A misclassified iterate that is too far away is pulled back towards the image. It is over for an
    image as soon as one lies within eps; where none does, the example is the image.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255.
        images: number of test images to attack, a stratified draw; null for all.
        targets: number of classes aimed at, one after the other, those next likeliest for the
            image first; at most all others.
        steps: number of gradient steps, 1 or more.
        restarts: number of tries for each target, 1 or more: the first from the image, the others
            from random points half as far away as eps.
        alpha_max: largest part of a step that is taken from the image, in [0, 1].
        eta: how far to step, 1 for the linearised boundary itself.
        beta: what is left of a misclassified iterate's distance to the image, in (0, 1).
    """

    targets: int = 9
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "targets", "steps", "restarts")
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max of FAB: {self.alpha_max} lies outside [0, 1]")
        if self.eta < 1:
            raise ValueError(f"eta of FAB: {self.eta} is below 1")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta of FAB: {self.beta} is not between 0 and 1")

    @property
    def gradient_steps(self) -> int:
        """Its steps."""
        return self.steps

    def hunt(self, survivors: Survivors) -> None:
        """Attack who is left; see `Hunt`."""
        for rank in range(min(self.targets, survivors.classes - 1)):
            for restart in range(self.restarts):
                self._approach(survivors, rank, restart)

    def _approach(self, survivors: Survivors, rank: int, restart: int) -> None:
        """One try of all who are left, side by side: at each step who is lost leaves."""
        left = torch.split(survivors.left(), survivors.batch_size)
        if not len(left[0]):
            return
        walkers = joined([self._start(survivors, part, rank, restart) for part in left])
        for _ in range(self.steps):
            step = partial(self._step, survivors)
            walkers = advanced(walkers, survivors.batch_size, step)
            if not len(walkers.y):
                return

    def _start(self, survivors: Survivors, index: Tensor, rank: int, restart: int) -> Walkers:
        """The images; or, when they have been tried, random points around them."""
        x, eps = survivors.x[index], survivors.eps[index]
        start = x
        if restart:
            noise = 2 * uniform(mix(survivors.key[index], "FAB", rank, restart), x.shape[1:]) - 1
            noise /= per_image(noise.abs().flatten(1).amax(1).clamp_(min=TINY), x)
            start = (x + 0.5 * per_image(eps, x) * noise).clamp_(0, 1)
        low, high = survivors.box(index)
        return Walkers(
            index=index,
            y=survivors.y[index],
            target=survivors.others(index, rank + 1)[:, rank],
            eps=eps,
            low=low,
            high=high,
            image=survivors.flat.flatten(x),
            x=survivors.flat.flatten(start),
        )

    def _step(self, survivors: Survivors, walkers: Walkers) -> Tensor:
        """Take a batch's next step, in place.

        Args:
            survivors: all images.
            walkers: the batch's.

        Returns:
            bool, (B,): who is lost.
        """
        now = walkers
        lead, slope = _lead(survivors.flat, now)
        here, far_here = onto_plane(now.x, slope, lead)
        behind = torch.linalg.vecdot(slope, now.image - now.x)
        there, far_there = onto_plane(now.image, slope, lead + behind)
        share = (far_here / (far_here + far_there)).clamp_(max=self.alpha_max)[:, None]
        here.mul_(self.eta).add_(now.x)
        there.mul_(self.eta).add_(now.image)
        now.x.copy_(torch.lerp(here, there, share).clamp_(0, 1))
        return self._judge(survivors, now)

    @torch.no_grad()
    def _judge(self, survivors: Survivors, now: Walkers) -> Tensor:
        """Who is lost, bool, (B,); who is misclassified too far away is pulled back."""
        wrong = is_wrong(survivors.flat(now.x), now.y)
        offset = now.x - now.image
        near = offset.abs().amax(1) <= now.eps
        found = (wrong & near).nonzero().squeeze(1)
        # Rounding alone can have left a pixel outside of the box.
        examples = now.x[found].clamp(now.low[found], now.high[found])
        lost = torch.zeros_like(wrong)
        lost[found] = survivors.take(now.index[found], examples)
        back = (wrong & ~lost).nonzero().squeeze(1)
        now.x[back] = now.image[back] + self.beta * offset[back]
        return lost


@dataclass
class Walkers(Tensors):
    """What FAB knows of each image on its way.

    Attributes:
        index: position among all images, int64, (B,).
        y: true label, int64, (B,).
        target: class aimed at, int64, (B,).
        eps: radius of the ball, float32, (B,).
        low: lowest pixels of an example, float32, (B, P), flat.
        high: highest pixels.
        image: the image.
        x: iterate, in [0, 1].
    """

    index: Tensor
    y: Tensor
    target: Tensor
    eps: Tensor
    low: Tensor
    high: Tensor
    image: Tensor
    x: Tensor


def _lead(network: Flat, walkers: Walkers) -> tuple[Tensor, Tensor]:
    """The target's logit minus the true one's, float32, (B,), and its gradient, (B, P)."""
    x = walkers.x.detach().requires_grad_()
    logits = network(x)
    aim, true = (logits.gather(1, label[:, None]) for label in (walkers.target, walkers.y))
    lead = (aim - true).squeeze(1)
    return lead.detach(), torch.autograd.grad(lead.sum(), x)[0]


def onto_plane(point: Tensor, slope: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest step, by its largest pixel, to where a linear function is 0, inside of [0, 1].

    All pixels go by the same amount towards the plane, but for those that reach 0 or 1 before. So
    the amount is where a concave, piecewise linear function of it has a value; Newton's method
    gets there from below in a few rounds, exactly, without sorting the pixels.

    Args:
        point: float32, (B, P), in [0, 1].
        slope: of the linear function, float32, (B, P).
        value: the function's at the point, float32, (B,).

    Returns:
        the step, float32, (B, P): to the corner of [0, 1] nearest to the plane if that lies
        outside; and its largest pixel, float32, (B,), at least 1e-8.
    """
    # Signs and absolute values in place of conditions: those are many times slower on a CPU.
    towards = slope.sign() * -value.sign()[:, None]
    room = ((1 + towards) / 2 - point).abs_().mul_(towards.abs())
    steep, needed = slope.abs(), value.abs()
    amount = needed / (steep.sum(1) + TINY)
    for _ in range(ROUNDS):
        missing = needed - torch.linalg.vecdot(steep, room.minimum(amount[:, None]))
        free = (room - amount[:, None]).sign_().clamp_(min=0)
        reach = torch.linalg.vecdot(steep, free)
        new = torch.where(reach > 0, amount + missing / (reach + TINY), 1)
        new = new.clamp_(max=1).maximum(amount)
        settled = bool((new <= amount * (1 + 1e-6)).all())
        amount = new
        if settled:
            break
    step = room.minimum(amount[:, None])
    length = step.amax(1).clamp_(min=1e-8)
    return step.mul_(towards), length


ROUNDS = 100
"""Of Newton's method, at most; a handful do, for each passes pixels that are full."""
