"""Schedules that fall smoothly once they are warm."""

import math
from dataclasses import dataclass

from cramming.errors import UserError
from cramming.registry import register
from cramming.schedule.base import Decaying, Phased


@register("train/schedule", "linear")
@dataclass
class Linear(Decaying):
    """Warm-up, then a straight line to ``end`` (BERT; with ``end=0.02`` MosaicBERT's and M2-BERT's)."""

    kind: str = "linear"

    def _fall(self, share: float) -> float:
        return 1.0 - share


@register("train/schedule", "cosine")
@dataclass
class Cosine(Decaying):
    """Warm-up, then half a cosine to ``end`` (https://arxiv.org/abs/1608.03983, without restarts unless told).

    Attributes:
        power: of the half cosine; above 1 it falls sooner.

    Raises:
        UserError: a power that is not positive.
    """

    kind: str = "cosine"
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("power")

    def _fall(self, share: float) -> float:
        return float((0.5 * (1.0 + math.cos(math.pi * share))) ** self.power)


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
class Polynomial(Decaying):
    """Warm-up, then (1 - share)^power to ``end``."""

    kind: str = "polynomial"
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("power")

    def _fall(self, share: float) -> float:
        return float((1.0 - share) ** self.power)


@register("train/schedule", "exponential")
@dataclass
class Exponential(Decaying):
    """Warm-up, then end^share, the same factor in equal times (ExtremeBERT's ``exp``).

    There decay_rate^(step / decay_step): ``end`` is decay_rate^(steps / decay_step), 0.01 by default.

    Raises:
        UserError: an end of 0, which is never reached.
    """

    kind: str = "exponential"
    end: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end == 0.0:
            raise UserError("train.schedule.end=0 is never reached by exponential; give a factor above 0")

    def _shape(self, progress: float) -> float:
        return float(self.end ** self._decayed(progress))


@register("train/schedule", "inverse_time")
@dataclass
class InverseTime(Phased):
    """Warm-up, then 1 / (1 + strength share), cool-down if asked for.

    ExtremeBERT's with lambda: ``strength`` is the rate times lambda times the number of steps.

    Raises:
        UserError: a strength that is not positive.
    """

    kind: str = "inverse_time"
    strength: float = 9.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("strength")

    def _shape(self, progress: float) -> float:
        return 1.0 / (1.0 + self.strength * self._decayed(progress))


@register("train/schedule", "inverse_sqrt")
@dataclass
class InverseSqrt(Phased):
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
