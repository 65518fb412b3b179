"""Intervals and tests of differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from prunerob.statistics import SIGNIFICANT, mcnemar, sign_test, t_test, wilson_interval


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_paired_test_is_the_exact_binomial_one(a: int, b: int) -> None:
    expected = binomtest(a, a + b).pvalue if a + b else 1.0
    assert sign_test(a, b) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_only_images_on_which_they_differ_count(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert mcnemar(a, b) == mcnemar(b, a)
    both = torch.ones(100, dtype=torch.bool)
    assert mcnemar(torch.cat([a, both]), torch.cat([b, both])) == mcnemar(a, b)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_the_test_over_seeds_is_student_s(values: list[float]) -> None:
    if len(set(values)) > 1 and torch.tensor(values).std() > 1e-6:
        assert t_test(values) == pytest.approx(ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)


def test_a_test_over_seeds_at_its_ends() -> None:
    assert t_test([0.3]) is None, "one says nothing about others"
    assert t_test([0.0, 0.0]) == 1
    assert t_test([0.1, 0.1]) == 0
    coincide = t_test([0.001, 0.001], resolution=0.001)
    assert coincide is not None
    assert coincide > SIGNIFICANT, "two counts that coincide are no proof"
    apart = t_test([0.05, 0.05], resolution=0.0001)
    assert apart is not None
    assert apart < SIGNIFICANT


@given(st.integers(1, 20000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilson_s(counts: tuple[int, int]) -> None:
    correct, images = counts
    expected = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, images) == pytest.approx((expected.low, expected.high))
