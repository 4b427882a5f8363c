"""Every schedule of No Train No Gain and of Cramming against its counterpart here, or what is different and why.

The reference's factor is a function of a whole step; its ``budget-*`` and ``*-seconds`` families first make such a step
out of the time, ``int(share of the budget x steps)``. Ours is a function of progress, so it is compared at that stair.
A case ``.sync`` has the clock and the step at the same share, in ``.slow`` the clock is at 0.8 of the step's.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from cramming import schedule
from cramming.errors import UserError

Make = Callable[[float, float], schedule.Schedule]

# The reference's name -> ours, by the shares of warm-up and cool-down. Names a curve ignores them in are listed so.
OURS: dict[str, Make] = {
    "none": lambda w, c: schedule.Constant(),
    "constant": lambda w, c: schedule.Constant(),
    "constant_with_warmup": lambda w, c: schedule.Constant(warmup=w),
    "linear": lambda w, c: schedule.Linear(warmup=w),
    "cosine": lambda w, c: schedule.Cosine(warmup=w),
    "cosine-decay": lambda w, c: schedule.Cosine(warmup=w),
    "cosine_with_restarts": lambda w, c: schedule.CosineAnnealing(warmup=w, cycles=1),
    # transformers ends these at 1e-7, whatever the base rate; with the case's 1e-3 that is a factor of 1e-4. Ours: 0.
    "polynomial": lambda w, c: schedule.Polynomial(warmup=w, end=1e-4),
    "polynomial-decay": lambda w, c: schedule.Polynomial(warmup=w, end=1e-4),
    "inverse-sqrt": lambda w, c: schedule.InverseSqrt(warmup=w, cooldown=c),
    "one-cycle": lambda w, c: schedule.OneCycle(),
    "ramp": lambda w, c: schedule.Rise(cooldown=c),
    "triangle2": lambda w, c: schedule.Triangle(),
    "budget-inverse-sqrt": lambda w, c: schedule.InverseSqrt(warmup=w, cooldown=c),
    "budget-constant": lambda w, c: schedule.Constant(warmup=w, cooldown=c),
    "budget-linear": lambda w, c: schedule.Linear(warmup=w),
    "budget-polynomial": lambda w, c: schedule.Polynomial(warmup=w),
    "budget-cosine-decay": lambda w, c: schedule.Cosine(warmup=w),
    "budget-cosine-annealing": lambda w, c: schedule.CosineAnnealing(warmup=w),
    "budget-one-cycle": lambda w, c: schedule.OneCycle(),
    "budget-one-cycle-seconds": lambda w, c: schedule.OneCycle(),
    "budget-multi-cycle": lambda w, c: schedule.MultiCycle(),
    "budget-ramp": lambda w, c: schedule.Rise(cooldown=c),
    "budget-inv-cosine": lambda w, c: schedule.InverseCosine(cooldown=c),
    "budget-dive": lambda w, c: schedule.Dive(warmup=w),
    "budget-dive-slow": lambda w, c: schedule.Dive(warmup=w, phi=0.75),
    "budget-dive-fast": lambda w, c: schedule.Dive(warmup=min(w, 0.75), phi=0.25),
    "budget-triangle1": lambda w, c: schedule.Triangle(start=0.5),
    "budget-triangle2": lambda w, c: schedule.Triangle(),
    "budget-triangle2-seconds": lambda w, c: schedule.Triangle(),
}
# Names of transformers' functions, which the reference offers and its version of transformers refuses.
UNKNOWN_TO_THE_REFERENCE = {
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
}
SYSTEMS = ("ntng", "cramming")


class Point(NamedTuple):
    """One stored value of a reference curve."""

    step: float  # share of the steps done
    clock: float  # share of the budget spent, on the reference's stair
    factor: float


class Case(NamedTuple):
    """A reference curve under one setting."""

    name: str
    variant: str  # sync, slow; empty for curves that know one time only
    warmup: float
    cooldown: float
    points: list[Point]


def cases(shared: Path, system: str) -> Iterator[Case]:
    """Every stored curve."""
    description = json.loads((shared / "golden" / f"schedules_{system}.json").read_text())
    tensors = load_file(shared / "golden" / f"schedules_{system}.safetensors")
    for setting in description["settings"]:
        phases = setting["effective_after_fraction_conversion"]
        warmup, cooldown = (phases[name] / setting["steps"] for name in ("warmup_steps", "cooldown_steps"))
        for family, names in description["schedule_names"].items():
            for name in names:
                for variant in ("sync", "slow") if family == "wallclock" else ("",):
                    key = f"{setting['prefix']}{name}" + (f".{variant}" if variant else "")
                    if key in tensors:
                        points = list(points_of(setting, family, variant, tensors[key]))
                        yield Case(name, variant, warmup, cooldown, points)
                    else:
                        assert f"{setting['prefix']}{name}" in description["errors"], key


def points_of(setting: dict[str, Any], family: str, variant: str, factors: np.ndarray) -> Iterator[Point]:
    """A curve's values with where they stand; those that rounding may put on another stair are left out."""
    steps, budget = setting["steps"], setting["budget"]
    for fraction, factor in zip(np.linspace(0.0, 1.1, 200), factors, strict=True):
        step = round(float(fraction) * steps)
        position = float(fraction) * budget * 3600 * (0.8 if variant == "slow" else 1.0) / (budget * 3600) * steps
        if family != "step" and abs(position - round(position)) < 1e-9:
            continue
        counted = step if family == "step" else 0 if step == 0 else int(position)
        yield Point(step / steps, counted / steps, float(factor))


