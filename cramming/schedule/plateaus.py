"""Schedules that hold, and those that rise: constant, trapezoid, dive, ramps up, cycles and triangles."""

import math
from dataclasses import dataclass

from cramming.errors import UserError
from cramming.registry import register
from cramming.schedule.base import Cooled, Phased, Schedule


@register("train/schedule", "constant")
@dataclass
class Constant(Phased):
    """Warm-up, 1, and a linear cool-down if asked for."""

    kind: str = "constant"

    def _shape(self, progress: float) -> float:
        return 1.0


@register("train/schedule", "trapezoid")
@dataclass
class Trapezoid(Phased):
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
class Dive(Phased):
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
class Rise(Cooled):
    """A straight line up to where the cool-down begins: the factor is the progress (Cramming's ``ramp``)."""

    kind: str = "ramp"

    def _shape(self, progress: float) -> float:
        return progress


@register("train/schedule", "inv_cosine")
@dataclass
class InverseCosine(Cooled):
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
