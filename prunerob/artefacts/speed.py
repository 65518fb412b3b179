"""How fast artefacts answer, measured side by side in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunerob.artefacts.format import Answers

ROUNDS, IN_A_ROW, WARMING = 5, 10, 2
"""How often each has its turn, how often it is asked then, and how many of these do not count.

A library's threads go on spinning for a while after an answer, and caches are another's: so each is
asked several times in a row.
"""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds for a batch, over the rounds.

    Args:
        images: of the batch.
        threads: of the CPU.
        p50: the median.
        p95: what 95 of 100 stay below.
    """

    images: int
    threads: int
    p50: float
    p95: float


def latencies(
    answers: Mapping[str, Answers],
    shape: torch.Size,
    *,
    images: int,
    threads: int = 1,
    rounds: int = ROUNDS,
) -> dict[str, Latency]:
    """Ask them in turns, so that a busy moment is no one's alone.

    Args:
        answers: by name; opened for so many threads.
        shape: of an image, (C, H, W).
        images: of a batch.
        threads: that torch may use, for those that run by it.
        rounds: turns of each.
    """
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in answers}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(rounds):
            for name, answer in answers.items():
                for asked in range(WARMING + IN_A_ROW):
                    start = perf_counter()
                    answer(x)
                    if asked >= WARMING:
                        times[name].append(1000 * (perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    return {
        name: Latency(
            images=images, threads=threads, p50=median(of_it), p95=quantiles(of_it, n=20)[-1]
        )
        for name, of_it in times.items()
    }


def flops(network: nn.Module, shape: torch.Size) -> int:
    """Floating-point operations for one image, as torch counts them: two for a multiplication.

    A weight of 0 counts as any other: it is multiplied as well.

    Args:
        network: in evaluation mode, on the CPU.
        shape: of an image, (C, H, W).
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return int(counter.get_total_flops())
