"""The trend of a noisy series: one running value for the panel, one centred curve for the plot."""

from collections.abc import Sequence


class Smoothed:
    """Exponential mean of what it was given, without the pull towards zero that a plain one has at the start.

    ``decay`` is the weight that the past keeps at each new value; 0.9 remembers about ten. Adam's bias correction
    (Kingma and Ba 2015, equation 3 and the line after it) makes the first answer the first value itself.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> float:
        """Take one more value and return the mean with it."""
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self._sum / self._weight


def centred_mean(values: Sequence[float], half_width: int) -> list[float]:
    """Mean over ``half_width`` neighbours on both sides, ``len(values)`` results.

    At the start the window shrinks on both sides alike, so the steep beginning of a loss curve is not pulled sideways;
    at the end, where the curve is flat and only noise is left, it keeps all it has on its left.
    """
    totals = [0.0]
    for value in values:
        totals.append(totals[-1] + value)
    means = []
    for index in range(len(values)):
        reach = min(half_width, index)
        first, last = index - reach, min(index + reach + 1, len(values))
        means.append((totals[last] - totals[first]) / (last - first))
    return means
