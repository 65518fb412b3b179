"""What every attack is: settings, and a call that turns images into adversarial examples."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.networks.modes import evaluating


@dataclass(frozen=True)
class Attack(ABC):
    """An attack: its settings. Calling it perturbs a batch; it keeps nothing between calls."""

    perturbs: ClassVar[bool] = True
    """Whether it changes images at all."""

    @property
    def name(self) -> str:
        """What it is called where nobody gave it a name: its class's."""
        return type(self).__name__

    @property
    def radius(self) -> float | None:
        """Radius of its ball, in pixel units of [0, 1]; None of an attack without one."""
        eps = getattr(self, "eps", None)
        return None if eps is None else float(eps)

    @property
    def sample(self) -> int | None:
        """On how many test images a test tries it, a stratified draw; None for all of them."""
        return None

    @property
    def gradient_steps(self) -> int:
        """How many times it follows the network's gradient on its way; 0 if it does not."""
        return 0

    @property
    def sees_gradients(self) -> bool:
        """Whether it follows the network's gradients: one that does not should never beat it."""
        return self.gradient_steps > 0

    @property
    def is_one_step(self) -> bool:
        """Whether it follows the gradient once: training against it alone may overfit to it."""
        return self.gradient_steps == 1

    @property
    def is_projected(self) -> bool:
        """Whether its example in a smaller ball is that of a larger one, moved into the smaller."""
        return False

    @property
    def takes_probabilities(self) -> bool:
        """Whether it can move away from probabilities, float32, (B, classes), given as labels."""
        return False

    @property
    def stays_in_ball(self) -> bool:
        """Whether its examples lie within eps: one that leaves the ball serves training alone."""
        return True

    @property
    def is_standard(self) -> bool:
        """Whether robust accuracy, without another word, is what this attack leaves."""
        return False

    @property
    def stages(self) -> Sequence[tuple[str, Attack]]:
        """Attacks, by name, of which it is made; none of an attack that is whole.

        Each goes for the images that those before it have left, and begins at the image.
        """
        return ()

    @property
    def fewest_classes(self) -> int:
        """How many classes a network must tell apart."""
        return 2

    def harder(self, factor: int) -> Mapping[str, Attack]:
        """The same with more work, to see whether it has converged.

        Args:
            factor: how many times the work.

        Returns:
            attacks by what they have more of, such as "steps"; none where there is no such thing.
        """
        return {}

    def without_seed(self) -> Attack:
        """The same with seed 0: those that differ in their seed alone become equal."""
        has_seed = any(field.name == "seed" for field in fields(self))
        return replace(self, **{"seed": 0}) if has_seed else self

    def __call__(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """Perturb images so that the network gets them wrong.

        Args:
            network: from pixels in [0, 1] to logits; left exactly as it was found.
            x: images, float32, (B, C, H, W), pixels in [0, 1].
            y: true labels, int64, (B,).
            eps: radius of each image's ball, float32, (B,), in place of the setting; step sizes
                follow in proportion.
            key: int64, (B,), what each image's noise is a function of (see `noise.image_keys`);
                by default its position in the batch.

        Returns:
            adversarial examples, float32, (B, C, H, W), within eps of x and in [0, 1].
        """
        if not len(x):
            return x.clone()
        if key is None:
            key = torch.arange(len(x), device=x.device)
        with _attacking(network, x.device):
            radius = None if eps is None else _outside_inference(eps)
            x, y, key = map(_outside_inference, (x, y, key))
            return self.perturb(network, x, y, radius, key).detach()

    def fools(
        self, network: nn.Module, x: Tensor, y: Tensor, *, key: Tensor, batch_size: int
    ) -> Tensor:
        """Find the images that the network gets wrong: all that the worst case asks for.

        An attack may stop on an image as soon as the network is wrong.

        Args:
            network: from pixels in [0, 1] to logits; left exactly as it was found.
            x: any number of images, float32, (N, C, H, W), pixels in [0, 1].
            y: true labels, int64, (N,).
            key: int64, (N,), what each image's noise is a function of.
            batch_size: images to attack at a time.

        Returns:
            bool, (N,): where the network, in float32, is wrong about an adversarial example.
        """
        if not len(y):
            return torch.zeros_like(y, dtype=torch.bool)
        with _attacking(network, x.device):
            x, y, key = map(_outside_inference, (x, y, key))
            return self.search(network, x, y, key, batch_size)

    def search(
        self, network: nn.Module, x: Tensor, y: Tensor, key: Tensor, batch_size: int
    ) -> Tensor:
        """What `fools` does, with the network in evaluation mode and autograd on."""
        lost = []
        for part in torch.split(torch.arange(len(y), device=y.device), batch_size):
            x_adv = self.perturb(network, x[part], y[part], None, key[part])
            lost.append(misclassified(network, x_adv, y[part]))
        return torch.cat(lost)

    @property
    def learns(self) -> bool:
        """Whether it must learn something about the network first, in `prepare`."""
        return False

    @property
    def learned(self) -> Mapping[str, float]:
        """What is to be reported about what it has learned."""
        return {}

    def prepare(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]]
    ) -> Attack:
        """Learn what there is to learn, once before a test.

        Args:
            network: from pixels in [0, 1] to logits; left exactly as it was found.
            batches: all test images, (x, y, index), as often as they are asked for.

        Returns:
            the attack to test with: this one, if it learns nothing.
        """
        return self

    def to(self, device: torch.device) -> Attack:
        """The same with what it has learned on a device."""
        return self

    def leaves_out(self, index: Tensor) -> Tensor:
        """Which images are the attacker's own and not attacked.

        Args:
            index: position of each image in its data set, int64, (B,).

        Returns:
            bool, (B,).
        """
        return torch.zeros_like(index, dtype=torch.bool)

    @abstractmethod
    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """The method itself: called with the network in evaluation mode and autograd on.

        Arguments and result are those of `__call__`; x and y are not to be changed in place.
        """


