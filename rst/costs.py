"""Cost models that need no table: steps, wall-clock seconds, analytic FLOPs."""

import math
import time
from collections.abc import Callable

from rst.work import Work


class StepsCost:
    """Counts optimizer steps: an update costs 1, everything else nothing. The budget is then a number of steps."""

    def seconds(self, work: Work) -> float:
        """1 for an update, else 0."""
        return 1.0 if work.kind == "update" else 0.0


class WallClockCost:
    """The time that passed since the last charge, whatever was done in it; charge after the work, not before.

    Resuming is not exact under this model: no two runs take the same time.
    """

    def __init__(
        self, now: Callable[[], float] = time.perf_counter, synchronize: Callable[[], None] | None = None
    ) -> None:
        """``now`` reads a monotonic clock in seconds; ``synchronize`` waits for a device that works on its own."""
        self._now = now
        self._synchronize = synchronize
        self._last_s = now()

    def seconds(self, work: Work) -> float:
        """Seconds since the last call, since ``restart`` or since this was made."""
        before_s = self._last_s
        self.restart()
        return self._last_s - before_s

    def restart(self) -> None:
        """Forget the time since the last charge: it went into something nobody pays for, such as validation."""
        if self._synchronize is not None:
            self._synchronize()
        self._last_s = self._now()


class FlopsCost:
    """Floating-point operations over a stated rate."""

    def __init__(self, flops: Callable[[Work], float], flops_per_s: float) -> None:
        """``flops`` counts the operations of a piece of work, a multiply-add as 2.

        Raises:
            ValueError: a rate that is not positive and finite.
        """
        if not 0 < flops_per_s < math.inf:
            raise ValueError(f"flops_per_s of {flops_per_s}: must be positive and finite")
        self._flops = flops
        self._flops_per_s = flops_per_s

    def seconds(self, work: Work) -> float:
        """Operations of ``work`` divided by the rate."""
        return self._flops(work) / self._flops_per_s
