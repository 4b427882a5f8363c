"""Means over seeds with intervals; differences paired by seed.

With the few seeds a study can pay for, the spread is estimated from few values, so intervals are Student's t, not the
normal distribution's. They assume that seeds are independent and the values roughly normal, and they are not widened
for looking at many arms at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds; ``half`` is half the width of its interval, None where one seed gives no spread."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """The lower end; the mean itself where there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end; the mean itself where there is no interval."""
        return self.mean + (self.half or 0.0)


def mean_interval(values: Sequence[float], confidence: float) -> Estimate:
    """The mean of n values and its Student-t interval.

    mean = sum(x) / n;  s^2 = sum((x - mean)^2) / (n - 1);  half = t((1 + confidence) / 2, n - 1) s / sqrt(n)

    Args:
        values: one or more finite numbers, one for each seed.
        confidence: the share of such intervals that hold the true mean, such as 0.95.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(mean, t_quantile(confidence, n) * spread / math.sqrt(n), n)


def t_quantile(confidence: float, n: int) -> float:
    """t((1 + confidence) / 2, n - 1): how many standard errors of ``n`` values the interval reaches to each side."""
    return float(stats.t.ppf((1 + confidence) / 2, n - 1))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float], confidence: float) -> Estimate | None:
    """The mean of value - baseline over the seeds that both have, with the interval of those differences.

    Two runs of one seed begin with the same weights and read the same text in the same order, so much of what a seed
    does to the result is in both and cancels: d(seed) = x(seed) - b(seed), then ``mean_interval(d)``.

    Returns:
        None where no seed is in both.
    """
    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        return None
    return mean_interval([values[seed] - baseline[seed] for seed in shared], confidence)
