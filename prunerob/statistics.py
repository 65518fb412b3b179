"""Statistics of accuracies: intervals, and tests of differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIGNIFICANT = 0.05
"""The p-value from which on a difference is put down to chance."""


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson, 1927): honest near 0 and 1 too.

    Args:
        correct: successes.
        images: trials, 1 or more.

    Returns:
        lower and upper bound, in [0, 1].

    Examples:
        >>> [round(bound, 4) for bound in wilson_interval(9900, 10000)]
        [0.9879, 0.9918]
    """
    from scipy.stats import binomtest  # takes half a second

    interval = binomtest(correct, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a: Tensor, b: Tensor) -> float:
    """The exact test of McNemar (1947): do two accuracies on the same images differ?

    Only images on which one is right and the other wrong count; if there is no difference, either
    is as likely to be the one.

    Args:
        a: classified right by one, bool, (N,).
        b: by the other, in the same order, bool, (N,).

    Returns:
        p-value, two-sided, in [0, 1].

    Examples:
        >>> a = torch.tensor([True] * 10)
        >>> round(mcnemar(a, torch.tensor([False] * 6 + [True] * 4)), 4)
        0.0312
    """
    return sign_test(int((a & ~b).sum()), int((b & ~a).sum()))


def sign_test(for_a: int, for_b: int) -> float:
    """Two-sided p-value, in [0, 1], of a fair coin that fell so many times on either side."""
    from scipy.stats import binomtest

    tosses = for_a + for_b
    return float(binomtest(for_a, tosses).pvalue) if tosses else 1.0


def t_test(values: Sequence[float], *, resolution: float = 0.0) -> float | None:
    """Two-sided p-value, in [0, 1], of Student's t test that the mean of some values is 0.

    Args:
        values: a sample.
        resolution: the step in which values are counted: their spread is taken to be no smaller,
            as a few that coincide say nothing about those to come.

    Returns:
        None of a single value, which says nothing about others.

    Examples:
        >>> round(t_test([1.0, 2.0]), 3)
        0.205
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    n, center, spread = len(values), mean(values), max(stdev(values), resolution)
    if spread == 0:
        return float(center == 0)
    return float(2 * t.sf(abs(center) / (spread / math.sqrt(n)), n - 1))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None of a single value."""
    return mean(values), stdev(values) if len(values) > 1 else None
