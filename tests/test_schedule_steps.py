"""Schedules that fall in pieces, the options of all that fall, and ExtremeBERT's curves by its formulas."""

import math
from itertools import pairwise

import numpy as np
import pytest

from cramming import schedule
from cramming.cli import compose
from cramming.errors import UserError

PLACES = np.linspace(0.0, 1.0, 1001)


@pytest.mark.parametrize(
    ("curve", "points"),
    [
        (schedule.Steps(), {0.0: 1, 0.2499: 1, 0.25: 0.1, 0.4999: 0.1, 0.5: 0.01, 0.75: 0.001, 1.0: 0.001}),
        (schedule.Steps(drops=1, ratio=0.5, warmup=0.2), {0.1: 0.5, 0.2: 1, 0.5999: 1, 0.6001: 0.5, 1.0: 0.5}),
        (schedule.Steps(drops=1, ratio=0.5, cooldown=0.2), {0.4: 1, 0.8: 0.5, 0.9: 0.25, 1.0: 0}),
        (schedule.PiecewiseConstant(), {0.0: 1, 0.4999: 1, 0.5: 0.1, 0.7499: 0.1, 0.75: 0.01, 1.0: 0.01}),
        (schedule.PiecewiseConstant(warmup=0.2, at=[0.5], factors=[0.5, 0.25]), {0.1: 0.25, 0.3: 0.5, 0.5: 0.25}),
        (schedule.PiecewiseInverseTime(), {0.0: 1, 0.25: 2 / 3, 0.5: 0.5, 0.625: 1 / 3, 0.75: 0.25, 1.0: 0.125}),
        (schedule.PiecewiseInverseTime(at=[0.5], strengths=[0, 3]), {0.4999: 1, 0.75: 0.4, 1.0: 0.25}),
        (schedule.Exponential(), {0.0: 1, 0.5: 0.1, 0.75: 0.0316228, 1.0: 0.01}),
        (schedule.Exponential(warmup=0.5, end=0.25), {0.25: 0.5, 0.5: 1, 0.75: 0.5, 1.0: 0.25}),
        (schedule.InverseTime(), {0.0: 1, 1 / 9: 0.5, 1 / 3: 0.25, 1.0: 0.1}),
        (schedule.InverseTime(warmup=0.5, strength=1.0), {0.25: 0.5, 0.5: 1, 0.75: 2 / 3, 1.0: 0.5}),
        (schedule.Cosine(power=2.0), {0.0: 1, 0.5: 0.25, 2 / 3: 0.0625, 1.0: 0}),
        (schedule.Linear(warmup=0.2, hold=0.3), {0.1: 0.5, 0.2: 1, 0.5: 1, 0.75: 0.5, 1.0: 0}),
        (schedule.Cosine(warmup=0.1, until=0.9, end=0.1), {0.5: 0.55, 0.9: 0.1, 0.95: 0.1, 1.0: 0.1}),
        (schedule.Linear(restarts=[0.5, 0.75]), {0.25: 0.5, 0.4999: 0, 0.5: 1, 0.625: 0.5, 0.75: 1, 0.875: 0.5, 1: 0}),
        (schedule.Linear(hold=0.5, restarts=[0.75], end=0.5), {0.5: 1, 0.625: 0.75, 0.75: 1, 1.0: 0.5}),
    ],
)
def test_values_worked_out_by_hand(curve: schedule.Schedule, points: dict[float, float]) -> None:
    for at, expected in points.items():
        assert curve(at) == pytest.approx(expected, abs=3e-4), at


def test_elastic_step_decay_by_extremeberts_formula() -> None:
    """a = 1 / shrink, k = floor(ln(1 - t / T) / ln a), min(1, min(1, 0.5 / a)^(k - 6 + 1)), step by step."""
    curve = schedule.ElasticStepDecay()
    a = 1 / 1.4142
    for at in PLACES[:-1]:
        k = math.floor(math.log(1 - at) / math.log(a))
        expected = min(1.0, min(1.0, 0.5 / a) ** (k - 6 + 1))
        assert curve(at) == pytest.approx(expected, abs=1e-12), at
    assert curve(1.0) == 0.0


