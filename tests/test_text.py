"""Durations, amounts and smoothing."""

import math
import random

import pytest

from cramming.recording.smoothing import Smoothed, centred_mean
from cramming.text import amount, duration, number


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "-"),
        (0, "0s"),
        (0.25, "0.2s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (245, "4m 05s"),
        (3599.7, "1h 00m"),
        (12_000, "3h 20m"),
        (86_400, "24h 00m"),
        (187_200, "2d 04h"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_amounts_and_numbers() -> None:
    assert amount(1200, "steps") == "1,200 steps"
    assert amount(1, "steps") == "1 step"
    assert amount(600, "s") == "10m 00s"
    assert amount(None, "steps") == "-"
    assert number(math.nan, ".3f") == number(None, ".3f") == "-"
    assert number(1234.5, ",.1f") == "1,234.5"


def test_the_running_mean_is_unbiased_from_the_first_value() -> None:
    smoothed = Smoothed(0.9)
    assert smoothed.add(7.0) == pytest.approx(7.0)
    assert smoothed.add(5.0) == pytest.approx((0.9 * 7 + 5) / 1.9)  # weights 0.9 and 1, normalized
    constant = Smoothed()
    assert all(constant.add(3.0) == pytest.approx(3.0) for _ in range(50))


def test_the_centred_mean_does_not_move_a_slope_and_averages_noise() -> None:
    slope = [float(i) for i in range(50)]
    assert centred_mean(slope, 5)[:45] == pytest.approx(slope[:45])  # its right end has no right side to centre on
    assert centred_mean(slope, 0) == slope
    assert centred_mean([], 5) == []
    draw = random.Random(0)
    noise = [draw.gauss(0, 1) for _ in range(2000)]
    smooth = centred_mean(noise, 50)[50:]
    spread = math.sqrt(sum(v * v for v in smooth) / len(smooth))
    assert spread < 2 / math.sqrt(101)
