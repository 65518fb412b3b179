"""Projected gradient descent in the L-infinity ball, and the loop that FGSM shares with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from prunerob.attacks.attack import (
    SMALLEST_BFLOAT16_STEP,
    Attack,
    has_bfloat16,
    input_gradient,
    misclassified,
    per_image,
)
from prunerob.attacks.smooth_relu import check_temperature, smooth_relus
from prunerob.networks.rewrite import rewrite
from prunerob.noise import mix, normal, uniform
from prunerob.pixels import Pixels

STEPS_BETWEEN_CHECKS = 10
"""Of a search, for who is lost already: often enough to save work, too seldom to cost any."""


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent on the cross-entropy (Madry et al., arXiv:1706.06083).

    Starts at a random point of the ball, takes `steps` steps of `step_size` along the sign of the
    gradient, and after each goes back to the nearest point that lies in the ball and in [0, 1].

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255.
        step_size: change of each pixel per step, in the same units, above 0.
        steps: number of gradient steps, 1 or more.
        random_start: start at a point drawn uniformly from the ball; otherwise at the image.
        start_std: standard deviation of a normal start around the image, in the same units, in
            place of the uniform one: 0.001 in TRADES' training; 0 for uniform.
        restarts: number of tries from different random starts, 1 or more; of an image's tries,
            the one whose last iterate has the smallest margin (true logit minus the largest other)
            is returned. Images that the network already gets wrong are not tried again.
        precision: of the gradient's computation; the iterate is always float32. "auto" takes
            bfloat16 on hardware that has it where every image's step is step_size and that is
            2/255 or more; "bfloat16" insists, and is refused for smaller steps.
        relu_temperature: follow a gradient in which the derivative of ReLU at z is
            sigmoid(z / relu_temperature), so that units that are off, behind which networks hide
            gradients, pass some on (Athalye et al., arXiv:1802.00420): 0.1, say. 0 for none.
        relu_own_every: with a relu_temperature, the first of so many steps, and of each so many
            after it, follows ReLU's own derivative all the same: 2 for every other step, 5 for one
            of five, 1 or more.
        relu_share: share of the images that relu_temperature is for, in [0, 1], drawn by their
            keys; the others follow ReLU's own derivative in every step. 0.5 in training: a network
            that is attacked in one way alone learns to hide from it.
    """

    eps: Pixels = Pixels(0.3)
    step_size: Pixels = Pixels(0.01)
    steps: int = 40
    random_start: bool = True
    start_std: Pixels = Pixels(0)
    restarts: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    relu_temperature: float = 0.0
    relu_own_every: int = 2
    relu_share: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Pixels(self.eps))
        object.__setattr__(self, "step_size", Pixels(self.step_size))
        object.__setattr__(self, "start_std", Pixels(self.start_std))
        for name in ("steps", "restarts", "relu_own_every"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name} of PGD: {number} is below 1")
        if not self.step_size:
            raise ValueError("step_size of PGD: steps of 0 lead nowhere; set it above 0")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts of PGD: {self.restarts} without random_start are all equal")
        if self.start_std and not self.random_start:
            raise ValueError(f"start_std of PGD: {self.start_std} without random_start")
        check_temperature(self, self.relu_temperature)
        if not 0 <= self.relu_share <= 1:
            raise ValueError(f"relu_share of PGD: {self.relu_share} lies outside [0, 1]")
        if self.precision == "bfloat16" and self.step_size < SMALLEST_BFLOAT16_STEP:
            raise ValueError(f"precision of PGD: steps of {self.step_size} vanish in bfloat16")

    @property
    def gradient_steps(self) -> int:
        """Its steps."""
        return self.steps

    @property
    def takes_probabilities(self) -> bool:
        """Without restarts, which compare margins, and from a random start.

        At the image itself the divergence from the network's own probabilities is flat.
        """
        return self.restarts == 1 and self.random_start

    def harder(self, factor: int) -> Mapping[str, Attack]:
        """More steps, and more restarts; see `Attack.harder`."""
        return {
            "steps": replace(self, steps=factor * self.steps),
            "restarts": replace(self, restarts=factor * self.restarts, random_start=True),
        }

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Perturb images; see `Attack.__call__`."""
        if self._is_mixed:
            x_adv = torch.empty_like(x)
            for images, attack in self._shares(key):
                radii = None if eps is None else eps[images]
                part = x[images], y[images], radii, key[images]
                x_adv[images] = attack.perturb(network, *part)
            return x_adv
        radius: float | Tensor = self.eps
        step_size: float | Tensor = self.step_size
        if eps is not None:
            radius, step_size = eps, eps * (self.step_size / self.eps if self.eps else 0.0)
        dtype = self._gradient_dtype(x.device, scaled=eps is not None)

        def attempt(restart: int, images: Tensor | slice) -> Tensor:
            r, s = (v[images] if isinstance(v, Tensor) else v for v in (radius, step_size))
            start = self._start(x[images], r, key[images], restart)
            climbing = (r, s, self.steps, dtype, self._temperature)
            return climb(network, x[images], y[images], start, *climbing)[0]

        best = attempt(0, slice(None))
        if self.restarts == 1:
            return best
        best_margin = margin(network, best, y)
        for restart in range(1, self.restarts):
            right = (best_margin >= 0).nonzero().squeeze(1)
            if not len(right):
                break
            new = attempt(restart, right)
            new_margin = margin(network, new, y[right])
            better = new_margin < best_margin[right]
            best[right[better]] = new[better]
            best_margin[right[better]] = new_margin[better]
        return best

    def search(
        self, network: nn.Module, x: Tensor, y: Tensor, key: Tensor, batch_size: int
    ) -> Tensor:
        """Look for adversarial examples, stopping where one is found; see `Attack.fools`.

        Every few steps the images that are lost leave, and the others close ranks: batches stay
        full. Who seems lost is known without extra work, from the logits of the last gradient;
        whether they are is then asked in float32.
        """
        if self._is_mixed:
            wrong = torch.zeros_like(y, dtype=torch.bool)
            for images, attack in self._shares(key):
                ours = x[images], y[images], key[images]
                wrong[images] = attack.search(network, *ours, batch_size)
            return wrong
        dtype = self._gradient_dtype(x.device, scaled=False)
        fast = rewrite(network, x.shape[1:])
        wrong = torch.zeros_like(y, dtype=torch.bool)
        x_adv = torch.empty_like(x)
        for restart in range(self.restarts):
            right = (~wrong).nonzero().squeeze(1)
            for part in torch.split(right, batch_size):
                x_adv[part] = self._start(x[part], self.eps, key[part], restart)
            for done in range(0, self.steps, STEPS_BETWEEN_CHECKS):
                steps = min(STEPS_BETWEEN_CHECKS, self.steps - done)
                temperature = partial(self._temperature, done=done)
                last = done + steps == self.steps
                for part in torch.split(right, batch_size):
                    climbing = (self.eps, self.step_size, steps, dtype, temperature)
                    x_adv[part], logits = climb(fast, x[part], y[part], x_adv[part], *climbing)
                    lost = part if last else part[logits.argmax(1) != y[part]]
                    if len(lost):
                        wrong[lost] = misclassified(network, x_adv[lost], y[lost])
                right = right[~wrong[right]]
                if not len(right):
                    return wrong
        return wrong

    def _gradient_dtype(self, device: torch.device, *, scaled: bool) -> torch.dtype:
        """The precision of gradients; images with an eps of their own may take smaller steps."""
        fine = scaled or self.step_size < SMALLEST_BFLOAT16_STEP
        if self.precision == "bfloat16":
            return torch.bfloat16
        if self.precision == "auto" and not fine and has_bfloat16(device.type):
            return torch.bfloat16
        return torch.float32

    @property
    def _is_mixed(self) -> bool:
        return self.relu_temperature > 0 and self.relu_share < 1

    def _shares(self, key: Tensor) -> list[tuple[Tensor, PGD]]:
        """Which images each of two attacks is for, int64, those with none left out."""
        is_smooth = uniform(mix(key, "relu"), (1,)).squeeze(1) < self.relu_share
        shares = [
            (is_smooth.nonzero().squeeze(1), replace(self, relu_share=1.0)),
            ((~is_smooth).nonzero().squeeze(1), replace(self, relu_temperature=0.0)),
        ]
        return [(images, attack) for images, attack in shares if len(images)]

    def _temperature(self, step: int, done: int = 0) -> float:
        """That of ReLU's derivative in one step, of a try that had some before."""
        return self.relu_temperature if (done + step) % self.relu_own_every else 0.0

    def _start(self, x: Tensor, eps: float | Tensor, key: Tensor, restart: int) -> Tensor:
        """Where one try starts, (B, C, H, W); outside of [0, 1] perhaps."""
        if not self.random_start:
            return x.clone()
        if self.start_std:
            return x + float(self.start_std) * normal(mix(key, restart), x.shape[1:])
        noise = 2 * uniform(mix(key, restart), x.shape[1:]) - 1
        return x + per_image(eps, x) * noise


