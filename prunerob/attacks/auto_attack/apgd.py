"""Auto-PGD: projected gradient descent that chooses its own step sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
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
    slices,
)
from prunerob.attacks.pgd import logit_margin
from prunerob.attacks.smooth_relu import check_temperature, smooth_relus
from prunerob.errors import UserError
from prunerob.noise import mix, uniform

Loss = Literal["cross_entropy", "dlr", "targeted_dlr"]

CLASSES: dict[Loss, int] = {"cross_entropy": 2, "dlr": 3, "targeted_dlr": 4}
"""The fewest classes that each loss is defined for."""

TINY = 1e-12
"""In the denominators of the DLR losses, as their authors have it."""


@dataclass(frozen=True, kw_only=True)
class APGD(Hunt):
    """Auto-PGD (Croce and Hein, arXiv:2003.01690): steps along the sign of the gradient.

    The first step is twice eps, each goes on in part in the direction of the last, and at fixed
    checkpoints an image's step is halved, and its best point returned to, where its loss rose too
    seldom. It is over for an image as soon as the network is wrong about any iterate, the random
    start among them. Where none is, the example is the iterate with the highest loss.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255.
        images: number of test images to attack, a stratified draw; null for all.
        loss: what to climb on: "cross_entropy", "dlr" (the difference of logits ratio, which does
            not change with the logits' scale) or "targeted_dlr", once for each target.
        steps: number of gradient steps, 1 or more.
        restarts: number of tries from different random starts, 1 or more, for each target.
        targets: of "targeted_dlr": number of classes aimed at, one after the other, those next
            likeliest for the image first; at most all others.
        rho: share of the steps between two checkpoints in which the loss must rise, in (0, 1).
        relu_temperature: as in `PGD`, but in every step; AutoAttack's parts have 0, ReLU's own
            derivative.
    """

    loss: Loss = "cross_entropy"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    rho: float = 0.75
    relu_temperature: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in CLASSES:
            raise ValueError(f"loss of APGD: {self.loss!r} is none of {', '.join(CLASSES)}")
        check_counts(self, "steps", "restarts", "targets")
        if not 0 < self.rho < 1:
            raise ValueError(f"rho of APGD: {self.rho} is not between 0 and 1")
        check_temperature(self, self.relu_temperature)

    @property
    def gradient_steps(self) -> int:
        """Its steps."""
        return self.steps

    def hunt(self, survivors: Survivors) -> None:
        """Attack who is left; see `Hunt`."""
        if survivors.classes < CLASSES[self.loss]:
            raise UserError(
                f"loss of APGD: {self.loss} needs {CLASSES[self.loss]} classes or more, and the "
                f"network has {survivors.classes}; use cross_entropy"
            )
        survivors.begin()
        targeted = self.loss == "targeted_dlr"
        for rank in range(min(self.targets, survivors.classes - 1) if targeted else 1):
            for restart in range(self.restarts):
                self._climb(survivors, rank, restart)

    def _climb(self, survivors: Survivors, rank: int, restart: int) -> None:
        """One try of all who are left, side by side: at each step who is lost leaves."""
        left = torch.split(survivors.left(), survivors.batch_size)
        if not len(left[0]):
            return
        climbers = joined([self._start(survivors, part, rank, restart) for part in left])
        halvings = checkpoints(self.steps)
        for done in range(self.steps + 1):
            step = partial(self._step, survivors, done=done, interval=halvings.get(done))
            climbers = advanced(climbers, survivors.batch_size, step)
            if not len(climbers.y):
                return
        for part in slices(len(climbers.y), survivors.batch_size):
            rows = climbers.rows(part)
            survivors.keep(rows.index, rows.best, rows.best_loss)

    def _start(self, survivors: Survivors, index: Tensor, rank: int, restart: int) -> Climbers:
        """Random points on the ball's surface, and nothing known of them yet."""
        x, eps = survivors.x[index], survivors.eps[index]
        noise = 2 * uniform(mix(survivors.key[index], self.loss, rank, restart), x.shape[1:]) - 1
        noise /= per_image(noise.abs().flatten(1).amax(1).clamp_(min=TINY), x)
        low, high = survivors.box(index)
        start = survivors.flat.flatten(x + per_image(eps, x) * noise).clamp(low, high)
        y = survivors.y[index]
        targeted = self.loss == "targeted_dlr"
        return Climbers(
            index=index,
            y=y,
            target=survivors.others(index, rank + 1)[:, rank] if targeted else y,
            low=low,
            high=high,
            x=start,
            previous=start.clone(),
            best=start.clone(),
            gradient=torch.zeros_like(start),
            step=2 * eps,
            loss=torch.full_like(eps, -torch.inf),
            best_loss=torch.full_like(eps, -torch.inf),
            checked_loss=torch.full_like(eps, -torch.inf),
            rises=torch.zeros_like(eps),
            halved=torch.ones_like(eps, dtype=torch.bool),
        )

    def _step(
        self, survivors: Survivors, climbers: Climbers, done: int, interval: int | None
    ) -> Tensor:
        """Look at a batch's iterates and take the next step, in place.

        Args:
            survivors: all images.
            climbers: the batch's.
            done: number of steps taken so far.
            interval: steps since the last checkpoint, if this is one.

        Returns:
            bool, (B,): who is lost.
        """
        now = climbers
        loss, gradient, logits = self._look(survivors.flat, now, with_gradient=done < self.steps)
        lost = is_wrong(logits, now.y)
        found = lost.nonzero().squeeze(1)
        lost[found] = survivors.take(now.index[found], now.x[found])

        better = (loss > now.best_loss).nonzero().squeeze(1)
        now.best[better] = now.x[better]
        now.gradient[better] = gradient[better]
        now.best_loss[better] = loss[better]
        if done == 0:
            now.checked_loss.copy_(loss)
        else:
            now.rises += loss > now.loss
        now.loss.copy_(loss)
        if done == self.steps:
            return lost

        from_here = now.x
        if interval is not None:
            stale = ~now.halved & (now.best_loss <= now.checked_loss)
            now.halved.copy_((now.rises <= self.rho * interval) | stale)
            now.checked_loss.copy_(now.best_loss)
            now.rises.zero_()
            back = now.halved.nonzero().squeeze(1)
            now.step[back] /= 2
            from_here = now.x.clone()
            from_here[back] = now.best[back]
            gradient[back] = now.gradient[back]
        share = MOMENTUM if done else 1.0
        step = (from_here + now.step[:, None] * gradient.sign_()).clamp_(now.low, now.high)
        ahead = torch.lerp(from_here, step, share)
        ahead.add_(from_here - now.previous, alpha=1 - share).clamp_(now.low, now.high)
        now.previous.copy_(from_here)
        now.x.copy_(ahead)
        return lost

    def _look(
        self, network: Flat, climbers: Climbers, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its gradient (zeros if not asked for) and logits at a batch's iterates."""
        with torch.set_grad_enabled(with_gradient):
            x = climbers.x.detach().requires_grad_(with_gradient)
            with smooth_relus(self.relu_temperature):
                logits = network(x)
            loss = self._losses(logits, climbers)
        if not with_gradient:
            return loss, torch.zeros_like(x), logits
        return loss.detach(), torch.autograd.grad(loss.sum(), x)[0], logits.detach()

    def _losses(self, logits: Tensor, climbers: Climbers) -> Tensor:
        """What to climb on, float32, (B,)."""
        if self.loss == "cross_entropy":
            return F.cross_entropy(logits, climbers.y, reduction="none")
        if self.loss == "dlr":
            return dlr(logits, climbers.y)
        return targeted_dlr(logits, climbers.y, climbers.target)


MOMENTUM = 0.75
"""The new step's share of each step; the rest goes on in the direction of the last one."""


@dataclass
class Climbers(Tensors):
    """What Auto-PGD knows of each image on its way.

    Attributes:
        index: position among all images, int64, (B,).
        y: true label, int64, (B,).
        target: class aimed at, int64, (B,); without one, y.
        low: lowest pixels, float32, (B, P), flat.
        high: highest pixels.
        x: iterate.
        previous: iterate before it.
        best: iterate with the highest loss.
        gradient: the loss's, there.
        step: change of each pixel per step, float32, (B,).
        loss: at x.
        best_loss: at best.
        checked_loss: best_loss as of the last checkpoint.
        rises: how often the loss rose since then.
        halved: whether the step was halved then, bool, (B,).
    """

    index: Tensor
    y: Tensor
    target: Tensor
    low: Tensor
    high: Tensor
    x: Tensor
    previous: Tensor
    best: Tensor
    gradient: Tensor
    step: Tensor
    loss: Tensor
    best_loss: Tensor
    checked_loss: Tensor
    rises: Tensor
    halved: Tensor


def checkpoints(steps: int) -> dict[int, int]:
    """When steps may be halved: number of steps taken, to the number since the last time.

    After 22 of 100 steps first; then the intervals get shorter by 3, down to 6.

    Args:
        steps: number of steps in all.
    """
    interval, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found = {}
    done = interval
    while done <= steps:
        found[done] = interval
        interval = max(interval - shrink, least)
        done += interval
    return found


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: -(z_y - max of the others) / (z_pi1 - z_pi3).

    Args:
        logits: z, float, (B, 3 or more classes); z_pi1 is the largest, z_pi3 the third.
        y: true labels, int64, (B,).

    Returns:
        losses, float, (B,), above 0 where the answer is wrong.
    """
    first, _, third = logits.topk(3).values.unbind(1)
    return -logit_margin(logits, y) / (first - third + TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same towards a class: -(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2).

    Args:
        logits: z, float, (B, 4 or more classes).
        y: true labels, int64, (B,).
        target: classes t, int64, (B,).

    Returns:
        losses, float, (B,).
    """
    first, _, third, fourth = logits.topk(4).values.unbind(1)
    true, aim = (logits.gather(1, label[:, None]).squeeze(1) for label in (y, target))
    return -(true - aim) / (first - (third + fourth) / 2 + TINY)
