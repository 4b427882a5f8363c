"""Every schedule: bounds, ends, joints, monotone pieces. Curves of the earlier systems: test_schedule_golden.py."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cramming import schedule
from cramming.errors import UserError
from cramming.registry import kinds, lookup

KINDS = [
    "constant", "cosine", "cosine_annealing", "dive", "inv_cosine", "inverse_sqrt", "linear", "multi_cycle",
    "one_cycle", "polynomial", "ramp", "trapezoid", "triangle", "exponential", "inverse_time",
]  # fmt: skip
IN_STEPS = ("step", "elastic_step_decay", "piecewise_constant", "piecewise_inverse_time")  # see test_schedule_steps.py
share = st.floats(0.01, 0.5)
progress = st.floats(0.0, 1.0)
cycles = st.integers(1, 9)
unhurried = settings(deadline=None, derandomize=True, max_examples=100)


@st.composite
def schedules(draw: st.DrawFn) -> schedule.Schedule:
    """Any schedule with any legal values."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "one_cycle":
        return schedule.OneCycle()
    if kind == "multi_cycle":
        return schedule.MultiCycle(cycles=draw(cycles))
    if kind == "triangle":
        return schedule.Triangle(start=draw(progress), peak=draw(st.floats(0.01, 0.99)))
    if kind == "dive":
        return schedule.Dive(warmup=draw(share), phi=draw(share))
    if kind in ("ramp", "inv_cosine"):
        return lookup("train/schedule", kind)(cooldown=draw(share))
    phases = {"warmup": draw(share), "cooldown": draw(share)}
    if kind in ("linear", "cosine", "cosine_annealing", "polynomial", "exponential"):
        phases["end"] = draw(st.floats(0.01, 1.0) if kind == "exponential" else progress)
        phases["hold"] = draw(st.floats(0.0, 1.0 - phases["warmup"] - phases["cooldown"]))
    if kind == "inverse_time":
        phases["strength"] = draw(st.floats(0.1, 30.0))
    if kind == "polynomial":
        phases["power"] = draw(st.floats(0.25, 4.0))
    if kind == "cosine_annealing":
        phases["cycles"] = draw(cycles)
    return lookup("train/schedule", kind)(**phases)


def restarts(curve: schedule.Schedule) -> list[float]:
    """Where a schedule jumps back to 1."""
    if not isinstance(curve, schedule.CosineAnnealing):
        return []
    begin = curve.warmup + curve.hold
    places = [begin + (1.0 - begin) * i / curve.cycles for i in range(1, curve.cycles)]
    return [place for place in places if place < 1.0 - curve.cooldown - 1e-6]


def joints(curve: schedule.Schedule) -> list[float]:
    """Where a schedule goes over from one piece to the next, ends included."""
    if isinstance(curve, schedule.MultiCycle):
        return [i / (2 * curve.cycles) for i in range(2 * curve.cycles + 1)]
    if isinstance(curve, schedule.OneCycle):
        return [0.0, 0.5, 1.0]
    if isinstance(curve, schedule.Triangle):
        return [0.0, curve.peak, 1.0]
    found = {0.0, 1.0 - curve.cooldown, *restarts(curve), 1.0}
    warm = getattr(curve, "warmup", 0.0)
    found |= {warm, warm + getattr(curve, "hold", 0.0), 1.0 - getattr(curve, "phi", 0.0)}
    return sorted(found)


def test_the_promised_kinds_are_registered_with_a_config_file_each() -> None:
    assert {*KINDS, *IN_STEPS} == set(kinds("train/schedule"))
    folder = Path(__file__).resolve().parents[1] / "config" / "train" / "schedule"
    for kind in (*KINDS, *IN_STEPS):
        defaults = OmegaConf.load(folder / f"{kind}.yaml").defaults
        assert list(defaults) == [f"schema_{kind}", "_self_"]
        assert (folder / f"{kind}.yaml").read_text().startswith("# ")


