"""What training waits for, on a link of a given speed and a clock of its own: nothing here depends on real time."""

import logging
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from cramming.data.streaming.ahead import Ahead
from cramming.data.streaming.order import WindowOrder
from cramming.data.streaming.rows import Rows
from cramming.errors import UserError

SHARDS, ROWS, WINDOW, BATCH = 30, 10, 3, 5
STEP_S = 1.0  # so that a window's rows last WINDOW x ROWS / BATCH x STEP_S = 6 s


class Fake:
    """An opened shard."""

    def __init__(self, link: "Link", shard: int) -> None:
        self._link, self._shard = link, shard

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        raise AssertionError("nobody reads here")

    def close(self) -> None:
        self._link.open_now.discard(self._shard)


class Link:
    """Brings one shard after another, each in so many seconds of a clock that only steps and waiting move."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.open_now: set[int] = set()
        self.most_open = 0
        self._changed = threading.Condition()
        self._needed: set[int] = set()
        self._finish: float | None = None  # of what is on the way

    def open(self, shard: int) -> Fake:
        with self._changed:
            finish = self._finish = self.now + self.seconds
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.now >= finish or shard in self._needed, 60)
            self.now = max(self.now, finish)
            self._finish = None
            self.open_now.add(shard)
            self.most_open = max(self.most_open, len(self.open_now))
            return Fake(self, shard)

    def read(self, ahead: Ahead, shards: Sequence[int]) -> None:
        """As a step does: the clock runs on while it waits."""
        with self._changed:
            self._needed = set(shards)
            self._changed.notify_all()
        ahead.get(shards)
        with self._changed:
            self._needed = set()

    def step(self, ahead: Ahead) -> None:
        """Time passes; the link brings what it can bring by then."""
        self._settle(ahead)
        for _ in range(4):
            with self._changed:
                self.now += STEP_S / 4
                self._changed.notify_all()
            self._settle(ahead)

    def _settle(self, ahead: Ahead) -> None:
        """Return when the link has nothing to do, or nothing that could be ready by now."""
        state = ahead._state
        while True:
            with state.changed:
                idle = state.next() is None and not state.opening
            with self._changed:
                if idle or (self._finish is not None and self._finish > self.now):
                    return
                self._changed.wait(0.001)


def trained(link: Link, ahead_shards: int = WINDOW) -> Ahead:
    """One pass, in steps of ``BATCH`` rows."""
    counts = np.full(SHARDS, ROWS)
    order = WindowOrder(np.arange(SHARDS), counts.cumsum() - ROWS, counts, WINDOW, "key")
    ahead = Ahead(link.open, 1, clock=lambda: link.now)
    for place in range(0, SHARDS * ROWS, BATCH):
        now, soon = order.needs(place, place + BATCH - 1, ahead_shards)
        ahead.want(now, soon)
        link.read(ahead, now)
        link.step(ahead)
    return ahead


@pytest.mark.parametrize("seconds", [0.25, 1.0, 2.0])
def test_a_link_that_sustains_the_rate_is_never_waited_for(seconds: float) -> None:
    """Up to three shards in the six seconds their rows last: only the first window is."""
    link = Link(seconds)
    ahead = trained(link)
    assert (ahead.stalls.count, ahead.stalls.seconds) == (0, 0.0)
    assert ahead.stalls.start_s == WINDOW * seconds
    assert link.now == WINDOW * seconds + SHARDS * ROWS / BATCH * STEP_S
    assert link.most_open <= 2 * WINDOW
    ahead.close()


def test_a_slower_link_is_waited_for_once_a_window(caplog: pytest.LogCaptureFixture) -> None:
    """Twice as slow as needed: every window but the first is waited for six seconds, which few lines say."""
    with caplog.at_level(logging.WARNING):
        ahead = trained(Link(4.0))
    windows = SHARDS // WINDOW
    assert ahead.stalls.count == windows - 1
    assert ahead.stalls.seconds == (windows - 1) * 6.0
    assert ahead.stalls.start_s == 12.0
    assert [record.getMessage().partition(" for data")[0] for record in caplog.records] == [
        "training has waited 6.0s", "training has waited 12s", "training has waited 24s", "training has waited 48s",
    ]  # fmt: skip
    assert "more data.fetch_threads help" in caplog.text
    ahead.close()


def test_a_shard_ahead_that_cannot_be_had_is_told_when_it_is_needed_and_tried_again_then() -> None:
    broken = {4}

    def open_(shard: int) -> Fake:
        if shard in broken:
            raise UserError(f"shard {shard} is damaged")
        return Fake(Link(0.0), shard)

    ahead = Ahead(open_, 2, clock=lambda: 0.0)
    ahead.want([0, 1], [4, 5])
    ahead.get([0, 1])
    ahead.want([4, 5], [6])
    for _ in range(2):
        with pytest.raises(UserError, match="shard 4 is damaged"):
            ahead.get([4, 5])
    broken.clear()
    assert len(ahead.get([4, 5])) == 2
    ahead.close()


def test_what_is_read_out_of_order_is_no_stall_and_little_of_it_stays_open() -> None:
    link = Link(0.0)
    ahead = Ahead(link.open, 2, clock=lambda: link.now)
    ahead.want([0], [1])
    link.read(ahead, [0])
    for shard in range(10, 20):
        link.read(ahead, [shard])
    link.read(ahead, [0])
    assert ahead.stalls.count == 0
    assert link.open_now <= {0, 1, 18, 19}
    ahead.close()
    assert not link.open_now
