"""Curves: what is read from rows, averaged over seeds, and reached when."""

import numpy as np
import pytest

from cramming.report import curves
from cramming.report.curves import Curve, common_places, curve, first_reach, mean_curve, mean_over_runs
from cramming.report.intervals import mean_interval


def made(x: list[float], y: list[float]) -> Curve:
    return Curve(np.array(x), np.array(y))


def test_rows_without_a_value_are_left_out() -> None:
    rows = [
        {"spent_s": 1.0, "loss": 9.0},
        {"spent_s": 2.0, "loss": None},
        {"spent_s": 3.0},
        {"spent_s": None, "loss": 5.0},
        {"spent_s": 4.0, "loss": float("nan")},
        {"spent_s": 5.0, "loss": 7.0},
    ]
    found = curve(rows, "loss")
    assert found.x.tolist() == [1.0, 5.0]
    assert found.y.tolist() == [9.0, 7.0]


def test_places_grow_and_the_last_of_several_rows_counts() -> None:
    rows = [{"spent_s": s, "loss": v} for s, v in ((1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (1.5, 99.0), (3.0, 6.0))]
    found = curve(rows, "loss")
    assert found.x.tolist() == [1.0, 2.0, 3.0]
    assert found.y.tolist() == [9.0, 7.0, 6.0]


def test_smoothing_keeps_a_straight_line_and_calms_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 400)
    rows = [{"spent_s": float(i), "loss": 8 - 0.01 * i + noise[i]} for i in range(400)]
    found = curve(rows, "loss", smooth=True)
    line = 8 - 0.01 * found.x
    assert np.std(found.y - line) < 0.5 * np.std(noise)
    assert abs(np.mean(found.y - line)) < 0.02


def test_the_mean_curve_has_at_every_place_the_mean_and_interval_of_the_values_there() -> None:
    seeds = [made([0, 10], [8.0, 6.0]), made([0, 10], [8.2, 6.4]), made([0, 10], [8.1, 5.9])]
    found = mean_curve(seeds, 0.95)
    assert found is not None
    assert found.x.tolist() == [0.0, 10.0]
    for place in range(2):
        by_hand = mean_interval([s.y[place] for s in seeds], 0.95)
        assert found.mean[place] == pytest.approx(by_hand.mean)
        assert (found.low[place], found.high[place]) == pytest.approx((by_hand.low, by_hand.high))


def test_curves_of_other_lengths_meet_where_all_have_values() -> None:
    found = mean_curve([made([0, 4, 10], [10, 6, 0]), made([2, 8], [8, 2])], 0.95)  # both lie on y = 10 - x
    assert found is not None
    assert (found.x[0], found.x[-1]) == (2.0, 8.0)
    assert len(found.x) == curves.PLACES
    assert found.mean == pytest.approx(10 - found.x)


def test_points_of_equal_number_are_averaged_one_by_one() -> None:
    places = common_places([made([1.0, 2.0, 3.0], [0, 0, 0]), made([1.1, 2.3, 3.0], [0, 0, 0])])
    assert places == pytest.approx([1.05, 2.15, 3.0])


def test_one_seed_has_a_mean_without_a_band() -> None:
    found = mean_curve([made([0, 1], [3.0, 2.0])], 0.95)
    assert found is not None
    assert found.n == 1
    assert found.low.tolist() == found.mean.tolist() == found.high.tolist()


@pytest.mark.parametrize("seeds", [[], [made([], [])], [made([0, 1, 2], [0, 0, 0]), made([5, 6], [0, 0])]])
def test_nothing_in_common_is_no_curve(seeds: list[Curve]) -> None:
    assert mean_curve(seeds, 0.95) is None


def test_two_runs_of_a_seed_are_one_curve() -> None:
    found = mean_over_runs([made([0, 10], [8.0, 6.0]), made([0, 10], [6.0, 4.0])])
    assert found.y.tolist() == [7.0, 5.0]


def test_a_target_is_reached_on_the_straight_line_between_two_points() -> None:
    falling = made([0, 10, 20], [8.0, 6.0, 5.0])
    assert first_reach(falling, 7.0) == pytest.approx(5.0)  # half of the way from 8 to 6
    assert first_reach(falling, 5.25) == pytest.approx(17.5)  # three quarters of the way from 6 to 5
    assert first_reach(falling, 5.0) == pytest.approx(20.0)
    assert first_reach(falling, 4.99) is None
    assert first_reach(falling, 9.0) == 0.0


def test_the_first_time_counts_where_a_curve_comes_back() -> None:
    assert first_reach(made([0, 10, 20, 30], [8.0, 6.0, 7.5, 5.0]), 6.5) == pytest.approx(7.5)


def test_scores_are_reached_from_below() -> None:
    assert first_reach(made([0, 10], [0.1, 0.3]), 0.2, lower_is_better=False) == pytest.approx(5.0)
    assert first_reach(made([0, 10], [0.1, 0.3]), 0.31, lower_is_better=False) is None
