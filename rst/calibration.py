"""Measuring prices on a machine that does not hold still.

The speed of a shared machine drifts, by factors and within minutes, and single timings are disturbed by whatever else
runs. So every round times every probe once, in an order drawn anew, and all timings are explained together as

    log seconds(timing) = price(probe) + slowness(time) + noise

fitted by medians, alternating between the two (a robust backfit in the manner of Tukey's median polish, "Exploratory
Data Analysis", 1977, chapter 11): a price is the median over its timings, and the slowness at a timing is the Theil-Sen
line through the timings around it. A stretch in which everything is slow changes no price, and neither does a minority
of disturbed timings. Prices are those of the machine's median speed while it was measured.
"""

import math
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import TypeVar

from rst.table import LINE_TOLERANCE, Column, CostTable, Provenance, line_through, off_the_line
from rst.work import Kind, Work

P = TypeVar("P", bound=Hashable)

# How the numbers come about; part of the identity of a stored table. Raise it when a change here changes them.
PROTOCOL = 1
MIN_ROUNDS = 5
SWEEPS = 5
WINDOW = 11  # timings around a timing that say how slow the machine was then
MAX_CALLS = 10_000
ALMOST = 0.95  # of the cost of 1 layer is the cost of none where all that is known is that it must be less
MAD_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


class CalibrationError(ValueError):
    """Measurements that no cost table can be made of: one line."""


@dataclass(frozen=True)
class Timing:
    """What one probe costs.

    Attributes:
        seconds: price of one call at the machine's median speed.
        spread: robust standard deviation of single timings, as a share of the price, after the drift of the machine's
            speed is taken out.
        rounds: how many timings it comes from.
    """

    seconds: float
    spread: float
    rounds: int


