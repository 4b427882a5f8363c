"""Every schedule: bounds, ends, joints, monotone pieces, and the earlier systems' curves where those are right."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from cramming import schedule
from cramming.errors import UserError
from cramming.registry import kinds, lookup

KINDS = ["constant", "cosine", "inverse_sqrt", "linear", "one_cycle", "polynomial", "trapezoid", "triangle"]
share = st.floats(0.01, 0.5)
progress = st.floats(0.0, 1.0)
unhurried = settings(deadline=None, derandomize=True, max_examples=60)


@st.composite
def schedules(draw: st.DrawFn) -> schedule.Schedule:
    """Any schedule with any legal values."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "one_cycle":
        return schedule.OneCycle()
    if kind == "triangle":
        return schedule.Triangle(start=draw(progress), peak=draw(st.floats(0.01, 0.99)))
    phases = {"warmup": draw(share), "cooldown": draw(share)}
    if kind in ("linear", "cosine", "polynomial"):
        phases["end"] = draw(progress)
    if kind == "polynomial":
        phases["power"] = draw(st.floats(0.25, 4.0))
    return lookup("train/schedule", kind)(**phases)


def joints(curve: schedule.Schedule) -> list[float]:
    """Where a schedule goes over from one piece to the next, ends included."""
    if isinstance(curve, schedule.OneCycle):
        return [0.0, 0.5, 1.0]
    if isinstance(curve, schedule.Triangle):
        return [0.0, curve.peak, 1.0]
    return sorted({0.0, curve.warmup, 1.0 - curve.cooldown, 1.0})


def test_the_eight_promised_kinds_are_registered_with_a_config_file_each() -> None:
    assert set(KINDS) == set(kinds("train/schedule"))
    folder = Path(__file__).resolve().parents[1] / "config" / "train" / "schedule"
    for kind in KINDS:
        defaults = OmegaConf.load(folder / f"{kind}.yaml").defaults
        assert list(defaults) == [f"schema_{kind}", "_self_"]


@unhurried
@given(schedules(), progress)
def test_factors_are_between_0_and_1(curve: schedule.Schedule, at: float) -> None:
    assert 0.0 <= curve(at) <= 1.0


@unhurried
@given(schedules())
def test_the_factor_reaches_1_and_nowhere_jumps(curve: schedule.Schedule) -> None:
    peak = curve.warmup if hasattr(curve, "warmup") else joints(curve)[1]
    assert curve(peak) == pytest.approx(1.0, abs=1e-12)
    for joint in joints(curve):
        before, after = curve(joint - 1e-10), curve(joint + 1e-10)
        assert before == pytest.approx(after, abs=1e-3)  # a square root moves by 1e-4 within 1e-10


@unhurried
@given(schedules(), st.data())
def test_between_joints_the_factor_only_rises_or_only_falls(curve: schedule.Schedule, data: st.DataObject) -> None:
    marks = joints(curve)
    piece = data.draw(st.integers(0, len(marks) - 2))
    first, second = sorted(data.draw(st.tuples(*[st.floats(marks[piece], marks[piece + 1])] * 2)))
    if piece == 0:
        assert curve(first) <= curve(second) + 1e-12
    else:
        assert curve(first) >= curve(second) - 1e-12


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


GOLDEN_STEPS: dict[str, Callable[[float, float], schedule.Schedule]] = {
    "linear": lambda w, c: schedule.Linear(warmup=w),
    "cosine": lambda w, c: schedule.Cosine(warmup=w),
    "cosine-decay": lambda w, c: schedule.Cosine(warmup=w),
    "constant_with_warmup": lambda w, c: schedule.Constant(warmup=w),
    "one-cycle": lambda w, c: schedule.OneCycle(),
    # the reference ends at 1e-7 whatever the base rate of 1e-3 is
    "polynomial-decay": lambda w, c: schedule.Polynomial(warmup=w, end=1e-4),
    "inverse-sqrt": lambda w, c: schedule.InverseSqrt(warmup=w, cooldown=c),
}
GOLDEN_CLOCK: dict[str, Callable[[float, float], schedule.Schedule]] = {
    "budget-constant.sync": lambda w, c: schedule.Constant(warmup=w, cooldown=c),
    "budget-linear.sync": lambda w, c: schedule.Linear(warmup=w),
    "budget-cosine-decay.sync": lambda w, c: schedule.Cosine(warmup=w),
    "budget-inverse-sqrt.sync": lambda w, c: schedule.InverseSqrt(warmup=w, cooldown=c),
    "budget-one-cycle-seconds": lambda w, c: schedule.OneCycle(),
    "budget-triangle1.sync": lambda w, c: schedule.Triangle(start=0.5),
    "budget-triangle2.sync": lambda w, c: schedule.Triangle(),
    "budget-triangle2-seconds": lambda w, c: schedule.Triangle(),
}


@pytest.mark.parametrize("name", [*GOLDEN_STEPS, *GOLDEN_CLOCK])
def test_curves_of_the_earlier_systems(name: str, shared: Path) -> None:
    description = json.loads((shared / "golden" / "schedules_ntng.json").read_text())
    tensors = load_file(shared / "golden" / "schedules_ntng.safetensors")
    compared = 0
    for setting in description["settings"]:
        prefix, steps = setting["prefix"], setting["steps"]
        phases = setting["effective_after_fraction_conversion"]
        warmup, cooldown = phases["warmup_steps"] / steps, phases["cooldown_steps"] / steps
        if "inverse-sqrt" in name and warmup == 0.0:
            continue  # the reference divides by zero
        curve = {**GOLDEN_STEPS, **GOLDEN_CLOCK}[name](warmup, cooldown)
        grid = np.linspace(0.0, 1.1, 200)
        for fraction, step, expected in zip(grid, tensors[f"{prefix}step"], tensors[f"{prefix}{name}"], strict=True):
            # The reference knows only whole steps: its curves by the clock are staircases.
            position = float(fraction) * steps
            counted = int(step) if name in GOLDEN_STEPS else int(position)
            if counted > steps:
                continue  # beyond the end the reference's factors turn negative
            if name not in GOLDEN_STEPS and abs(position - round(position)) < 1e-9:
                continue  # rounding decides on which stair it stands
            assert curve(counted / steps) == pytest.approx(expected, abs=1e-6), (setting, fraction)
            compared += 1
    assert compared > 300
