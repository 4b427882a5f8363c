"""Schedules that fall in pieces: those of ExtremeBERT (https://arxiv.org/abs/2211.17201) that the others lack.

Its ``poly_remain_time`` is ``polynomial``, its restarts and its start after some steps are options of every curve in
``falls.py``. Its ``continuous_eigencurve`` never ran (it asked for a name that is not there) and is left out.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

from cramming.errors import UserError
from cramming.registry import register
from cramming.schedule.base import Phased


@register("train/schedule", "step")
@dataclass
class Steps(Phased):
    """Warm-up, 1, and ``drops`` drops to ``ratio`` of what was, all stretches of one length.

    Raises:
        UserError: no drop, or a ratio that is no factor.
    """

    kind: str = "step"
    drops: int = 3
    ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("drops")
        self._is_factor("ratio")

    def _shape(self, progress: float) -> float:
        done = math.floor(self._decayed(progress) * (self.drops + 1))
        return float(self.ratio ** min(done, self.drops))


@register("train/schedule", "elastic_step_decay")
@dataclass
class ElasticStepDecay(Phased):
    """Warm-up, 1, then drops in stretches that shrink by ``shrink``: ExtremeBERT's own curve.

    With s the share of the time after warm-up that is over and k = floor(ln(1 - s) / ln(1 / shrink)), the stretch that
    s lies in, the factor is (shrink / 2)^(k - plateau + 1), and 1 up to stretch ``plateau`` - 1; 0 at the end.

    Raises:
        UserError: a shrink outside (1, 2), or no stretch at 1.
    """

    kind: str = "elastic_step_decay"
    shrink: float = 1.4142
    plateau: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1.0 < self.shrink < 2.0:
            raise UserError(f"train.schedule.shrink={self.shrink} lets nothing fall; give a number between 1 and 2")
        if self.plateau < 1:
            raise UserError(f"train.schedule.plateau={self.plateau} must be 1 or more")

    def _shape(self, progress: float) -> float:
        share = self._decayed(progress)
        if share >= 1.0:
            return 0.0
        stretch = math.floor(math.log(1.0 - share) / -math.log(self.shrink))
        return float(min(1.0, (self.shrink / 2.0) ** (stretch - self.plateau + 1)))


@dataclass
class _Pieces(Phased):
    """Pieces that end at the places ``at`` of the budget.

    Raises:
        UserError: places that are not one after another within the budget, after the warm-up.
    """

    at: list[float] = field(default_factory=lambda: [0.5, 0.75])

    def __post_init__(self) -> None:
        super().__post_init__()
        marks = [self.warmup, *self.at, 1.0]
        if not all(earlier < later for earlier, later in pairwise(marks)):  # also refuses NaN
            raise UserError(
                f"train.schedule.at={list(self.at)} must be places of the budget, one after another, between the "
                f"warm-up's end ({self.warmup:g}) and 1"
            )

    def _one_more(self, name: str) -> None:
        values = getattr(self, name)
        if len(values) != len(self.at) + 1:
            raise UserError(
                f"train.schedule.{name}={list(values)}: {len(self.at)} places make {len(self.at) + 1} pieces"
            )

    def _piece(self, progress: float) -> int:
        return sum(progress >= place for place in self.at)


@register("train/schedule", "piecewise_constant")
@dataclass
class PiecewiseConstant(_Pieces):
    """Warm-up, then one factor for each piece.

    Raises:
        UserError: a number of factors that does not fit, or a value that is none.
    """

    kind: str = "piecewise_constant"
    factors: list[float] = field(default_factory=lambda: [1.0, 0.1, 0.01])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_more("factors")
        for factor in self.factors:
            if not 0.0 <= factor <= 1.0:
                raise UserError(f"train.schedule.factors={list(self.factors)}: {factor} is not a factor from 0 to 1")

    def _factor(self, progress: float) -> float:
        if progress < self.warmup:  # to where the first piece stands
            return self.factors[0] * progress / self.warmup
        return super()._factor(progress)

    def _shape(self, progress: float) -> float:
        return self.factors[self._piece(progress)]


@register("train/schedule", "piecewise_inverse_time")
@dataclass
class PiecewiseInverseTime(_Pieces):
    """Warm-up, then in each piece 1 / (1 + strength share of the piece), from where the one before ended.

    Raises:
        UserError: a number of strengths that does not fit, or one that is negative.
    """

    kind: str = "piecewise_inverse_time"
    strengths: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_more("strengths")
        for strength in self.strengths:
            if not 0.0 <= strength < math.inf:
                raise UserError(f"train.schedule.strengths={list(self.strengths)}: {strength} is not a number from 0")

    def _shape(self, progress: float) -> float:
        marks = [self.warmup, *self.at, 1.0]
        piece = self._piece(progress)
        before = math.prod(1.0 / (1.0 + strength) for strength in self.strengths[:piece])
        share = (progress - marks[piece]) / (marks[piece + 1] - marks[piece])
        return before / (1.0 + self.strengths[piece] * share)