def measure(
    probes: Mapping[P, Callable[[], None]],
    *,
    rounds: int = 25,
    within_s: float | None = None,
    min_timing_s: float = 0.02,
    seed: int = 0,
    now: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[P, Timing]:
    """Time callables against each other.

    Args:
        probes: what to call, by any name; one that does its work several times in a call says so in an attribute
            ``times``, and its price is that of once.
        rounds: how many timings of each probe.
        within_s: begin no round that would end later than this many seconds after the start; at least 5 rounds are made
            all the same. None: make all ``rounds``.
        min_timing_s: a timing repeats a shorter probe until about this much time is filled, because clocks tick, and
            because a device that works on its own is only kept busy by calls that follow one another.
        seed: of the order of probes.
        now: reads a monotonic clock, in seconds.
        synchronize: waits for a device that works on its own.
        progress: told the share done, in [0, 1], after every round.

    Raises:
        CalibrationError: a probe took no time at all.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(f"rounds={rounds}: must be at least {MIN_ROUNDS}")

    def timed(probe: P, calls: int) -> tuple[float, float]:
        if synchronize is not None:
            synchronize()
        start_s = now()
        for _ in range(calls):
            probes[probe]()
        if synchronize is not None:
            synchronize()
        took_s = now() - start_s
        return start_s + took_s / 2, took_s / (calls * getattr(probes[probe], "times", 1))

    began_s = now()
    calls = {}
    for probe in probes:
        timed(probe, 1)  # compiles, fills caches
        calls[probe] = min(MAX_CALLS, math.ceil(min_timing_s / max(timed(probe, 1)[1], min_timing_s / MAX_CALLS)))

    order = list(probes)
    shuffle = random.Random(seed).shuffle
    timings: list[tuple[P, float, float]] = []  # probe, middle of the timing, seconds of one call
    for done in range(1, rounds + 1):
        round_s = now()
        shuffle(order)
        for probe in order:
            timings.append((probe, *timed(probe, calls[probe])))
        elapsed_s, round_s = now() - began_s, now() - round_s
        late = within_s is not None and elapsed_s + round_s > within_s and done >= MIN_ROUNDS
        if progress is not None:
            by_time = 0.0 if within_s is None else min(1.0, elapsed_s / within_s)
            progress(1.0 if late else max(done / rounds, by_time))
        if late:
            break
    return _fit(timings)


def probe_depths(layers: int) -> list[int]:
    """The depths worth measuring for a model of ``layers`` layers: 0, 1, about L/3 and 2L/3, and L, ascending."""
    return sorted({0, *(1 + round((layers - 1) * third / 3) for third in range(4))})


def probe_works(layers: int, length: int, sequences: int) -> list[Work]:
    """The work to measure for a table of one model at one length, ``sequences`` to the reference microbatch."""
    kinds: tuple[Kind, ...] = ("forward", "forward_backward")
    passes = [Work(kind, sequences, length, depth) for kind in kinds for depth in probe_depths(layers)]
    return [*passes, Work("update")]


def build_table(timings: Mapping[Work, Timing], provenance: Provenance) -> CostTable:
    """A cost table from measured work: depths between the measured ones are interpolated linearly.

    A column that noise has put out of order, or far off the line that depth must give, is replaced by its robust line
    if at least half of the measured depths lie close to that. Notes in the provenance say so, and say what was measured
    and how much timings scattered.

    Args:
        timings: passes at 0, 1 and L layers and at some depths between, for both kinds and for every length; and one
            update. The passes of a length are over one number of sequences, those of another length may be over
            another; the table's reference microbatch is that of the longest.

    Raises:
        CalibrationError: the cost does not grow with depth as a line, or the measured work does not make up a table.
        TableError: the result cannot be right (forward costs as much as forward and backward, ...).
    """
    passes = {work: timing for work, timing in timings.items() if work.kind != "update"}
    updates = [timing.seconds for work, timing in timings.items() if work.kind == "update"]
    sizes = {length: {w.sequences for w in passes if w.length == length} for length in {w.length for w in passes}}
    if not sizes or max(map(len, sizes.values())) != 1 or len(updates) != 1:
        raise CalibrationError(
            f"a table needs one update and one number of sequences for each length; got {len(updates)} and {sizes}"
        )
    sequences = {length: next(iter(size)) for length, size in sizes.items()}
    reference = sequences[max(sequences)]
    layers = max(work.layers for work in passes)
    columns: dict[Kind, dict[int, Column]] = {"forward": {}, "forward_backward": {}}
    notes = []
    for kind, length in sorted({(work.kind, work.length) for work in passes}):
        column = {work.layers: timing for work, timing in passes.items() if (work.kind, work.length) == (kind, length)}
        scale = reference / sequences[length]
        points = {depth: column[depth].seconds * scale for depth in sorted(column)}
        where = f"{kind}, length {length}"
        if layers == 0 or not {0, 1, layers} <= points.keys():
            raise CalibrationError(f"{where}: measured at {list(points)} layers; a table needs 0, 1 and all layers")
        columns[kind][length], note = column_through(points)
        spread = median(timing.spread for timing in column.values())
        notes.append(
            f"{where}: measured at {', '.join(map(str, points))} layers, timings scatter by {spread:.1%}{note}"
        )
    rounds = min(timing.rounds for timing in timings.values())
    return CostTable(
        sequences=reference,
        forward=columns["forward"],
        forward_backward=columns["forward_backward"],
        update_s=updates[0],
        provenance=replace(
            provenance,
            notes=(
                *provenance.notes,
                f"medians over {rounds} interleaved rounds, drift of the machine taken out",
                *notes,
            ),
        ),
    )


def _fit(timings: Sequence[tuple[P, float, float]]) -> dict[P, Timing]:
    """(probe, time, seconds), in order of time -> prices."""
    for probe, _, seconds in timings:
        if seconds <= 0:
            raise CalibrationError(f"probe {probe} took {seconds} s: the clock did not move")
    times = [time_s for _, time_s, _ in timings]
    logs = [math.log(seconds) for _, _, seconds in timings]
    places: dict[P, list[int]] = {}
    for i, (probe, _, _) in enumerate(timings):
        places.setdefault(probe, []).append(i)

    slowness = [0.0] * len(timings)
    price = {probe: median(logs[i] for i in mine) for probe, mine in places.items()}
    for _ in range(SWEEPS):
        excess = [log - price[probe] for log, (probe, _, _) in zip(logs, timings, strict=True)]
        slowness = [_local(times, excess, i) for i in range(len(timings))]
        price = {probe: median(logs[i] - slowness[i] for i in mine) for probe, mine in places.items()}
    level = median(slowness)
    return {
        probe: Timing(
            seconds=math.exp(price[probe] + level),
            spread=MAD_TO_SIGMA * median(abs(logs[i] - slowness[i] - price[probe]) for i in mine),
            rounds=len(mine),
        )
        for probe, mine in places.items()
    }


def _local(times: Sequence[float], values: Sequence[float], i: int) -> float:
    """The value at place ``i`` of the line through the values around it."""
    start = max(0, min(i - WINDOW // 2, len(times) - WINDOW))
    window = slice(start, start + WINDOW)
    around = [(time_s - times[i], value) for time_s, value in zip(times[window], values[window], strict=True)]
    return line_through(around)[0]


def column_through(points: Mapping[int, float]) -> tuple[Column, str]:
    """Seconds at some depths -> seconds at every depth from 0 to L, and a note if they had to be straightened.

    Raises:
        CalibrationError: they do not grow with depth as a line.
    """
    column: list[float] = []
    for (low, less), (high, more) in pairwise(sorted(points.items())):
        column += [less + (more - less) * (depth - low) / (high - low) for depth in range(low, high)]
    interpolated = (*column, points[max(points)])
    if all(less < more for less, more in pairwise(interpolated)) and off_the_line(interpolated) is None:
        return interpolated, ""
    slanted = [point for point in points.items() if point[0] > 0]
    intercept, slope = line_through(slanted) if len(slanted) > 1 else (0.0, points[1])
    straight = [intercept + slope * depth for depth in range(len(interpolated))]
    if 0 < points[0] < straight[1]:
        straight[0] = points[0]
    elif straight[0] <= 0:
        straight[0] = ALMOST * straight[1]
    measured = ", ".join(f"{depth}: {seconds:.4g} s" for depth, seconds in points.items())
    near = sum(abs(seconds - straight[depth]) <= LINE_TOLERANCE * straight[depth] for depth, seconds in slanted)
    if slope <= 0 or min(straight) <= 0 or 2 * near < len(slanted):
        raise CalibrationError(
            f"the measured cost does not grow with depth as a line above zero ({measured}): the machine is too busy; "
            "calibrate again when it is quieter, or give it more seconds"
        )
    return tuple(straight), f"; straightened, measured {measured}"
