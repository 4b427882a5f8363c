"""Means over seeds, with what is known of their spread.

An undefined score (a correlation with something constant) counts as 0 beside defined ones: leaving it out would flatter
a model that collapses on some seeds. Where a seed's job failed there is nothing to count, and ``n`` is what is there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cramming.report.intervals import mean_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A score over seeds.

    Attributes:
        mean: None: undefined in every seed.
        std: sample standard deviation, with n - 1; None with one seed.
        ci95: 95 % Student-t interval of the mean; None with one seed.
        values: of each seed, in the order of the seeds; None: undefined.
    """

    mean: float | None
    std: float | None
    ci95: tuple[float, float] | None
    values: tuple[float | None, ...]

    @property
    def n(self) -> int:
        """Seeds that there are."""
        return len(self.values)

    @property
    def undefined(self) -> int:
        """Seeds in which it is undefined."""
        return sum(value is None for value in self.values)

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.ci95 is None else (self.ci95[1] - self.ci95[0]) / 2


def summary(values: Sequence[float | None]) -> Summary:
    """The mean over seeds, its standard deviation and interval.

    s^2 = sum((x - mean)^2) / (n - 1);  ci95 = mean -+ t(0.975, n - 1) s / sqrt(n)

    Args:
        values: one or more.
    """
    assert values, "no seed to take the mean of"
    if all(value is None for value in values):
        return Summary(None, None, None, tuple(values))
    counted = [value or 0.0 for value in values]
    estimate = mean_interval(counted, CONFIDENCE)
    if estimate.half is None:
        return Summary(estimate.mean, None, None, tuple(values))
    spread = math.sqrt(math.fsum((value - estimate.mean) ** 2 for value in counted) / (len(counted) - 1))
    return Summary(estimate.mean, spread, (estimate.low, estimate.high), tuple(values))


def at_chance(found: Summary, chance: float) -> bool:
    """Whether a score does not clear what no reading at all would get.

    With several seeds the lower end of the interval must lie above it; with one there is only the value itself.

    Args:
        found: the score.
        chance: of the best answer that is the same for every example; 0 for correlations.
    """
    if found.mean is None:
        return True
    return (found.mean if found.ci95 is None else found.ci95[0]) <= chance


def chance(baselines: Mapping[str, Mapping[str, float | None]], outcome: str) -> float:
    """What the best answer that is the same for every example scores; 0 where that is undefined, as correlations are.

    Args:
        baselines: of a task, as ``baselines.of_splits`` names them.
        outcome: as ``Task.outcome`` calls it.
    """
    constant = [baselines[name].get(outcome) or 0.0 for name in ("majority", "positive") if name in baselines]
    return max(constant, default=0.0)
