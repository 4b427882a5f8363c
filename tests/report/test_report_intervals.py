"""Means, intervals and paired differences: against numbers worked out by hand, against scipy, and as a law."""

import math

import numpy as np
import pytest
from scipy import stats

from cramming.report.intervals import mean_interval, paired_difference


def test_three_values_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0], 0.95)
    # mean 2, s = 1, t(0.975, 2) = 4.302653, so half = 4.302653 / sqrt(3)
    assert found.mean == 2.0
    assert found.n == 3
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.low, found.high) == (2.0 - found.half, 2.0 + found.half)


def test_two_values_by_hand() -> None:
    found = mean_interval([6.0, 6.2], 0.95)
    # s = 0.2 / sqrt(2), t(0.975, 1) = 12.7062, so half = 12.7062 * 0.1
    assert found.mean == pytest.approx(6.1)
    assert found.half == pytest.approx(1.27062, rel=1e-5)


def test_one_value_has_no_interval() -> None:
    found = mean_interval([6.0], 0.95)
    assert (found.mean, found.half, found.n) == (6.0, None, 1)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_interval_is_that_of_scipy(n: int, confidence: float) -> None:
    values = np.random.default_rng(n).normal(6.0, 0.1, n).tolist()
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    found = mean_interval(values, confidence)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_the_paired_interval_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    arm, baseline = random.normal(6.0, 0.3, 5), random.normal(6.1, 0.3, 5)
    theirs = stats.ttest_rel(arm, baseline).confidence_interval(0.95)
    found = paired_difference(dict(enumerate(arm)), dict(enumerate(baseline)), 0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_pairs_are_of_the_same_seed() -> None:
    # By seed: 1 - 0 = 1 and 12 - 10 = 2; seed 7 has no partner.
    found = paired_difference({3: 1.0, 5: 12.0, 7: 99.0}, {5: 10.0, 3: 0.0, 1: 50.0}, 0.95)
    assert found is not None
    assert (found.mean, found.n) == (1.5, 2)


def test_what_a_seed_does_to_both_cancels() -> None:
    luck = {0: 0.0, 1: 3.0, 2: -4.0}
    found = paired_difference({s: v - 0.1 for s, v in luck.items()}, luck, 0.95)
    assert found is not None
    assert found.mean == pytest.approx(-0.1)
    assert found.half == pytest.approx(0.0, abs=1e-12)


def test_without_a_common_seed_there_is_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}, 0.95) is None


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    n, trials = 3, 4000
    held = 0
    for _ in range(trials):
        found = mean_interval(random.normal(6.0, 0.2, n).tolist(), 0.9)
        held += found.low <= 6.0 <= found.high
    assert held / trials == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / trials))