def made(case: Case) -> schedule.Schedule:
    return OURS[case.name](case.warmup, case.cooldown)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_curve_of_the_reference_has_a_counterpart(system: str, shared: Path) -> None:
    description = json.loads((shared / "golden" / f"schedules_{system}.json").read_text())
    names = {name for family in description["schedule_names"].values() for name in family}
    assert names - UNKNOWN_TO_THE_REFERENCE <= OURS.keys()
    assert names >= UNKNOWN_TO_THE_REFERENCE
    for name in UNKNOWN_TO_THE_REFERENCE:
        assert "not a valid SchedulerType" in description["errors"][f"s0.{name}"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_curves_agree_where_the_reference_is_right(system: str, shared: Path) -> None:
    compared: dict[str, int] = {}
    for case in cases(shared, system):
        if "inverse-sqrt" in case.name and case.warmup == 0.0:
            continue  # see test_no_scale_without_warm_up
        curve = made(case)
        for point in case.points:
            if point.clock > 1.0 or the_reference_is_wrong(case, point):
                continue
            assert curve(point.clock) == pytest.approx(point.factor, abs=1e-6), (case.name, case.variant, point)
            compared[case.name] = compared.get(case.name, 0) + 1
    assert len(compared) >= 25
    for name, points in compared.items():
        assert points > 300 or name == "budget-polynomial", name


def the_reference_is_wrong(case: Case, point: Point) -> bool:
    """The tests below say what ours does there. Two curves read the step where they should read the clock."""
    if case.name == "budget-polynomial":
        return point.clock >= case.warmup
    if case.name.startswith("budget-dive"):
        return min(point.step, point.clock) < case.warmup
    return case.name == "budget-cosine-annealing" and point.clock == 1.0  # begins a fifth cycle


@pytest.mark.parametrize("system", SYSTEMS)
def test_beyond_the_end_ours_stay_where_they_ended(system: str, shared: Path) -> None:
    """There the reference turns negative, begins another cycle, or divides by a cool-down of zero steps."""
    seen = set()
    for case in cases(shared, system):
        if "inverse-sqrt" in case.name and case.warmup == 0.0:
            continue
        curve = made(case)
        for point in case.points:
            if point.clock > 1.0:
                assert curve(point.clock) == curve(1.0)
                assert 0.0 <= curve(1.0) <= 1.0
                seen |= {"negative"} if point.factor < -1e-3 else {"nan"} if math.isnan(point.factor) else set()
                seen |= {"cycle"} if case.name == "budget-multi-cycle" and point.factor > 0.5 else set()
    assert seen == {"negative", "nan", "cycle"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_polynomial_falls_by_the_clock_not_by_the_step(system: str, shared: Path) -> None:
    """The reference's ``budget-polynomial`` ends its warm-up by the clock and then falls by the true step."""
    differ = 0
    for case in cases(shared, system):
        if case.name == "budget-polynomial":
            curve = schedule.Polynomial(warmup=case.warmup)
            for point in case.points:
                if case.warmup <= point.clock <= 1.0 and point.step <= 1.0:
                    expected = (1.0 - point.step) / (1.0 - case.warmup)
                    assert point.factor == pytest.approx(expected, abs=1e-6), "what the reference does"
                    assert curve(point.clock) == pytest.approx((1.0 - point.clock) / (1.0 - case.warmup))
                    differ += abs(curve(point.clock) - point.factor) > 0.01
    assert differ > 100


def test_a_dive_warms_up_by_the_clock_not_by_the_step(shared: Path) -> None:
    """The reference asks the true step whether it still warms up, and the clock how far."""
    differ = 0
    for case in cases(shared, "ntng"):
        if case.name.startswith("budget-dive") and case.variant == "slow" and case.warmup:
            curve = made(case)
            for point in case.points:
                if point.clock < case.warmup:
                    assert curve(point.clock) == pytest.approx(point.clock / case.warmup)
                    differ += abs(curve(point.clock) - point.factor) > 0.01
    assert differ > 5


def test_cramming_offers_a_dive_that_cannot_be_built(shared: Path) -> None:
    """Ours is No Train No Gain's, compared above."""
    description = json.loads((shared / "golden" / "schedules_cramming.json").read_text())
    broken = [name for name in description["errors"] if "dive" in name]
    assert len(broken) == 9
    assert all("unexpected keyword" in description["errors"][name] for name in broken)


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_scale_without_warm_up(system: str, shared: Path) -> None:
    """Both inverse square roots divide by zero there; ours says what to give."""
    description = json.loads((shared / "golden" / f"schedules_{system}.json").read_text())
    for name in ("inverse-sqrt", "budget-inverse-sqrt"):
        assert "ZeroDivisionError" in description["errors"][f"s2.{name}"]
    with pytest.raises(UserError, match="without a scale"):
        schedule.InverseSqrt(warmup=0.0)


def test_polynomial_decay_ends_at_zero_unless_told_otherwise() -> None:
    """Transformers' floor of 1e-7 is a rate, not a factor; here ``end=1e-4`` writes it for a base rate of 1e-3."""
    assert schedule.Polynomial()(1.0) == 0.0
    assert schedule.Polynomial(end=1e-4)(1.0) == pytest.approx(1e-7 / 1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_annealing_ends_at_its_foot(system: str, shared: Path) -> None:
    """The reference's formula, (4 p) mod 1, jumps back to 1 at the end of the budget."""
    last = [
        (made(case), point)
        for case in cases(shared, system)
        if case.name == "budget-cosine-annealing"
        for point in case.points
        if point.clock == 1.0
    ]
    assert last
    for curve, point in last:
        assert point.factor == 1.0
        assert curve(1.0) == 0.0
        assert curve(1.0 - 1e-9) == pytest.approx(0.0, abs=1e-9)


def test_the_last_microbatch_of_a_budget_has_no_negative_rate() -> None:
    """The reference's one-cycle is 2 - 2r without a clamp, and the last microbatch of a budget ends behind it."""
    beyond = 1.0 + 2e-9
    assert 2.0 - 2.0 * beyond < 0.0
    assert schedule.OneCycle()(beyond) == 0.0