def climb(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    dtype: torch.dtype,
    relu_temperature: Callable[[int], float] = lambda step: 0.0,
) -> tuple[Tensor, Tensor]:
    """Signed gradient steps, projected after each: the loop of every gradient-sign attack.

    Args:
        network: from pixels to logits, in evaluation mode.
        x: images, float32, (B, C, H, W), pixels in [0, 1].
        y: labels to move away from, int64, (B,), or probabilities, float32, (B, classes).
        start: where to start, float32, (B, C, H, W).
        eps: radius, a number or (B,).
        step_size: a number or (B,).
        steps: number of steps.
        dtype: precision of the gradient.
        relu_temperature: of each step, which count from 0; 0 for ReLU's own derivative.

    Returns:
        the last iterate, float32, (B, C, H, W), and the logits at the one before it.
    """
    eps = per_image(eps, x)
    # The ball and [0, 1] are both boxes, so one clamp to their intersection projects onto both.
    low, high = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
    # Laid out once for the whole loop: steps and projections go pixel by pixel, in any order.
    fast = rewrite(network, x.shape[1:])
    x_adv, low, high = map(fast.pack, (start.clamp(low, high), low, high))
    step_size = per_image(step_size, x_adv)
    for step in range(steps):
        with smooth_relus(relu_temperature(step)):
            gradient, logits = input_gradient(fast, x_adv, y, dtype)
        x_adv = (x_adv + step_size * gradient.sign()).clamp(low, high)
    return fast.unpack(x_adv), logits


@torch.no_grad()
def margin(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """True logit minus the largest other one, float32, (B,): negative where x is misclassified."""
    return logit_margin(network(x).float(), y)


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """True logit minus the largest other one.

    Args:
        logits: float, (B, classes).
        y: true labels, int64, (B,).

    Returns:
        margins, float, (B,).
    """
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return (true - others.amax(1, keepdim=True)).squeeze(1)
