"""Curves of single runs and their mean over seeds; the budget at which a curve reaches a target.

Shape legend: N points of a curve, G places of a mean curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cramming.recording.smoothing import centred_mean
from cramming.report.intervals import t_quantile

PLACES = 160  # of a mean curve: more than a figure's pixels can tell apart, few enough for a small page
_SMOOTHED_SHARE = 0.02  # a training loss is averaged over this share of the points on each side, twice over

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Values y (N,) at growing places x (N,)."""

    x: Values
    y: Values

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class MeanCurve:
    """The mean over ``n`` seeds at places x (G,); low and high (G,) are the interval, the mean itself for one seed."""

    x: Values
    mean: Values
    low: Values
    high: Values
    n: int


def curve(rows: Sequence[Mapping[str, Any]], y: str, x: str = "spent_s", smooth: bool = False) -> Curve:
    """(x, y) of the rows that have both, in order; of several rows at one place the last counts.

    Args:
        rows: lines of ``metrics.jsonl``.
        y: the column.
        x: the column of places.
        smooth: average neighbours, for a loss that is noisy from row to row.
    """
    points: dict[float, float] = {}
    for row in rows:
        place, value = row.get(x), row.get(y)
        if place is None or value is None or not np.isfinite([place, value]).all():
            continue
        if not points or place >= next(reversed(points)):
            points[float(place)] = float(value)
    values = list(points.values())
    if smooth:
        half_width = round(_SMOOTHED_SHARE * len(values))
        values = centred_mean(centred_mean(values, half_width), half_width)
    return Curve(np.array(list(points), np.float64), np.array(values, np.float64))


def mean_over_runs(curves: Sequence[Curve]) -> Curve:
    """The mean of several runs of one seed, as one curve."""
    if len(curves) == 1:
        return curves[0]
    x = common_places(curves)
    return Curve(x, np.mean([np.interp(x, c.x, c.y) for c in curves], axis=0))


def mean_curve(curves: Sequence[Curve], confidence: float) -> MeanCurve | None:
    """Mean and Student-t interval over seeds at every place that all of them cover, by linear interpolation.

    Args:
        curves: one for each seed.
        confidence: of the interval.

    Returns:
        None where a curve has no points or no place is covered by all.
    """
    if not curves or not all(map(len, curves)):
        return None
    x = common_places(curves)
    if not len(x):
        return None
    values = np.array([np.interp(x, c.x, c.y) for c in curves])  # (seeds, G)
    mean, n = values.mean(0), len(curves)
    half = t_quantile(confidence, n) * values.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros_like(mean)
    return MeanCurve(x, mean, mean - half, mean + half, n)


def common_places(curves: Sequence[Curve]) -> Values:
    """Places (G,) at which to average: curves of equally few points keep them, others get ``PLACES`` even ones.

    Runs validate at nearly the same budgets, the first step after each mark: the i-th points of all are one point.
    """
    counts = {len(c) for c in curves}
    if len(counts) == 1 and counts.pop() <= PLACES:
        return np.asarray(np.mean([c.x for c in curves], axis=0))
    first, last = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
    return np.linspace(first, last, PLACES) if first <= last else np.empty(0)


def first_reach(c: Curve, target: float, lower_is_better: bool = True) -> float | None:
    """The budget at which a curve is first as good as ``target``; None: never.

    Between two points the curve is a straight line:
    x = x0 + (x1 - x0) (y0 - target) / (y0 - y1). A curve that begins at the target or beyond reached it at its first
    point at the latest, and that point is the answer.
    """
    sign = 1.0 if lower_is_better else -1.0
    y, goal = sign * c.y, sign * target
    reached = np.flatnonzero(y <= goal)
    if not len(reached):
        return None
    after = int(reached[0])
    if after == 0:
        return float(c.x[0])
    x0, x1, y0, y1 = c.x[after - 1], c.x[after], y[after - 1], y[after]
    return float(x0 + (x1 - x0) * (y0 - goal) / (y0 - y1))
