"""How fast a run goes and when it will be done, from what was done and the wall clock."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pace:
    """Tokens per second of training, and the wall seconds that remain.

    Pauses (validation, checkpoints) are taken out of the tokens/s. In the remaining time they count in the proportion
    seen so far: whoever validates a tenth of the time waits a tenth longer. Only this process's own progress counts, so
    a resumed run starts from what it does now, not from what another machine did yesterday.

    Args:
        progress: share of the budget spent when this process starts, in [0, 1].
        now: seconds on any steady clock.
        window_s: seconds of training over which the speed of progress is measured. Short enough to notice that the
            model grew, long enough not to dance.
    """

    def __init__(
        self, progress: float = 0.0, now: Callable[[], float] = time.monotonic, window_s: float = 60.0
    ) -> None:
        self._now = now
        self._window_s = window_s
        self._started_s = now()
        self._paused_s = 0.0
        self._tokens = 0
        self._interval_from_s = 0.0
        self._marks: deque[tuple[float, float]] = deque([(0.0, progress)])  # (training seconds, progress)

    def advance(self, tokens: int, progress: float) -> None:
        """Say what a step did: its tokens, and the share of the budget that is spent after it."""
        self._tokens += tokens
        training_s = self._training_s()
        self._marks.append((training_s, progress))
        while len(self._marks) > 2 and self._marks[1][0] <= training_s - self._window_s:
            self._marks.popleft()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block is not training."""
        began_s = self._now()
        try:
            yield
        finally:
            self._paused_s += self._now() - began_s

    def tokens_per_s(self) -> float | None:
        """Tokens per second of training since the previous call; ``None`` if nothing was trained in between."""
        training_s = self._training_s()
        interval_s, tokens = training_s - self._interval_from_s, self._tokens
        if interval_s <= 0 or not tokens:
            return None
        self._interval_from_s, self._tokens = training_s, 0
        return tokens / interval_s

    def remaining_s(self, until: float = 1.0) -> float | None:
        """Wall seconds until ``until`` of the budget is spent; ``None`` while nothing can be said."""
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        if last >= until:
            return 0.0
        if last_s <= first_s or last <= first:
            return None
        training_s = self._training_s()
        pauses = 1 + self._paused_s / training_s
        since_last_s = training_s - last_s
        return max(0.0, (until - last) * (last_s - first_s) / (last - first) - since_last_s) * pauses

    def _training_s(self) -> float:
        return self._now() - self._started_s - self._paused_s
