"""Tokens/s and remaining time under a clock that the test moves."""

import pytest

from cramming.recording.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def steps(pace: Pace, clock: Clock, n: int, from_progress: float, each: float, *, step_s: float = 1.0) -> None:
    for i in range(n):
        clock.s += step_s
        pace.advance(tokens=500, progress=from_progress + (i + 1) * each)


def test_steady_work(clock: Clock) -> None:
    pace = Pace(now=clock)
    assert pace.remaining_s() is None
    assert pace.tokens_per_s() is None
    steps(pace, clock, 10, 0.0, 0.01, step_s=2.0)
    assert pace.tokens_per_s() == pytest.approx(250)
    assert pace.remaining_s() == pytest.approx(180)
    assert pace.remaining_s(until=0.5) == pytest.approx(80)
    clock.s += 1.0  # half a step later, half a step less
    assert pace.remaining_s() == pytest.approx(179)


def test_tokens_per_s_is_of_the_last_interval(clock: Clock) -> None:
    pace = Pace(now=clock)
    steps(pace, clock, 5, 0.0, 0.01)
    pace.tokens_per_s()
    steps(pace, clock, 5, 0.05, 0.01, step_s=10.0)
    assert pace.tokens_per_s() == pytest.approx(50)
    clock.s += 3.0
    assert pace.tokens_per_s() is None  # a second row for the same step has no speed, and not the speed zero


def test_a_pause_is_no_training_but_costs_remaining_time_in_proportion(clock: Clock) -> None:
    pace = Pace(now=clock)
    steps(pace, clock, 10, 0.0, 0.01)
    with pace.paused():
        clock.s += 1.0  # a tenth of the training time so far
    assert pace.tokens_per_s() == pytest.approx(500)
    assert pace.remaining_s() == pytest.approx(90 * 1.1)


def test_a_pause_that_fails_still_ends(clock: Clock) -> None:
    pace = Pace(now=clock)
    steps(pace, clock, 1, 0.0, 0.01)
    with pytest.raises(RuntimeError), pace.paused():  # noqa: PT012 (the clock must move inside)
        clock.s += 100.0
        raise RuntimeError
    assert pace.tokens_per_s() == pytest.approx(500)


def test_a_resumed_run_is_judged_by_what_it_does_now(clock: Clock) -> None:
    pace = Pace(progress=0.6, now=clock)
    steps(pace, clock, 10, 0.6, 0.01)
    assert pace.remaining_s() == pytest.approx(30)


def test_a_change_of_speed_is_noticed_within_the_window(clock: Clock) -> None:
    pace = Pace(now=clock, window_s=20)
    steps(pace, clock, 100, 0.0, 0.001)
    steps(pace, clock, 30, 0.1, 0.001, step_s=2.0)
    assert pace.remaining_s() == pytest.approx(870 * 2.0)


def test_nothing_remains_at_the_end_and_never_less(clock: Clock) -> None:
    pace = Pace(now=clock)
    steps(pace, clock, 10, 0.0, 0.1)
    assert pace.remaining_s() == 0
    assert pace.remaining_s(until=0.5) == 0
    late = Pace(now=clock)
    steps(late, clock, 9, 0.0, 0.1)
    clock.s += 50.0
    assert late.remaining_s() == 0


def test_steps_that_cost_nothing_do_not_divide_by_zero(clock: Clock) -> None:
    pace = Pace(now=clock)
    steps(pace, clock, 3, 0.0, 0.0)
    assert pace.remaining_s() is None
