"""The order of a streamed corpus: shards by chance, then the rows of a few shards by chance. A pure function.

An epoch permutes the shards, takes them in *windows* of a few, and permutes the rows of each window. So only a window's
shards are needed at a time, and which row stands at a place follows from (key, epoch, place) and the sizes of the
shards alone: on any number of ranks, and wherever a run goes on.

Several streams are mixed in exact proportions: every period of T places gives each stream its number of them, spread
evenly. Each stream goes through its own passes without regard to the epochs of the mixture. A row that a stream brings
for the r-th time again within one epoch has the id ``row + r x (rows of the corpus)``, so that it is masked anew.

Shape legend: H shards, n places, T places of a period.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np
from numpy.typing import NDArray

from cramming.data.permutation import Permutation

LONGEST_PERIOD = 10_000  # places: proportions are exact to four digits

Ints = NDArray[np.int64]


class Pass:
    """One pass over the shards of a stream."""

    def __init__(self, order: "WindowOrder", number: int) -> None:
        self._order = order
        self._number = number
        self._shards = Permutation(len(order.counts), *order.key, "shards", number)(np.arange(len(order.counts)))
        firsts = np.arange(0, len(self._shards), order.window)
        ends = np.add.reduceat(order.counts[self._shards], firsts).cumsum()
        self._starts = np.concatenate([[0], ends])  # the place each window begins with, and the end

    @property
    def windows(self) -> int:
        """How many."""
        return len(self._starts) - 1

    def window(self, places: Ints) -> Ints:
        """The window of each place (n,) -> (n,)."""
        return np.searchsorted(self._starts, places, side="right") - 1

    def shards(self, window: int) -> list[int]:
        """Numbers of the shards of a window."""
        return self._order.numbers[self._members(window)].tolist()  # type: ignore[no-any-return]

    def rows(self, places: Ints) -> Ints:
        """The rows at places of the pass, (n,) -> (n,)."""
        found = np.empty_like(places)
        windows = self.window(places)
        for window in np.unique(windows).tolist():
            here = windows == window
            start, end = self._starts[window : window + 2].tolist()
            mixed = Permutation(end - start, *self._order.key, "rows", self._number, window)(places[here] - start)
            members = self._members(window)
            counts = self._order.counts[members]
            ends = counts.cumsum()
            which = np.searchsorted(ends, mixed, side="right")
            found[here] = self._order.firsts[members][which] + mixed - (ends - counts)[which]
        return found

    def _members(self, window: int) -> Ints:
        size = self._order.window
        return self._shards[window * size : (window + 1) * size]


class WindowOrder:
    """The passes of one stream.

    Args:
        numbers: of its shards, (H,).
        firsts: the row each begins with, (H,).
        counts: how many of its rows train, (H,).
        window: shards whose rows are mixed with one another.
        key: of this order.
    """

    def __init__(self, numbers: Ints, firsts: Ints, counts: Ints, window: int, *key: int | str) -> None:
        held = counts > 0
        self.numbers, self.firsts, self.counts = numbers[held], firsts[held], counts[held]
        self.window = min(window, len(self.counts))
        self.key = key
        self.rows = int(counts.sum())
        self.pass_ = lru_cache(maxsize=3)(lambda number: Pass(self, number))  # O(shards) each

    def at(self, places: Ints) -> Ints:
        """The rows at places of the endless sequence of passes, (n,) -> (n,)."""
        passes = places // self.rows
        found = np.empty_like(places)
        for number in np.unique(passes).tolist():
            here = passes == number
            found[here] = self.pass_(number).rows(places[here] - number * self.rows)
        return found

    def needs(self, first: int, last: int, ahead: int) -> tuple[list[int], list[int]]:
        """The shards of the places ``first`` to ``last``, and of windows behind: a window's and ``ahead`` together."""
        begun, place = divmod(first, self.rows)
        window = int(self.pass_(begun).window(np.array([place]))[0])
        ended, place = divmod(last, self.rows)
        end = (ended, int(self.pass_(ended).window(np.array([place]))[0]))
        now: list[int] = []
        soon: list[int] = []
        at = (begun, window)
        while at <= end or len(now) + len(soon) < self.window + ahead:
            one = self.pass_(at[0])
            (now if at <= end else soon).extend(one.shards(at[1]))
            at = (at[0], at[1] + 1) if at[1] + 1 < one.windows else (at[0] + 1, 0)
        return now, soon


class Interleaved:
    """Streams mixed by weight.

    Args:
        streams: at least one.
        weights: of each, above 0; only their proportions matter.
        rows: of the whole corpus, held-out ones included: what ids of repeated rows are shifted by.
    """

    def __init__(self, streams: Sequence[WindowOrder], weights: Sequence[float], rows: int) -> None:
        self.streams = streams
        self.epoch_rows = sum(stream.rows for stream in streams)
        self._rows = rows
        self._shares = np.array(shares(weights))  # places of a period, by stream
        self._period = int(self._shares.sum())
        middles = np.concatenate([(np.arange(share) + 0.5) / share for share in self._shares])
        owners = np.repeat(np.arange(len(streams)), self._shares)
        self._owner = owners[np.argsort(middles, kind="stable")]  # (T,) the stream at each place of a period
        before = [np.concatenate([[0], (self._owner == number).cumsum()]) for number in range(len(streams))]
        self._before = np.stack(before)  # (streams, T + 1) how many of a stream come before a place of a period

    def ids(self, epoch: int, places: Ints) -> Ints:
        """The rows at places of an epoch, (n,) -> ids (n,)."""
        at = epoch * self.epoch_rows + places
        found = np.empty_like(places)
        owner = self._owner[at % self._period]
        for number, stream in enumerate(self.streams):
            here = owner == number
            if here.any():
                own = self._own(number, at[here])
                repeated = own // stream.rows - self._own(number, np.array([epoch * self.epoch_rows])) // stream.rows
                found[here] = stream.at(own) + repeated * self._rows
        return found

    def needs(self, epoch: int, first: int, last: int, ahead: int) -> tuple[list[int], list[int]]:
        """The shards of the places ``first`` to ``last`` of an epoch; and those after, in the order of need."""
        now: list[int] = []
        later: list[list[int]] = []
        start = epoch * self.epoch_rows
        for number, stream in enumerate(self.streams):
            begin, end = self._own(number, np.array([start + first, start + last + 1])).tolist()
            own, soon = stream.needs(begin, max(begin, end - 1), ahead)
            now += own
            later.append(soon)
        longest = max(map(len, later))
        return now, [soon[turn] for turn in range(longest) for soon in later if turn < len(soon)]

    def _own(self, stream: int, at: Ints) -> Ints:
        """How many of a stream come before places of the endless sequence, (n,) -> (n,)."""
        periods, rest = np.divmod(at, self._period)
        return periods * self._shares[stream] + self._before[stream][rest]


def shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to weights, at least 1 each and about ``LONGEST_PERIOD`` together at most.

    ``[0.7, 0.3]`` -> ``[7, 3]``: exact, unless more digits are asked for than fit.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    parts = [one / sum(exact) for one in exact]
    period = lcm(*(part.denominator for part in parts))
    if period <= LONGEST_PERIOD:
        return [int(part * period) for part in parts]
    return [max(1, round(part * LONGEST_PERIOD)) for part in parts]
