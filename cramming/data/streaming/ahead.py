"""Threads that open shards before they are needed, and how long those who read had to wait for them all the same."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cramming.data.streaming.rows import Rows
from cramming.text import duration

_log = logging.getLogger(__name__)
_VISITORS = 2  # shards outside the order, as those to validate on, that stay open
_SAID_FROM_S = 5.0  # of waiting: the first line; the next one when it is twice as long


class Opened(Protocol):
    """A shard whose rows can be read."""

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        """Rows by their numbers in the shard, (n,) -> tokens (n, S), lengths (n,) of documents."""

    def close(self) -> None:
        """It is not needed for now."""


class Stalls:
    """What reading waited for. The first shards after a start, or of what is read out of order, are no stall."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0  # reads, so steps, that waited
        self.start_s = 0.0
        self._say_at_s = _SAID_FROM_S

    def waited(self, seconds: float, planned: bool) -> None:
        """A read waited so long; ``planned``: for shards that were to be there."""
        if not planned:
            self.start_s += seconds
            return
        self.seconds += seconds
        self.count += 1
        if self.seconds >= self._say_at_s:
            self._say_at_s = 2 * self.seconds
            _log.warning(
                "training has waited %s for data, in %d steps: shards come more slowly than they are used; "
                "a faster link, compressed shards or more data.fetch_threads help",
                duration(self.seconds), self.count,
            )  # fmt: skip


class _State:
    """What threads and readers share. Not the ``Ahead`` itself, which may be forgotten while threads live."""

    def __init__(self, open_: Callable[[int], Opened]) -> None:
        self.open = open_
        self.changed = threading.Condition()
        self.wanted: list[int] = []  # by when they are needed
        self.opening: set[int] = set()
        self.opened: dict[int, Opened] = {}
        self.failed: dict[int, BaseException] = {}
        self.ended = False

    def next(self) -> int | None:
        """The shard to open next."""
        known = (self.opened, self.opening, self.failed)
        return next((shard for shard in self.wanted if not any(shard in one for one in known)), None)

    def work(self) -> None:
        """What a thread does."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.ended or self.next() is not None)
                shard = self.next()
                if self.ended or shard is None:
                    return
                self.opening.add(shard)
            try:
                found: Opened | BaseException = self.open(shard)
            except BaseException as error:
                found = error
            with self.changed:
                self.opening.discard(shard)
                if isinstance(found, BaseException):
                    self.failed[shard] = found
                elif self.ended or shard not in self.wanted:
                    found.close()  # meanwhile nobody needs it any more
                else:
                    self.opened[shard] = found
                self.changed.notify_all()

    def end(self) -> None:
        """Threads end after what they are at; every shard is closed."""
        with self.changed:
            self.ended = True
            for shard in self.opened.values():
                shard.close()
            self.opened.clear()
            self.changed.notify_all()


class Ahead:
    """Opened shards. One thread reads; ``threads`` others open what it wants next.

    Args:
        open_: opens a shard by its number; called by several threads at once.
        threads: how many; they start with the first shard that is wanted.
        clock: seconds, for ``stalls``.
    """

    def __init__(self, open_: Callable[[int], Opened], threads: int, clock: Callable[[], float] = time.monotonic):
        self.stalls = Stalls()
        self._state = _State(open_)
        self._threads = threads
        self._clock = clock
        self._plan: list[int] = []
        self._met: set[int] = set()  # of the plan: what was wanted by then, before it was needed
        self._visitors: list[int] = []
        self._raised: set[int] = set()  # shards whose errors were told: they are tried again when they are needed
        self.close = weakref.finalize(self, self._state.end)

    def want(self, now: Sequence[int], soon: Sequence[int]) -> None:
        """Shards that are needed at once, and later, in this order. All others are closed."""
        plan = list(dict.fromkeys([*now, *soon]))
        if plan == self._plan:
            return
        # Needed although it was never said before: a start, or another place than the next.
        self._met = set(self._plan) & set(plan) | set(soon)
        self._plan = plan
        self._settle()

    def get(self, shards: Iterable[int]) -> list[Opened]:
        """These shards, waited for.

        Raises:
            UserError: one of them cannot be had.
        """
        needed = list(shards)
        strangers = [shard for shard in needed if shard not in self._plan]
        if strangers:
            self._visitors = [*[one for one in self._visitors if one not in strangers], *strangers]
            self._visitors = self._visitors[-max(_VISITORS, len(strangers)) :]
            self._settle(strangers)
        state = self._state
        with state.changed:
            for shard in self._raised.intersection(needed):
                self._raised.discard(shard)
                state.failed.pop(shard, None)
                state.changed.notify_all()
            late = [shard for shard in needed if shard not in state.opened]
            began = self._clock()
            state.changed.wait_for(lambda: all(one in state.opened or one in state.failed for one in needed))
            failed = [one for one in needed if one in state.failed]
            if failed:
                self._raised.add(failed[0])
                raise state.failed[failed[0]]
            if late:
                self.stalls.waited(self._clock() - began, planned=any(shard in self._met for shard in late))
            return [state.opened[shard] for shard in needed]

    def _settle(self, first: Sequence[int] = ()) -> None:
        """Close what is not wanted any more, have opened what is."""
        state = self._state
        with state.changed:
            state.wanted = list(dict.fromkeys([*first, *self._plan, *self._visitors]))
            for shard in [one for one in state.opened if one not in state.wanted]:
                state.opened.pop(shard).close()
            for shard in [one for one in state.failed if one not in state.wanted]:
                del state.failed[shard]
            state.changed.notify_all()
        while self._threads:
            self._threads -= 1
            threading.Thread(target=state.work, name="shards", daemon=True).start()
