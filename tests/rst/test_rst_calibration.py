"""Calibration on an imaginary machine: its speed drifts, some calls are disturbed, and no test waits for anything."""

import math
import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rst import (
    CalibrationError,
    CostTable,
    Provenance,
    TableError,
    Timing,
    Work,
    build_table,
    measure,
    probe_depths,
    probe_works,
)

PROVENANCE = Provenance("a machine", "bert 4x256", ("float32",), {}, "2026-01-01", "measured", ("first note",))


class Machine:
    """Callables of known price on a machine whose time this class keeps."""

    def __init__(
        self,
        slowness: Callable[[float], float] = lambda time_s: 1.0,
        jitter: float = 0.0,
        disturbed: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.time_s = 1000.0
        self.calls: list[object] = []
        self._slowness, self._jitter, self._disturbed = slowness, jitter, disturbed
        self._random = random.Random(seed)

    def now(self) -> float:
        return self.time_s

    def probe(self, name: object, price: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            seconds = price * self._slowness(self.time_s) * math.exp(self._random.gauss(0, self._jitter))
            if self._random.random() < self._disturbed:
                seconds *= self._random.uniform(3, 30)
            self.time_s += seconds

        return call


def true_price(work: Work) -> float:
    """Forward: 20 ms and 50 ms a layer; with backward 2.8 times that; an update 30 ms."""
    if work.kind == "update":
        return 0.03
    return (0.02 + 0.05 * work.layers) * (2.8 if work.kind == "forward_backward" else 1.0)


def probes_on(machine: Machine, works: list[Work]) -> dict[Work, Callable[[], None]]:
    return {work: machine.probe(work, true_price(work)) for work in works}


def test_a_quiet_machine_is_measured_exactly() -> None:
    machine = Machine()
    timings = measure(probes_on(machine, probe_works(4, 128, 16)), rounds=5, now=machine.now)
    for work, timing in timings.items():
        assert timing.seconds == pytest.approx(true_price(work), rel=1e-9)
        assert timing.spread == pytest.approx(0, abs=1e-9)
        assert timing.rounds == 5


@pytest.mark.parametrize("seed", range(6))
def test_drift_and_disturbances_do_not_change_ratios(seed: int) -> None:
    """Speed wanders over a factor of five within a minute, timings jitter by 1 %, 8 % of them take 3 to 30 times."""
    phase = random.Random(seed).uniform(0, math.tau)
    machine = Machine(
        lambda time_s: 5 ** (0.5 + 0.5 * math.sin(time_s / 20 + phase)), jitter=0.01, disturbed=0.08, seed=seed
    )
    works = probe_works(4, 128, 16)
    timings = measure(probes_on(machine, works), rounds=40, seed=seed, now=machine.now)
    reference = Work("forward_backward", 16, 128, 4)
    for work in works:
        ratio = timings[work].seconds / timings[reference].seconds
        assert ratio == pytest.approx(true_price(work) / true_price(reference), rel=0.02)


def test_prices_are_those_of_a_round_of_median_speed() -> None:
    """Slow for a third of the time by a factor of four: that is not the machine's speed."""
    machine = Machine(lambda time_s: 4.0 if time_s < 1040 else 1.0, jitter=0.01)
    timings = measure({"a": machine.probe("a", 1.0), "b": machine.probe("b", 0.25)}, rounds=25, now=machine.now)
    assert timings["a"].seconds == pytest.approx(1.0, rel=0.02)
    assert timings["b"].seconds == pytest.approx(0.25, rel=0.02)


def test_spread_is_the_scatter_that_is_left_without_the_drift() -> None:
    machine = Machine(lambda time_s: 2 + math.sin(time_s / 50), jitter=0.05)
    works = probe_works(8, 128, 16)
    timings = measure(probes_on(machine, works), rounds=60, now=machine.now)
    spreads = [timing.spread for timing in timings.values()]
    assert sum(spreads) / len(spreads) == pytest.approx(0.05, rel=0.2)


def test_every_round_times_every_probe_once_in_an_order_of_its_own_that_the_seed_decides() -> None:
    def rounds_of(seed: int) -> list[list[object]]:
        machine = Machine()
        probes = {name: machine.probe(name, 1.0) for name in range(6)}
        measure(probes, rounds=8, seed=seed, now=machine.now)
        timed = machine.calls[2 * 6 :]  # two warm-up calls of each
        return [timed[i : i + 6] for i in range(0, len(timed), 6)]

    rounds = rounds_of(0)
    assert len(rounds) == 8
    assert all(sorted(order, key=str) == list(range(6)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 4
    assert rounds_of(0) == rounds
    assert rounds_of(1) != rounds


def test_short_probes_are_repeated_until_a_timing_is_long_enough() -> None:
    machine = Machine()
    probes = {"short": machine.probe("short", 1 / 1024), "long": machine.probe("long", 0.5)}
    timings = measure(probes, rounds=5, min_timing_s=20 / 1024, now=machine.now)
    assert machine.calls.count("long") == 2 + 5
    assert machine.calls.count("short") == 2 + 5 * 20
    assert timings["short"].seconds == pytest.approx(1 / 1024)


def test_the_device_is_waited_for_before_and_after_each_timing() -> None:
    machine = Machine()
    waiting = 0.0

    def launch() -> None:
        nonlocal waiting
        waiting += 1.0

    def synchronize() -> None:
        nonlocal waiting
        machine.time_s, waiting = machine.time_s + waiting, 0.0

    timings = measure({"launch": launch}, rounds=5, now=machine.now, synchronize=synchronize)
    assert timings["launch"].seconds == pytest.approx(1.0)


@pytest.mark.parametrize("within_s", [30.0, 60.0, 1.0])
def test_measuring_ends_in_the_time_it_is_given_but_not_before_five_rounds(within_s: float) -> None:
    machine = Machine()
    told: list[float] = []
    probes = {"a": machine.probe("a", 1.0), "b": machine.probe("b", 2.0)}  # a round takes 3 s, warming up 6 s
    timings = measure(probes, rounds=100, within_s=within_s, now=machine.now, progress=told.append)
    rounds = max(5, int((within_s - 6) / 3))
    assert timings["a"].rounds == rounds
    assert machine.time_s == 1000 + 6 + 3 * rounds
    assert len(told) == rounds
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_probes_that_take_no_time_and_too_few_rounds_are_refused() -> None:
    machine = Machine()
    with pytest.raises(CalibrationError, match="did not move"):
        measure({"nothing": lambda: None}, now=machine.now)
    with pytest.raises(ValueError, match="rounds=2"):
        measure({"a": machine.probe("a", 1.0)}, rounds=2, now=machine.now)


@given(layers=st.integers(1, 200))
def test_depths_to_probe(layers: int) -> None:
    depths = probe_depths(layers)
    assert depths[0] == 0
    assert depths[-1] == layers
    assert depths == sorted(set(depths))
    assert len(depths) == min(5, layers + 1)


def timings_of(price: Callable[[Work], float], works: list[Work]) -> dict[Work, Timing]:
    return {work: Timing(price(work), 0.01, 9) for work in works}


@settings(max_examples=30)
@given(layers=st.integers(1, 40), sequences=st.integers(1, 64))
def test_a_table_from_exact_timings_has_the_true_price_at_every_depth(layers: int, sequences: int) -> None:
    table = build_table(timings_of(true_price, probe_works(layers, 128, sequences)), PROVENANCE)
    assert table.layers == layers
    assert table.seconds(Work("update")) == 0.03
    for depth in range(layers + 1):
        for kind in ("forward", "forward_backward"):
            work = Work(kind, sequences, 128, depth)  # type: ignore[arg-type]
            assert table.seconds(work) == pytest.approx(true_price(work), rel=1e-9)
    assert table.provenance.notes[0] == "first note"
    assert not any("straightened" in note for note in table.provenance.notes)


def test_measured_to_table_on_a_drifting_machine() -> None:
    machine = Machine(lambda time_s: 2 + math.sin(time_s / 15), jitter=0.04, disturbed=0.05, seed=3)
    table = build_table(measure(probes_on(machine, probe_works(12, 128, 16)), rounds=25, now=machine.now), PROVENANCE)
    full = table.seconds(Work("forward_backward", 16, 128, 12))
    for depth in (1, 3, 7, 10):
        work = Work("forward_backward", 16, 128, depth)
        true_ratio = true_price(work) / true_price(Work("forward_backward", 16, 128, 12))
        assert table.seconds(work) / full == pytest.approx(true_ratio, rel=0.04)


def distorted(changes: Mapping[tuple[str, int], float]) -> Callable[[Work], float]:
    return lambda work: true_price(work) * changes.get((work.kind, work.layers), 1.0)


@pytest.mark.parametrize("changes", [{("forward", 5): 0.6}, {("forward_backward", 8): 1.5}, {("forward", 0): 8.0}])
def test_a_column_that_noise_has_bent_is_straightened_and_says_so(changes: dict[tuple[str, int], float]) -> None:
    table = build_table(timings_of(distorted(changes), probe_works(12, 128, 16)), PROVENANCE)
    ((kind, _),) = changes
    straightened = [note for note in table.provenance.notes if "straightened" in note]
    assert len(straightened) == 1
    assert straightened[0].startswith(f"{kind}, length 128")
    for depth in range(1, 13):
        work = Work(kind, 16, 128, depth)  # type: ignore[arg-type]
        assert table.seconds(work) == pytest.approx(true_price(work), rel=0.1)


def test_the_first_layer_may_cost_less_than_the_others() -> None:
    """The kink at 1 layer is real where the last layer is computed at predicted positions only: it stays."""

    def kinked(work: Work) -> float:
        return true_price(work) - (0.04 if work.kind == "forward" and work.layers > 0 else 0.0)

    table = build_table(timings_of(kinked, probe_works(12, 128, 16)), PROVENANCE)
    for depth in range(13):
        work = Work("forward", 16, 128, depth)
        assert table.seconds(work) == pytest.approx(kinked(work), rel=1e-9)
    assert not any("straightened" in note for note in table.provenance.notes)


@pytest.mark.parametrize(
    "seconds",
    [
        (0.0975, 0.12, 0.172, 0.22, 0.905),  # one depth disturbed so much that no line is left
        (0.05, 0.049, 0.048, 0.047, 0.046),
        (0.1, 0.9, 0.1, 0.9, 0.1),
    ],
)
def test_a_column_that_is_no_line_at_all_makes_no_table(seconds: tuple[float, ...]) -> None:
    def price(work: Work) -> float:
        return seconds[work.layers] if work.kind == "forward" else 1.0 + work.layers

    with pytest.raises(CalibrationError, match=rf"does not grow.*0: {seconds[0]} s.*too busy"):
        build_table(timings_of(price, probe_works(4, 128, 16)), PROVENANCE)


def test_no_layers_cost_less_than_one_even_where_noise_says_otherwise() -> None:
    seconds = (0.172, 0.162, 0.394, 0.762, 0.862)

    def price(work: Work) -> float:
        return seconds[work.layers] if work.kind == "forward" else 1.0 + work.layers

    table = build_table(timings_of(price, probe_works(4, 128, 16)), PROVENANCE)
    assert table.forward[128][0] < table.forward[128][1]
    assert table.forward[128][4] == pytest.approx(0.862, rel=0.02)


def test_a_single_layer_makes_a_table() -> None:
    table = build_table(timings_of(true_price, probe_works(1, 128, 16)), PROVENANCE)
    assert table.forward[128] == pytest.approx((0.02, 0.07))
    noisy = build_table(timings_of(distorted({("forward_backward", 0): 5.0}), probe_works(1, 128, 16)), PROVENANCE)
    assert noisy.forward_backward[128][0] < noisy.forward_backward[128][1] == pytest.approx(0.07 * 2.8)


def test_forward_that_costs_as_much_as_both_makes_no_table() -> None:
    with pytest.raises(TableError, match="not less"):
        build_table(timings_of(lambda work: 1.0 + work.layers, probe_works(4, 128, 16)), PROVENANCE)


@pytest.mark.parametrize(
    "missing",
    [Work("forward", 16, 128, 0), Work("forward", 16, 128, 1), Work("forward", 16, 128, 4), Work("update")],
    ids=["0 layers", "1 layer", "all layers", "update"],
)
def test_a_table_needs_no_layers_one_layer_all_layers_and_an_update(missing: Work) -> None:
    works = [work for work in probe_works(4, 128, 16) if work != missing]
    with pytest.raises(CalibrationError):
        build_table(timings_of(true_price, works), PROVENANCE)


@pytest.mark.parametrize("short", [16, 32])
def test_a_table_may_have_several_lengths(short: int) -> None:
    """Prices of a length are those of a sequence, however many of them were measured at a time."""

    def price(work: Work) -> float:
        return true_price(work) * work.sequences / 16 * max(1, work.length) / 128 if work.length else 0.03

    works = [*probe_works(4, 64, short), *probe_works(4, 128, 16)]
    table: CostTable = build_table(timings_of(price, list(dict.fromkeys(works))), PROVENANCE)
    assert table.sequences == 16
    for layers in range(5):
        half, full = Work("forward", 16, 64, layers), Work("forward", 16, 128, layers)
        assert table.seconds(full) == pytest.approx(true_price(full))
        assert table.seconds(half) == pytest.approx(table.seconds(full) / 2)


def test_passes_of_one_length_are_over_one_number_of_sequences() -> None:
    works = [*probe_works(4, 128, 16), Work("forward", 8, 128, 4)]
    with pytest.raises(CalibrationError, match="one number of sequences for each length"):
        build_table(timings_of(true_price, works), PROVENANCE)


def test_what_comes_every_so_many_calls_is_in_the_price_of_all() -> None:
    """Nine calls of 30 ms and one of 330: a probe that makes ten of them says so."""
    machine = Machine()
    parts = [machine.probe("update", 0.03 if n else 0.33) for n in range(10)]

    def ten() -> None:
        for part in parts:
            part()

    ten.times = 10  # type: ignore[attr-defined]
    timings = measure({"update": ten, "pass": machine.probe("pass", 0.5)}, rounds=5, now=machine.now)
    assert timings["update"].seconds == pytest.approx(0.06)
    assert timings["pass"].seconds == pytest.approx(0.5)
