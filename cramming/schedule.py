"""Schedules: pure functions of progress, the share of the budget that is spent.

A schedule is called with progress in [0, 1] and returns a factor in [0, 1] that multiplies every base learning rate.
It keeps no state and never sees a step number, so a run laid out to 24 hours follows the same curve on any machine,
after any resume. Warm-up and cool-down are shares of the budget too. ``Ramp`` is the same idea for a quantity that is
not a factor: a batch size, a mask rate.

Each class is schema, defaults and object; ``config/train/schedule/<kind>.yaml`` makes it ``train/schedule=<kind>``.
"""

import math
from dataclasses import dataclass

from cramming.errors import UserError
from cramming.registry import register


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

    def _count(self, name: str) -> None:
        if getattr(self, name) < 1:
            raise UserError(f"train.schedule.{name}={getattr(self, name)} is no number of cycles; give 1 or more")


@dataclass
class _Cooled(Schedule):
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
class _Phased(_Cooled):
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


@register("train/schedule", "constant")
@dataclass
class Constant(_Phased):
    """Warm-up, 1, and a linear cool-down if asked for."""

    kind: str = "constant"

    def _shape(self, progress: float) -> float:
        return 1.0


@dataclass
class _Decaying(_Phased):
    """A shape that falls from 1 to ``end``."""

    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._is_factor("end")

    def _shape(self, progress: float) -> float:
        return self.end + (1.0 - self.end) * self._fall(self._decayed(progress))

    def _fall(self, share: float) -> float:
        """From 1 at ``share`` 0 to 0 at ``share`` 1."""
        raise NotImplementedError


@register("train/schedule", "linear")
@dataclass
class Linear(_Decaying):
    """Warm-up, then a straight line to ``end`` (BERT; with ``end=0.02`` MosaicBERT's and M2-BERT's)."""

    kind: str = "linear"

    def _fall(self, share: float) -> float:
        return 1.0 - share


@register("train/schedule", "cosine")
@dataclass
class Cosine(_Decaying):
    """Warm-up, then half a cosine to ``end`` (https://arxiv.org/abs/1608.03983, without restarts)."""

    kind: str = "cosine"

    def _fall(self, share: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * share))


@register("train/schedule", "cosine_annealing")
@dataclass
class CosineAnnealing(Cosine):
    """Warm-up, then ``cycles`` half cosines to ``end``, each but the first a jump back to 1 (Cramming's has four).

    https://arxiv.org/abs/1608.03983, warm restarts at equal distances.

    Raises:
        UserError: no cycle.
    """

    kind: str = "cosine_annealing"
    cycles: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("cycles")

    def _fall(self, share: float) -> float:
        # The last cycle ends at its foot; the next one, which would begin there, does not come.
        return super()._fall(math.fmod(self.cycles * share, 1.0) if share < 1.0 else 1.0)


@register("train/schedule", "polynomial")
@dataclass
class Polynomial(_Decaying):
    """Warm-up, then (1 - share)^power to ``end``."""

    kind: str = "polynomial"
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.power > 0.0 and math.isfinite(self.power)):
            raise UserError(f"train.schedule.power={self.power} is not a positive number")

    def _fall(self, share: float) -> float:
        return float((1.0 - share) ** self.power)


@register("train/schedule", "inverse_sqrt")
@dataclass
class InverseSqrt(_Phased):
    """Warm-up, then sqrt(warmup / progress) (https://arxiv.org/abs/1706.03762, section 5.3), cool-down if asked for.

    Raises:
        UserError: no warm-up; the curve has no scale without one.
    """

    kind: str = "inverse_sqrt"
    warmup: float = 0.06

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup == 0.0:
            raise UserError("train.schedule.warmup=0 leaves inverse_sqrt without a scale; give a share above 0")

    def _shape(self, progress: float) -> float:
        return math.sqrt(self.warmup / progress)


@register("train/schedule", "trapezoid")
@dataclass
class Trapezoid(_Phased):
    """Warm-up, hold at 1, cool-down as 1 - sqrt(share) (https://arxiv.org/abs/2405.18392).

    The hold does not depend on where the budget ends, so one long run can be cooled down at several lengths.
    """

    kind: str = "trapezoid"
    warmup: float = 0.02
    cooldown: float = 0.2

    def _shape(self, progress: float) -> float:
        return 1.0

    def _remaining(self, share: float) -> float:
        return 1.0 - math.sqrt(share)


@register("train/schedule", "dive")
@dataclass
class Dive(_Phased):
    """Warm-up, hold at 1, and a straight fall to 0 over the last ``phi`` of the budget (Cramming's ``budget-dive``).

    There 0.5; ``dive-slow`` is 0.75 and ``dive-fast`` 0.25.

    Raises:
        UserError: ``phi`` that is no share above 0, or that overlaps the warm-up.
    """

    kind: str = "dive"
    phi: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._share("phi")
        if self.phi == 0.0:
            raise UserError("train.schedule.phi=0 leaves no time to fall; give a share above 0")
        self._apart("phi")

    def _shape(self, progress: float) -> float:
        return min(1.0, (1.0 - progress) / self.phi)


@register("train/schedule", "ramp")
@dataclass
class Rise(_Cooled):
    """A straight line up to where the cool-down begins: the factor is the progress (Cramming's ``ramp``)."""

    kind: str = "ramp"

    def _shape(self, progress: float) -> float:
        return progress


@register("train/schedule", "inv_cosine")
@dataclass
class InverseCosine(_Cooled):
    """Half a cosine upwards, then a linear cool-down if asked for (Cramming's ``budget-inv-cosine``)."""

    kind: str = "inv_cosine"

    def _shape(self, progress: float) -> float:
        return 0.5 * (1.0 - math.cos(math.pi * progress))


@register("train/schedule", "one_cycle")
@dataclass
class OneCycle(Schedule):
    """Up to 1 at half the budget and down to 0 at its end: the earlier study's schedule for every method.

    https://arxiv.org/abs/2307.06440, after https://arxiv.org/abs/2212.14034.
    """

    kind: str = "one_cycle"

    def _factor(self, progress: float) -> float:
        return 2.0 * progress if progress < 0.5 else 2.0 - 2.0 * progress


@register("train/schedule", "multi_cycle")
@dataclass
class MultiCycle(OneCycle):
    """``one_cycle`` so many times, each in its share of the budget (Cramming's ``budget-multi-cycle`` has eight).

    Raises:
        UserError: no cycle.
    """

    kind: str = "multi_cycle"
    cycles: int = 8

    def __post_init__(self) -> None:
        self._count("cycles")

    def _factor(self, progress: float) -> float:
        return super()._factor(math.fmod(self.cycles * progress, 1.0))


@register("train/schedule", "triangle")
@dataclass
class Triangle(Schedule):
    """From ``start`` up to 1 at ``peak``, then down to 0: Cramming's second recipe (there ``budget-triangle2``).

    https://github.com/JonasGeiping/cramming, ``train=bert-o4``.

    Raises:
        UserError: ``start`` or ``peak`` outside [0, 1].
    """

    kind: str = "triangle"
    start: float = 0.25
    peak: float = 0.75

    def __post_init__(self) -> None:
        self._share("peak")
        self._is_factor("start")

    def _factor(self, progress: float) -> float:
        if progress < self.peak:
            return self.start + (1.0 - self.start) * progress / self.peak
        return (1.0 - progress) / (1.0 - self.peak) if self.peak < 1.0 else 1.0


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
