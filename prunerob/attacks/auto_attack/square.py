"""The Square attack: random search with square windows, by answers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunerob.attacks.auto_attack.survivors import (
    Hunt,
    Survivors,
    Tensors,
    advanced,
    check_counts,
    is_wrong,
    joined,
    rough_error,
    slices,
)
from prunerob.attacks.pgd import logit_margin
from prunerob.noise import mix, uniform

DRAWN_AT_ONCE = 64
"""Queries whose noise is drawn together. Another number is other noise."""

ROUGH_BATCHES = 4
"""Batches that are asked roughly at once: those that go on to float32 then fill a batch or so."""

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which p is halved, whatever their number in all."""


@dataclass(frozen=True, kw_only=True)
class Square(Hunt):
    """The Square attack (Andriushchenko et al., arXiv:1912.00049): no gradient, only answers.

    Starts at vertical stripes of -eps and +eps, one column wide. Each query changes a square window
    at a random place to -eps or +eps, the same in all of a colour's pixels, and is kept where the
    margin (true logit minus the largest other) falls. Windows shrink on a fixed schedule. It is
    over for an image as soon as the network is wrong; where it never is, the example is the one
    with the smallest margin.

    Args:
        eps: radius of the L-infinity ball, in pixel units of [0, 1]: 0.3, or 8/255.
        images: number of test images to attack, a stratified draw; null for all.
        queries: number of windows tried, 1 or more.
        p: share of the image that the first windows cover, in (0, 1].
        restarts: number of tries from different stripes, 1 or more.
        edges: whether windows smaller than the image also reach its last row and column, as the
            paper has it. They do not in its authors' code, by which AutoAttack is defined; so not
            by default, to be comparable. A network that hides its gradients may be far weaker at
            the edges.
    """

    queries: int = 5000
    p: float = 0.8
    restarts: int = 1
    edges: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "queries", "restarts")
        if not 0 < self.p <= 1:
            raise ValueError(f"p of Square: {self.p} lies outside (0, 1]")

    def hunt(self, survivors: Survivors) -> None:
        """Attack who is left; see `Hunt`."""
        survivors.begin()
        for restart in range(self.restarts):
            self._try(survivors, restart)

    def _try(self, survivors: Survivors, restart: int) -> None:
        """One try of all who are left, side by side: at each query who is lost leaves."""
        left = torch.split(survivors.left(), survivors.batch_size)
        if not len(left[0]):
            return
        guesses = joined([self._start(survivors, part, restart) for part in left])
        windows = Windows(survivors, edges=self.edges)
        size = survivors.batch_size * (ROUGH_BATCHES if survivors.flat.has_rough else 1)
        for query, side in enumerate((0, *self.sides(survivors.x.shape))):
            if query % DRAWN_AT_ONCE == 0:
                guesses.noise = windows.draw(guesses.key, query)
            step = partial(self._query, survivors, windows=windows, query=query, side=side)
            guesses = advanced(guesses, size, step)
            if not len(guesses.y):
                return
        for part in slices(len(guesses.y), survivors.batch_size):
            rows = guesses.rows(part)
            survivors.keep(rows.index, rows.x, -rows.margin)

    def sides(self, shape: torch.Size) -> Iterator[int]:
        """The windows' sides in pixels, query by query.

        Args:
            shape: of the images, (N, C, H, W).
        """
        height, width = shape[-2:]
        for query in range(self.queries):
            p = self.p / 2 ** sum(query > mark for mark in HALVED_AFTER)
            yield min(max(round(math.sqrt(p * height * width)), 1), height, width)

    def _start(self, survivors: Survivors, index: Tensor, restart: int) -> Guesses:
        """Stripes, of which nothing is known yet."""
        channels, height, width = survivors.x.shape[1:]
        key = mix(survivors.key[index], "Square", restart)
        up = uniform(mix(key, "stripes"), (channels, 1, width)) >= 0.5
        low, high = survivors.box(index)
        up = survivors.flat.flatten(up.expand(-1, -1, height, -1).to(low.dtype)) > 0
        return Guesses(
            index=index,
            y=survivors.y[index],
            key=key,
            low=low,
            high=high,
            x=torch.where(up, high, low),
            margin=torch.full_like(low[:, 0], torch.inf),
            rough=torch.full_like(low[:, 0], torch.inf),
            noise=torch.empty(len(index), 0, device=low.device),
        )

    @torch.no_grad()
    def _query(
        self, survivors: Survivors, guesses: Guesses, windows: Windows, query: int, side: int
    ) -> Tensor:
        """Try a batch's next windows; keep, in place, those with which the margin falls.

        Args:
            survivors: all images.
            guesses: the batch's.
            windows: of these images.
            query: the how many-th, counted from 0.
            side: of the windows in pixels; 0 to ask about the images as they are.

        Returns:
            bool, (B,): who is lost.
        """
        now = guesses
        lost = torch.zeros_like(now.y, dtype=torch.bool)
        if side:
            where, up = windows.place(now.noise[:, query % DRAWN_AT_ONCE], side)
            new = torch.where(up, now.high.gather(1, where), now.low.gather(1, where))
            # A window that changes nothing need not be asked about: the margin would not fall.
            tried = (new != now.x.gather(1, where)).any(1).nonzero().squeeze(1)
            x = now.x[tried].scatter_(1, where[tried], new[tried])
        else:
            tried, x = torch.arange(len(now.y), device=now.y.device), now.x
        if not len(tried):
            return lost
        if survivors.flat.has_rough:
            tried, x, rough = self._promising(survivors, now, tried, x)
        else:
            rough = now.rough[tried]
        for part in slices(len(tried), survivors.batch_size):
            lost[self._keep(survivors, now, tried[part], x[part], rough[part])] = True
        return lost

    def _keep(
        self, survivors: Survivors, now: Guesses, tried: Tensor, x: Tensor, rough: Tensor
    ) -> Tensor:
        """Ask about new windows in float32; keep those with which the margin falls.

        Args:
            survivors: all images.
            now: the guesses, changed in place.
            tried: rows of those with a new window, int64, (n,), at most a batch.
            x: images with it, flat, float32, (n, P).
            rough: their rough margins, float32, (n,).

        Returns:
            rows of those that are lost, int64.
        """
        y = now.y[tried]
        logits = survivors.flat(x)
        margin = logit_margin(logits, y)
        wrong = is_wrong(logits, y) | (margin <= 0)
        better = (wrong | (margin < now.margin[tried])).nonzero().squeeze(1)
        now.x[tried[better]] = x[better]
        now.margin[tried[better]] = margin[better]
        now.rough[tried[better]] = rough[better]
        found = tried[wrong]
        return found[survivors.take(now.index[found], now.x[found])]

    def _promising(
        self, survivors: Survivors, now: Guesses, tried: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Leave out what would not be kept in float32 either, as rough answers show.

        Args:
            survivors: all images.
            now: the guesses.
            tried: rows of those with a new window, int64, (n,).
            x: images with it, flat, float32, (n, P).

        Returns:
            the same of the others, and their rough margins.
        """
        logits = survivors.flat(x, rough=True)
        rough = logit_margin(logits, now.y[tried])
        error = rough_error(logits)
        # Answers that are no numbers are to be asked again, too.
        hopeless = (rough - now.rough[tried] >= error) & (rough > error)
        near = (~hopeless).nonzero().squeeze(1)
        return tried[near], x[near], rough[near]


@dataclass
class Guesses(Tensors):
    """What the Square attack knows of each image on its way.

    Attributes:
        index: position among all images, int64, (B,).
        y: true label, int64, (B,).
        key: what the image's noise is a function of, int64, (B,).
        low: lowest pixels, float32, (B, P), flat.
        high: highest pixels.
        x: best example so far; each pixel is its lowest or highest.
        margin: the network's there, float32, (B,).
        rough: the same from rough logits, where these are asked for.
        noise: of the next windows, float32, (B, DRAWN_AT_ONCE, 2 + C), in [0, 1).
    """

    index: Tensor
    y: Tensor
    key: Tensor
    low: Tensor
    high: Tensor
    x: Tensor
    margin: Tensor
    rough: Tensor
    noise: Tensor


class Windows:
    """Where square windows lie in flat images.

    Args:
        survivors: whose images.
        edges: whether they reach the last row and column, though smaller than the image.
    """

    def __init__(self, survivors: Survivors, *, edges: bool) -> None:
        self._edges = edges
        self._channels, self._height, self._width = survivors.x.shape[1:]
        device = survivors.x.device
        pixels = torch.arange(survivors.x[0].numel(), device=device)
        # Counted from 1, for pixels that a layout adds are 0.
        counted = (pixels + 1).to(survivors.x.dtype).view(1, *survivors.x.shape[1:])
        flat = survivors.flat.flatten(counted)[0].long()
        self._where = flat.argsort()[len(flat) - len(pixels) :]

    def draw(self, key: Tensor, query: int) -> Tensor:
        """The noise of the next windows, float32, (B, DRAWN_AT_ONCE, 2 + C), in [0, 1).

        Args:
            key: int64, (B,).
            query: the first window's number.
        """
        return uniform(mix(key, query), (DRAWN_AT_ONCE, 2 + self._channels))

    def place(self, noise: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Draw windows.

        Args:
            noise: float32, (B, 2 + C), in [0, 1).
            side: of the windows in pixels.

        Returns:
            their pixels' places in flat images, int64, (B, C · side²), and whether these go to
            their highest values, not their lowest, bool, of the same shape.
        """
        row = (noise[:, 0] * self._corners(self._height - side)).long()
        column = (noise[:, 1] * self._corners(self._width - side)).long()
        corner = row * self._width + column
        where = self._where[corner[:, None] + self._inside(side)]
        up = (noise[:, 2:, None] >= 0.5).expand(-1, -1, side * side).flatten(1)
        return where, up

    def _corners(self, spare: int) -> int:
        """How many places a window's corner may have in one direction, with so many pixels left."""
        return spare + 1 if self._edges else max(spare, 1)

    def _inside(self, side: int) -> Tensor:
        """A window's pixels as seen from its corner, int64, (C · side²,)."""
        steps = torch.arange(side, device=self._where.device)
        window = (steps[:, None] * self._width + steps).flatten()
        colours = torch.arange(self._channels, device=self._where.device)
        return (colours[:, None] * self._height * self._width + window).flatten()
