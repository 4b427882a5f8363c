"""A quantity that moves in a straight line, such as a batch size or a mask rate."""

import math
from dataclasses import dataclass

from cramming.errors import UserError


@dataclass(frozen=True)
class Ramp:
    """A quantity that goes from ``start`` to ``end`` in a straight line while progress goes from 0 to ``until``.

    Raises:
        UserError: ``start`` or ``end`` not a number, or ``until`` not in (0, 1].
    """

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"a ramp's {name}={getattr(self, name)} is not a number")
        if not 0.0 < self.until <= 1.0:
            raise UserError(f"a ramp's until={self.until} is not a share of the budget above 0 and up to 1")

    def __call__(self, progress: float) -> float:
        """The value at ``progress``, which is clipped to [0, 1]."""
        assert not math.isnan(progress), "progress is NaN"
        share = min(max(progress, 0.0) / self.until, 1.0)
        # Written as a mean of the two ends, which is exact at both of them.
        return (1.0 - share) * self.start + share * self.end
