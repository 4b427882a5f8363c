"""What every schedule has: the factor by progress, warm-up and cool-down, checks of options."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

from cramming.errors import UserError


@dataclass
class Schedule:
    """A factor in [0, 1] by progress."""

    kind: str

    def __call__(self, progress: float) -> float:
        """The factor at ``progress``, which is clipped to [0, 1]."""
        assert not math.isnan(progress), "progress is NaN"
        return self._factor(min(max(progress, 0.0), 1.0))

    def _factor(self, progress: float) -> float:
        raise NotImplementedError

    def _share(self, name: str) -> None:
        value = getattr(self, name)
        if not 0.0 <= value <= 1.0:  # also refuses NaN
            raise UserError(f"train.schedule.{name}={value} is not a share of the budget; give a number from 0 to 1")

    def _is_factor(self, name: str) -> None:
        value = getattr(self, name)
        if not 0.0 <= value <= 1.0:
            raise UserError(f"train.schedule.{name}={value} is not a factor; give a number from 0 to 1")

    def _positive(self, name: str) -> None:
        value = getattr(self, name)
        if not (value > 0.0 and math.isfinite(value)):
            raise UserError(f"train.schedule.{name}={value} is not a positive number")

    def _count(self, name: str) -> None:
        if getattr(self, name) < 1:
            raise UserError(f"train.schedule.{name}={getattr(self, name)} is no number of cycles; give 1 or more")


@dataclass
class Cooled(Schedule):
    """A shape, and a linear cool-down from where the shape stands to 0.

    Raises:
        UserError: a share outside [0, 1].
    """

    cooldown: float = 0.0

    def __post_init__(self) -> None:
        self._share("cooldown")

    def _factor(self, progress: float) -> float:
        hold_end = 1.0 - self.cooldown
        if progress <= hold_end:
            return self._shape(progress)
        return self._shape(hold_end) * self._remaining(min((progress - hold_end) / self.cooldown, 1.0))

    def _shape(self, progress: float) -> float:
        """The factor before cool-down."""
        raise NotImplementedError

    def _remaining(self, share: float) -> float:
        """What is left of the factor when ``share`` of the cool-down is over."""
        return 1.0 - share


@dataclass
class Phased(Cooled):
    """Linear warm-up from 0 to 1, a shape, cool-down.

    Raises:
        UserError: a share outside [0, 1], or warm-up and cool-down that overlap.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._share("warmup")
        self._apart("cooldown")

    def _apart(self, name: str) -> None:
        """Warm-up must be over when the phase ``name`` at the end begins."""
        if self.warmup + getattr(self, name) > 1.0:
            raise UserError(
                f"train.schedule.warmup={self.warmup} and train.schedule.{name}={getattr(self, name)} overlap; "
                "together they may be at most 1"
            )

    def _factor(self, progress: float) -> float:
        return progress / self.warmup if progress < self.warmup else super()._factor(progress)

    def _decayed(self, progress: float) -> float:
        """Share of the time after warm-up that is over."""
        return (progress - self.warmup) / (1.0 - self.warmup) if self.warmup < 1.0 else 0.0


@dataclass
class Decaying(Phased):
    """A shape that falls from 1 to ``end``: the options are those ExtremeBERT has for every curve.

    Attributes:
        end: the factor it falls to.
        hold: share of the budget at 1 between warm-up and fall (there ``activation_point``).
        until: where in the budget the end is reached; it is kept from there on.
        restarts: where in the budget the fall begins anew, at 1 (there ``restarting_points``); each is a whole one.

    Raises:
        UserError: an end that is no factor, or places that are not one after another.
    """

    end: float = 0.0
    hold: float = 0.0
    until: float = 1.0
    restarts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._is_factor("end")
        for name in ("hold", "until"):
            self._share(name)
        marks = self._marks()
        falls = all(earlier < later for earlier, later in pairwise(marks[1:]))
        if not (falls and marks[0] <= marks[1] and (marks[0] < marks[1] or not self.restarts)):
            raise UserError(
                f"train.schedule.restarts={list(self.restarts)}, until={self.until}: these come one after another, "
                f"behind warm-up and hold, which end at {marks[0]:g}"
            )

    def _shape(self, progress: float) -> float:
        return self.end + (1.0 - self.end) * self._fall(self._decayed(progress))

    def _fall(self, share: float) -> float:
        """From 1 at ``share`` 0 to 0 at ``share`` 1."""
        raise NotImplementedError

    def _decayed(self, progress: float) -> float:
        marks = self._marks()
        if progress <= marks[0]:
            return 0.0
        if progress >= self.until:
            return 1.0
        start = max(mark for mark in marks if mark <= progress)
        stop = min(mark for mark in marks if mark > progress)
        return (progress - start) / (stop - start)

    def _marks(self) -> list[float]:
        """Where falls begin, and where the last one ends."""
        return [min(self.warmup + self.hold, 1.0), *self.restarts, self.until]