@unhurried
@given(schedules(), progress)
def test_factors_are_between_0_and_1(curve: schedule.Schedule, at: float) -> None:
    assert 0.0 <= curve(at) <= 1.0


@unhurried
@given(schedules())
def test_the_factor_reaches_1_unless_it_is_cooled_down_before(curve: schedule.Schedule) -> None:
    highest = max(curve(joint) for joint in joints(curve))
    if curve.kind in ("ramp", "inv_cosine"):
        assert curve(1.0 - curve.cooldown) == highest < 1.0  # type: ignore[attr-defined]
        assert lookup("train/schedule", curve.kind)()(1.0) == 1.0
    else:
        assert highest == pytest.approx(1.0, abs=1e-12)


@unhurried
@given(schedules())
def test_the_factor_jumps_nowhere_but_at_restarts(curve: schedule.Schedule) -> None:
    jumps = restarts(curve)
    if isinstance(curve, schedule.CosineAnnealing):  # a restart just where it cools down may fall on either side of it
        begin = curve.warmup + curve.hold
        assume(begin < 0.99)
        done = (1.0 - curve.cooldown - begin) / (1.0 - begin) * curve.cycles
        assume(abs(done - round(done)) > 1e-3)
    for joint in joints(curve):
        before, after = curve(joint - 1e-10), curve(joint + 1e-10)
        if joint in jumps:
            assert before == pytest.approx(curve.end, abs=1e-6)  # type: ignore[attr-defined]
            assert after == pytest.approx(1.0, abs=1e-6)
        else:
            assert before == pytest.approx(after, abs=1e-3)  # a square root moves by 1e-4 within 1e-10


@unhurried
@given(schedules(), st.data())
def test_between_joints_the_factor_only_rises_or_only_falls(curve: schedule.Schedule, data: st.DataObject) -> None:
    marks = joints(curve)
    piece = data.draw(st.integers(0, len(marks) - 2))
    left, right = marks[piece] + 1e-9, marks[piece + 1] - 1e-9
    if left >= right:
        return
    points = sorted(data.draw(st.tuples(*[st.floats(left, right)] * 2)))
    values = [curve(at) for at in (left, *points, right)]
    direction = 1 if values[-1] >= values[0] else -1
    for before, after in pairwise(values):
        assert direction * (after - before) >= -1e-12


@unhurried
@given(schedules(), st.floats(0.0, 10.0))
def test_progress_beyond_the_ends_is_clipped(curve: schedule.Schedule, beyond: float) -> None:
    assert curve(-beyond) == curve(0.0)
    assert curve(1.0 + beyond) == curve(1.0)


