"""Images under an attack that stops on each as soon as the network is wrong about it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunerob.attacks.attack import Attack, has_bfloat16, per_image
from prunerob.networks.rewrite import rewrite
from prunerob.pixels import Pixels

T = TypeVar("T", bound="Tensors")


@dataclass(frozen=True, kw_only=True)
class Hunt(Attack):
    """An attack that is over for an image once any of its iterates is misclassified.

    Whatever an attack computes with, an image is lost only where the network itself, in float32,
    is asked about the example and is wrong. Logits that are not finite count as wrong.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255. At 0 the
            images themselves are the examples.
        images: number of test images to attack, a stratified draw; None for all.
    """

    eps: Pixels = Pixels(0.3)
    images: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Pixels(self.eps))
        if self.images is not None:
            check_counts(self, "images")

    @property
    def sample(self) -> int | None:
        """The setting `images`."""
        return self.images

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Perturb images: misclassified iterates where there are any; see `Attack.__call__`."""
        radius = torch.full((len(x),), float(self.eps), device=x.device) if eps is None else eps
        survivors = Survivors(network, x, y, radius.float(), key, batch_size=len(x))
        self.hunt(survivors)
        return survivors.x_adv

    def search(
        self, network: nn.Module, x: Tensor, y: Tensor, key: Tensor, batch_size: int
    ) -> Tensor:
        """Look for adversarial examples, stopping where one is found; see `Attack.fools`."""
        radius = torch.full((len(x),), float(self.eps), device=x.device)
        survivors = Survivors(network, x, y, radius, key, batch_size=batch_size)
        self.hunt(survivors)
        return survivors.lost

    @abstractmethod
    def hunt(self, survivors: Survivors) -> None:
        """The method itself: attack who is left, and have who is lost taken off."""


class Flat:
    """A network of flat images: the pixels of its rewrite's layout as they lie in memory.

    L-infinity attacks do not care about the order of pixels, and rows can be taken out of a flat
    tensor without losing the layout.

    Args:
        network: from pixels to logits.
        x: images, float32, (N, C, H, W), of the shape that it will be asked about.

    Attributes:
        has_rough: whether rough answers, in bfloat16, come faster here than those in float32.
    """

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        self.has_rough = has_bfloat16(x.device.type)
        self._device = x.device.type
        self._rewrite = rewrite(network, x.shape[1:])
        # Two images: the layout of one can be read in several ways.
        like = self._rewrite.pack(torch.zeros_like(x[:1]).repeat(2, *[1] * (x.dim() - 1)))
        order = sorted(range(1, like.dim()), key=lambda dim: -like.stride()[dim])
        self._order = (0, *order)
        self._back = tuple(self._order.index(dim) for dim in range(like.dim()))
        self._shape = tuple(like.shape[dim] for dim in order)

    def flatten(self, x: Tensor) -> Tensor:
        """Images, (B, C, H, W), to flat ones, (B, P): every pixel once; added ones are 0."""
        return self._rewrite.pack(x).permute(self._order).reshape(len(x), -1)

    def unflatten(self, flat: Tensor) -> Tensor:
        """Undo `flatten`."""
        return self._rewrite.unpack(self._packed(flat))

    def __call__(self, flat: Tensor, *, rough: bool = False) -> Tensor:
        """Logits, float32, (B, classes), of flat images.

        Args:
            flat: the images, float32, (B, P).
            rough: compute in mixed precision, with bfloat16.
        """
        with torch.autocast(self._device, torch.bfloat16, enabled=rough):
            logits: Tensor = self._rewrite(self._packed(flat))
        return logits.float()

    def _packed(self, flat: Tensor) -> Tensor:
        return flat.view(len(flat), *self._shape).permute(self._back)