@dataclass(frozen=True)
class NoAttack(Attack):
    """Leaves the images as they are: what training on clean images attacks with."""

    perturbs = False

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Return the images."""
        return x


@contextmanager
def _attacking(network: nn.Module, device: torch.device) -> Iterator[None]:
    """What an attack needs around it, whatever the caller is in the middle of."""
    with (
        evaluating(network),
        torch.inference_mode(False),
        torch.enable_grad(),
        _own_precision(device),
    ):
        yield


@contextmanager
def _own_precision(device: torch.device) -> Iterator[None]:
    """Out of the caller's mixed precision, which would reach into the attack's backward pass.

    While this lasts, the weights that `input_gradient` casts are cast once, not at each step. The
    cache of casts is kept by weight, not by type: one of the caller's in float16 and one of the
    attack's in bfloat16 must not meet.
    """
    caller = torch.is_autocast_enabled(device.type)
    other = caller and torch.get_autocast_dtype(device.type) != torch.bfloat16
    if other:
        torch.clear_autocast_cache()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if other:
            torch.clear_autocast_cache()


def _outside_inference(tensor: Tensor) -> Tensor:
    """A tensor that autograd can use: those made in inference mode, as in a test, cannot."""
    return tensor.clone() if tensor.is_inference() else tensor


def input_gradient(
    network: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradient of each image's cross-entropy with respect to its pixels.

    The loss is summed, not averaged: an image's gradient then does not depend on the batch it is
    in, and does not shrink with it.

    Args:
        network: from pixels to logits, in evaluation mode.
        x: images, float32, (B, C, H, W), a leaf of no graph.
        y: labels, int64, (B,), or probabilities, float32, (B, classes).
        dtype: float32, or bfloat16 to run the network in mixed precision.

    Returns:
        gradient, float32, (B, C, H, W), 0 where the network lets none through, and the logits it
        was taken at, float32, (B, classes).
    """
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = network(x).float()
    if not logits.requires_grad:  # something in the network cuts the graph: nothing to follow
        return torch.zeros_like(x), logits
    loss = F.cross_entropy(logits, y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient, logits.detach()


SMALLEST_BFLOAT16_STEP = 2 / 255
"""bfloat16 sees pixels rounded by up to 0.5/255: an attack's steps must be well above that."""


@cache
def has_bfloat16(device: str) -> bool:
    """Whether a kind of device ("cpu", "cuda") computes in bfloat16 faster than in float32."""
    if device == "cpu":
        # oneDNN also accepts bfloat16 where AVX-512 has no instructions for it, and is slow there.
        has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        is_arm = platform.machine().lower() in ("aarch64", "arm64")
        if not (is_arm or has_instructions()):
            return False
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@torch.no_grad()
def misclassified(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images a network gets wrong in float32, bool, (B,)."""
    logits: Tensor = network(x)
    return logits.argmax(1) != y


def per_image(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number as it is, or a tensor (B,) in a shape that broadcasts over images (B, C, H, W)."""
    return value.view(-1, *[1] * (x.dim() - 1)) if isinstance(value, Tensor) else value