@pytest.mark.parametrize(
    ("curve", "points"),
    [
        (schedule.Constant(), {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        (schedule.Constant(warmup=0.1, cooldown=0.2), {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.8: 1.0, 0.9: 0.5, 1.0: 0.0}),
        (schedule.Linear(), {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        (schedule.Linear(warmup=0.06, end=0.02), {0.03: 0.5, 0.06: 1.0, 0.53: 0.51, 1.0: 0.02}),
        (schedule.Cosine(), {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0}),
        (schedule.Polynomial(power=2.0), {0.0: 1.0, 0.5: 0.25, 0.9: 0.01, 1.0: 0.0}),
        (schedule.InverseSqrt(warmup=0.04), {0.02: 0.5, 0.04: 1.0, 0.16: 0.5, 0.64: 0.25, 1.0: 0.2}),
        (schedule.InverseSqrt(warmup=0.16, cooldown=0.36), {0.64: 0.5, 0.82: 0.25, 1.0: 0.0}),
        (
            schedule.CosineAnnealing(),
            {0.0: 1.0, 1 / 16: 0.853553, 1 / 8: 0.5, 0.25: 1.0, 0.375: 0.5, 0.75: 1.0, 1.0: 0.0},
        ),
        (
            schedule.CosineAnnealing(cycles=2, warmup=0.5, end=0.5),
            {0.25: 0.5, 0.5: 1.0, 0.75: 1.0, 1.0: 0.5},
        ),
        (schedule.Dive(), {0.0: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        (schedule.Dive(warmup=0.1, phi=0.25), {0.05: 0.5, 0.1: 1.0, 0.75: 1.0, 0.9: 0.4, 1.0: 0.0}),
        (schedule.Rise(cooldown=0.2), {0.0: 0.0, 0.5: 0.5, 0.8: 0.8, 0.9: 0.4, 1.0: 0.0}),
        (schedule.InverseCosine(), {0.0: 0.0, 1 / 3: 0.25, 0.5: 0.5, 1.0: 1.0}),
        (schedule.InverseCosine(cooldown=0.5), {0.25: 0.146447, 0.5: 0.5, 0.75: 0.25, 1.0: 0.0}),
        (schedule.MultiCycle(), {0.0: 0.0, 1 / 16: 1.0, 3 / 32: 0.5, 0.125: 0.0, 0.1875: 1.0, 1.0: 0.0}),
        (schedule.MultiCycle(cycles=1), {0.25: 0.5, 0.5: 1.0, 1.0: 0.0}),
        (schedule.OneCycle(), {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        (schedule.Triangle(), {0.0: 0.25, 0.375: 0.625, 0.75: 1.0, 0.875: 0.5, 1.0: 0.0}),
        (schedule.Triangle(start=0.5, peak=1.0), {0.0: 0.5, 0.5: 0.75, 1.0: 1.0}),
        (schedule.Trapezoid(warmup=0.1, cooldown=0.4), {0.05: 0.5, 0.1: 1.0, 0.6: 1.0, 0.7: 0.5, 0.925: 0.0986, 1: 0}),
    ],
)
def test_values_worked_out_by_hand(curve: schedule.Schedule, points: dict[float, float]) -> None:
    for at, expected in points.items():
        assert curve(at) == pytest.approx(expected, abs=2e-5), at


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: schedule.Linear(warmup=x),
        lambda x: schedule.Trapezoid(cooldown=x),
        lambda x: schedule.Rise(cooldown=x),
        lambda x: schedule.Dive(phi=x),
        lambda x: schedule.Cosine(end=x),
        lambda x: schedule.Triangle(start=x),
        lambda x: schedule.Triangle(peak=x),
        lambda x: schedule.Ramp(1.0, 2.0, until=x),
    ],
)
def test_a_value_that_is_no_share_is_refused_with_the_value(make: Callable[[float], object], bad: float) -> None:
    with pytest.raises(UserError, match=str(bad)):
        make(bad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedule.Constant(warmup=0.6, cooldown=0.5),
        lambda: schedule.InverseSqrt(warmup=0.0),
        lambda: schedule.Polynomial(power=0.0),
        lambda: schedule.Polynomial(power=math.nan),
        lambda: schedule.CosineAnnealing(cycles=0),
        lambda: schedule.MultiCycle(cycles=0),
        lambda: schedule.Dive(phi=0.0),
        lambda: schedule.Dive(warmup=0.6, phi=0.5),
        lambda: schedule.Ramp(math.nan, 1.0),
        lambda: schedule.Ramp(1.0, math.inf),
        lambda: schedule.Ramp(1.0, 2.0, until=0.0),
    ],
)
def test_values_that_describe_no_curve_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()


def test_the_same_check_guards_a_typed_config() -> None:
    node = OmegaConf.merge(OmegaConf.structured(schedule.Linear), {"warmup": 2})
    with pytest.raises(UserError, match=r"warmup=2\.0"):
        OmegaConf.to_object(node)


@unhurried
@given(st.floats(1.0, 1e4), st.floats(1.0, 1e4), st.floats(0.01, 1.0), progress)
def test_a_ramp_is_exact_at_its_ends_and_straight_between(start: float, end: float, until: float, at: float) -> None:
    ramp = schedule.Ramp(start, end, until)
    assert ramp(0.0) == start
    assert ramp(until) == ramp(1.0) == end
    expected = start + (end - start) * min(at / until, 1.0)
    assert ramp(at) == pytest.approx(expected, rel=1e-9)