class Survivors:
    """All images of an attack: who is lost, with which example, and who is left.

    Args:
        network: from pixels to logits, in evaluation mode.
        x: images, float32, (N, C, H, W), pixels in [0, 1].
        y: true labels, int64, (N,).
        eps: radius of each image's ball, float32, (N,), in pixel units of [0, 1].
        key: int64, (N,), what each image's noise is a function of.
        batch_size: images to show the network at a time.

    Attributes:
        flat: the network as attacks ask it, in the fastest known form.
        logits: of the images, float32, (N, classes).
        lost: where the network is wrong about an example, bool, (N,); at first, about the image.
        x_adv: where it is, that example; elsewhere the best that was kept, or the image.
    """

    def __init__(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor, key: Tensor, batch_size: int
    ) -> None:
        self.flat = Flat(network, x)
        self.x, self.y, self.eps, self.key = x, y, eps, key
        self.batch_size = batch_size
        self.x_adv = x.clone()
        self._network = network
        self.logits = torch.cat([self._ask(part) for part in torch.split(x, batch_size)])
        self.lost = is_wrong(self.logits, y)
        self._score = torch.full_like(eps, -torch.inf)

    @property
    def classes(self) -> int:
        """How many classes the network tells apart."""
        return self.logits.shape[1]

    def left(self) -> Tensor:
        """Who is still to be attacked: positions, int64, (n,); none with an eps of 0."""
        return (~self.lost & (self.eps > 0)).nonzero().squeeze(1)

    def box(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest pixels of some images' examples, flat, float32, (n, P).

        The ball and [0, 1] are both boxes, and so is what they have in common.

        Args:
            index: positions, int64, (n,).
        """
        x, eps = self.x[index], per_image(self.eps[index], self.x)
        low, high = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
        return self.flat.flatten(low), self.flat.flatten(high)

    def others(self, index: Tensor, most: int) -> Tensor:
        """The classes that the network thinks of next, int64, (n, at most `most`), likeliest first.

        Args:
            index: positions, int64, (n,).
            most: number of classes.
        """
        others = self.logits[index].scatter(1, self.y[index, None], -torch.inf)
        return others.argsort(1, descending=True)[:, : min(most, self.classes - 1)]

    def take(self, index: Tensor, flat: Tensor) -> Tensor:
        """Show the network examples that seem misclassified; who really is, is lost.

        Args:
            index: positions, int64, (n,), at most a batch.
            flat: their examples, float32, (n, P), inside of the box.

        Returns:
            bool, (n,): who is lost.
        """
        if not len(index):
            return torch.zeros_like(index, dtype=torch.bool)
        x_adv = self.flat.unflatten(flat)
        wrong = is_wrong(self._ask(x_adv), self.y[index])
        self.x_adv[index[wrong]] = x_adv[wrong]
        self.lost[index[wrong]] = True
        return wrong

    def keep(self, index: Tensor, flat: Tensor, score: Tensor) -> None:
        """Remember each image's best example so far: for those that are not lost in the end.

        Args:
            index: positions, int64, (n,).
            flat: their examples, float32, (n, P), inside of the box.
            score: how good they are, float32, (n,): the higher the better.
        """
        better = (score > self._score[index]).nonzero().squeeze(1)
        if len(better):
            self._score[index[better]] = score[better]
            self.x_adv[index[better]] = self.flat.unflatten(flat[better])

    def begin(self) -> None:
        """Forget the scores of the attack before: each has its own."""
        self._score.fill_(-torch.inf)

    @torch.no_grad()
    def _ask(self, x: Tensor) -> Tensor:
        logits: Tensor = self._network(x)
        return logits.float()


@dataclass
class Tensors:
    """Tensors of as many rows: what an attack knows of each image on its way."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(vars(self).values())))

    def rows(self: T, which: Tensor | slice) -> T:
        """The same of some images; of a slice, views."""
        return type(self)(**{name: value[which] for name, value in vars(self).items()})


def joined(parts: Sequence[T]) -> T:
    """The rows of several, one after the other."""
    columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
    return type(parts[0])(**{name: torch.cat(column) for name, column in columns.items()})


def advanced(state: T, size: int, step: Callable[[T], Tensor]) -> T:
    """Take a step with all rows, some at a time.

    Args:
        state: of all who are left.
        size: rows at a time.
        step: changes rows in place and returns who is lost, bool, (B,).

    Returns:
        the state of those who are left.
    """
    lost = [step(state.rows(part)) for part in slices(len(state), size)]
    return state.rows(~torch.cat(lost)) if any(part.any() for part in lost) else state


def rough_error(logits: Tensor) -> Tensor:
    """How far off a margin of rough logits may be, float, (B,): seldom more.

    Two roundings of the largest logit to bfloat16's 8 bits. On three of the zoo's networks 1 in
    2,000 falls of a margin, or fewer, did not show within it.

    Args:
        logits: float, (B, classes).
    """
    return logits.abs().amax(1) * 2**-7


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where answers are wrong, bool, (B,): another class is likeliest, or a logit is not finite.

    Args:
        logits: float, (B, classes).
        y: true labels, int64, (B,).
    """
    return (logits.argmax(1) != y) | ~logits.isfinite().all(1)


def slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of `size`, the last one perhaps shorter."""
    return [slice(first, first + size) for first in range(0, length, size)]


def check_counts(attack: Attack, *names: str) -> None:
    """Refuse numbers of steps, restarts and the like below 1.

    Args:
        attack: whose settings.
        names: of the settings.

    Raises:
        ValueError: one is below 1.
    """
    for name in names:
        number = getattr(attack, name)
        if number < 1:
            raise ValueError(f"{name} of {type(attack).__name__}: {number} is below 1")