def test_elastic_step_decay_holds_for_seven_eighths_then_falls_in_ever_shorter_stretches() -> None:
    """Stretches shrink by the root of 2, and two drops halve the factor."""
    curve = schedule.ElasticStepDecay()
    assert curve(0.8749) == 1.0
    fine = np.linspace(0.87, 0.9999, 200_001)
    values = np.array([curve(at) for at in fine])
    drops = fine[1:][np.diff(values) < 0]
    lengths = np.diff(drops[:10])
    assert drops[0] == pytest.approx(0.875, abs=1e-4)
    np.testing.assert_allclose(lengths[1:] / lengths[:-1], 1 / math.sqrt(2), rtol=0.02)
    levels = sorted(set(values), reverse=True)
    np.testing.assert_allclose([b / a for a, b in pairwise(levels[:8])], 1.4142 / 2, rtol=1e-9)


def test_elastic_step_decay_after_a_warm_up_is_squeezed_into_what_is_left() -> None:
    plain, warmed = schedule.ElasticStepDecay(), schedule.ElasticStepDecay(warmup=0.2)
    assert warmed(0.1) == 0.5
    for at in PLACES:
        assert warmed(0.2 + 0.8 * at) == pytest.approx(plain(at), abs=1e-12) or at > 0.874


@pytest.mark.parametrize(
    "curve",
    [
        schedule.Steps(warmup=0.1, cooldown=0.3),
        schedule.ElasticStepDecay(shrink=1.9, plateau=1, cooldown=0.2),
        schedule.PiecewiseConstant(factors=[0.2, 1.0, 0.0], warmup=0.4),
        schedule.PiecewiseInverseTime(cooldown=0.25, warmup=0.25),
        schedule.Exponential(hold=0.3, restarts=[0.5, 0.9], until=0.95),
        schedule.CosineAnnealing(cycles=3, warmup=0.1, hold=0.1, until=0.8, restarts=[0.5]),
    ],
)
def test_factors_stay_between_0_and_1_and_depend_on_nothing_but_progress(curve: schedule.Schedule) -> None:
    values = [curve(at) for at in PLACES]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values == [curve(at) for at in PLACES]
    assert curve(1.5) == curve(1.0)
    assert curve(-0.5) == curve(0.0)


def test_sgdr_with_stretches_that_double_is_a_list_of_restarts() -> None:
    """Cosine with t_0 a seventh and t_mul 2 (https://arxiv.org/abs/1608.03983): restarts at 1/7 and 3/7."""
    curve = schedule.Cosine(restarts=[1 / 7, 3 / 7])
    for begin, length in ((0, 1), (1, 2), (3, 4)):
        for share in (0.0, 0.25, 0.5, 0.9):
            expected = 0.5 * (1 + math.cos(math.pi * share))
            assert curve((begin + share * length) / 7) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train/schedule=step", "train.schedule.drops=0"], "drops=0"),
        (["train/schedule=step", "train.schedule.ratio=2"], "ratio=2.0"),
        (["train/schedule=elastic_step_decay", "train.schedule.shrink=2.0"], "shrink=2.0"),
        (["train/schedule=elastic_step_decay", "train.schedule.plateau=0"], "plateau=0"),
        (["train/schedule=piecewise_constant", "train.schedule.at=[0.7,0.5]"], "at=[0.7, 0.5]"),
        (["train/schedule=piecewise_constant", "train.schedule.warmup=0.6"], "warm-up's end (0.6)"),
        (["train/schedule=piecewise_constant", "train.schedule.factors=[1.0]"], "2 places make 3 pieces"),
        (["train/schedule=piecewise_constant", "train.schedule.factors=[1.0,2.0,0.5]"], "2.0 is not a factor"),
        (["train/schedule=piecewise_inverse_time", "train.schedule.strengths=[1,-1,1]"], "-1.0 is not a number from 0"),
        (["train/schedule=exponential", "train.schedule.end=0"], "end=0"),
        (["train/schedule=inverse_time", "train.schedule.strength=0"], "strength=0.0"),
        (["train/schedule=linear", "train.schedule.restarts=[0.6,0.4]"], "restarts=[0.6, 0.4]"),
        (["train/schedule=linear", "train.schedule.restarts=[1.0]"], "restarts=[1.0]"),
        (["train/schedule=linear", "train.schedule.warmup=0.5", "train.schedule.until=0.4"], "which end at 0.5"),
        (["train/schedule=linear", "train.schedule.hold=1.5"], "hold=1.5"),
        (["train/schedule=cosine", "train.schedule.power=0"], "power=0.0"),
    ],
)
def test_values_that_describe_no_curve_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["data=local", "data.path=x", *words])
    assert message in str(caught.value)
