"""Prices without a table: steps, wall-clock time, FLOPs."""

import math

import pytest

from rst import FlopsCost, StepsCost, WallClockCost, Work


def test_steps_count_updates_and_nothing_else() -> None:
    cost = StepsCost()
    assert cost.seconds(Work("update")) == 1.0
    assert cost.seconds(Work("forward", 1000, 128, 16)) == 0.0
    assert cost.seconds(Work("forward_backward", 1000, 128, 16)) == 0.0


def test_wall_clock_time_is_charged_once_and_only_since_the_restart() -> None:
    events: list[str] = []
    time_s = 10.0

    def now() -> float:
        events.append("now")
        return time_s

    cost = WallClockCost(now, lambda: events.append("synchronize"))
    work = Work("forward", 1, 128, 4)
    events.clear()
    time_s = 12.5
    assert cost.seconds(work) == 2.5
    assert events == ["synchronize", "now"], "the device must have finished before the time is read"
    assert cost.seconds(work) == 0.0
    time_s = 100.0
    cost.restart()
    time_s = 101.0
    assert cost.seconds(work) == 1.0


def test_flops_are_divided_by_the_rate() -> None:
    cost = FlopsCost(lambda work: 2.0 * work.sequences * work.layers, flops_per_s=8.0)
    assert cost.seconds(Work("forward", 12, 128, 2)) == 6.0


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_is_positive_and_finite(rate: float) -> None:
    with pytest.raises(ValueError, match="flops_per_s"):
        FlopsCost(lambda work: 1.0, rate)
