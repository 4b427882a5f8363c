"""The order of a streamed corpus: every row once a pass, a few shards at a time, a pure function of the place."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cramming.data.streaming.order import Interleaved, WindowOrder, shares


def stream(counts: list[int], window: int = 3, *key: int | str, first: int = 0, number: int = 0) -> WindowOrder:
    sizes = np.array(counts, dtype=np.int64)
    firsts = first + np.concatenate([[0], sizes.cumsum()])[:-1]
    return WindowOrder(number + np.arange(len(sizes)), firsts, sizes, window, *(key or ("key",)))


def test_each_row_once_a_pass_and_windows_of_few_shards() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 40).tolist()
    order = stream(counts, 4)
    total = sum(counts)
    first, second = order.at(np.arange(total)), order.at(np.arange(total, 2 * total))
    assert sorted(first) == sorted(second) == list(range(total))
    assert (first != second).any()
    owner = np.repeat(np.arange(len(counts)), counts)
    seen: list[int] = []
    for place in range(total):
        now, _ = order.needs(place, place, 1)
        assert owner[first[place]] in now
        assert len(now) <= 4
        if not seen or now != seen[-1]:
            seen.append(now)  # type: ignore[arg-type]
    assert len(seen) == -(-sum(count > 0 for count in counts) // 4), "a window is needed once, and not again"


def test_a_window_is_mixed() -> None:
    order = stream([100] * 9, 3)
    rows = order.at(np.arange(300))
    assert {row // 100 for row in rows[:20].tolist()} == set(order.needs(0, 0, 1)[0])
    assert abs(np.corrcoef(np.arange(300), rows % 100)[0, 1]) < 0.2


@given(st.integers(0, 2**40), st.integers(1, 5))
def test_any_place_without_what_came_before(place: int, length: int) -> None:
    """Asked in the middle, in pieces or backwards: the same rows."""
    counts = [7, 1, 12, 3, 0, 9]
    places = np.arange(place, place + length)
    whole = stream(counts).at(places)
    again = stream(counts)
    assert [int(again.at(np.array([one]))[0]) for one in places[::-1]] == whole[::-1].tolist()


def test_seeds_differ() -> None:
    one, other = (stream([50] * 6, 3, seed, "stream", 0).at(np.arange(300)) for seed in (1, 2))
    assert (one != other).any()


def test_what_is_needed_soon_comes_next() -> None:
    order = stream([10] * 10, 2)
    now, soon = order.needs(0, 3, 4)
    assert len(now) == 2
    assert len(soon) == 4
    assert soon[:2] == order.needs(20, 20, 2)[0]
    assert soon[2:] == order.needs(40, 40, 2)[0]
    across, soon = order.needs(19, 20, 4)
    assert across == [*now, *order.needs(20, 20, 1)[0]]
    assert len(across) + len(soon) == 6, "no more at once than a window and what is ahead"
    _, behind = order.needs(99, 99, 2)
    assert behind == order.needs(100, 100, 2)[0], "the next pass begins"


def test_proportions_are_exact() -> None:
    a, b, c = stream([30] * 4), stream([5, 8], first=120, number=4), stream([400], first=133, number=6)
    mix = Interleaved([a, b, c], [0.7, 0.2, 0.1], 533)
    assert mix.epoch_rows == 533
    ids = np.concatenate([mix.ids(epoch, np.arange(533)) for epoch in range(10)])
    owner = np.searchsorted([120, 133], ids % 533, side="right")
    counts = np.stack([(owner == number).cumsum() for number in range(3)])
    expected = np.outer([0.7, 0.2, 0.1], np.arange(1, len(ids) + 1))
    assert np.abs(counts - expected).max() <= 1, "at every place, not only in the end"
    assert shares([0.7, 0.3]) == [7, 3]
    assert shares([2, 1, 1]) == [2, 1, 1]
    assert shares([1 / 3, 2 / 3]) == [1, 2]
    assert sum(shares([0.123456789, 0.876543211])) == 10_000


def test_streams_go_through_whole_passes_and_repeats_have_other_ids() -> None:
    small, large = stream([5, 8]), stream([300], first=13, number=2)
    mix = Interleaved([small, large], [0.5, 0.5], 313)
    epochs = [mix.ids(epoch, np.arange(313)) for epoch in range(3)]
    for ids in epochs:
        assert len(set(ids.tolist())) == 313, "no id twice in an epoch, so no mask twice"
    rows = np.concatenate(epochs) % 313
    for limit, size in ((rows[rows < 13], 13), (rows[rows >= 13] - 13, 300)):
        for start in range(0, len(limit) - size, size):
            assert sorted(limit[start : start + size]) == list(range(size)), "each pass is whole"
    assert (epochs[0] < 313).any()
    assert (epochs[0] >= 313).any()


def test_one_stream_is_its_own_mixture() -> None:
    one = stream([5, 8, 20])
    mix = Interleaved([one], [3.0], 50)
    for epoch in range(3):
        np.testing.assert_array_equal(mix.ids(epoch, np.arange(33)), one.at(epoch * 33 + np.arange(33)))
    assert mix.needs(1, 4, 9, 2) == one.needs(37, 42, 2)


def test_needs_of_a_mixture() -> None:
    a, b = stream([10] * 6, 2), stream([10] * 6, 2, first=60, number=6)
    mix = Interleaved([a, b], [3, 1], 120)
    now, soon = mix.needs(0, 0, 7, 2)
    assert sorted(one // 6 for one in now) == [0, 0, 1, 1]
    assert [one // 6 for one in soon] == [0, 1, 0, 1]
