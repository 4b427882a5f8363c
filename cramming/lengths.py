"""How long the sequences of a step are, and how many of them make a batch: functions of progress.

    train.lengths=[32,64] train.lengths_until=[0.2,0.5] train.lengths_mode=unfold

trains on sequences of 32 tokens for the first fifth of the budget, of 64 until half of it, then of ``data.seq_length``.
Short sequences cost less each (attention) and, truncated, there is less of each. The rows of the token store stay as
they are: ``truncate`` takes the beginning of a row and drops the rest of it, ``unfold`` cuts the row into pieces that
are sequences of their own, so that the tokens of a step stay as many. A row's [CLS] (``data.row_cls``) stays where it
is: every truncated row and the first piece of an unfolded one begin with it, the other pieces begin with a plain token.

The earlier systems' ``train.sequence_curriculum`` is the same with ``{lengths, triggers, unfold}``, where a length
begins at its trigger: ``lengths=[32,64,128] triggers=[0,0.2,0.5]`` is the example above.

A growing batch (``train.batch_size_initial`` over ``train.batch_size_ramp`` of the budget) climbs in equal stairs whose
height is the greatest common divisor of its two ends, so that sizes between fit microbatches as well as the ends do:
from 128 to 8192 it is 128, 256, ..., 8192, which is Cramming's ramp with a microbatch of 128.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from cramming.errors import UserError

MODES = ("truncate", "unfold")
SHORTEST = 4  # as data.seq_length


@dataclass(frozen=True)
class Lengths:
    """Sequence length by progress.

    Attributes:
        full: S, the length of the token store's rows.
        shorter: lengths before that, in the order they come.
        until: the share of the budget at which each of them ends.
        unfold: cut rows into pieces instead of dropping their ends.

    Raises:
        UserError: lengths and shares that make no curriculum.
    """

    full: int
    shorter: tuple[int, ...] = ()
    until: tuple[float, ...] = ()
    unfold: bool = False

    def __post_init__(self) -> None:
        if len(self.shorter) != len(self.until):
            raise UserError(
                f"train.lengths={list(self.shorter)} and train.lengths_until={list(self.until)} must be equally many: "
                "each length has the share of the budget at which it ends"
            )
        for length in self.shorter:
            if not SHORTEST <= length < self.full:
                raise UserError(
                    f"train.lengths={list(self.shorter)}: {length} is not a length from {SHORTEST} to below "
                    f"data.seq_length={self.full}, which comes last by itself"
                )
            if self.unfold and self.full % length:
                fitting = max(n for n in range(1, length + 1) if self.full % n == 0)
                raise UserError(
                    f"train.lengths={list(self.shorter)}: {length} does not divide data.seq_length={self.full}, so "
                    f"rows cannot be unfolded into it; {fitting} does, or use train.lengths_mode=truncate"
                )
        shares = (0.0, *self.until, 1.0)
        if any(not before < after for before, after in pairwise(shares)):  # also refuses NaN
            raise UserError(
                f"train.lengths_until={list(self.until)} must be shares of the budget between 0 and 1, ascending, "
                "such as [0.2,0.5]"
            )

    def __call__(self, progress: float) -> int:
        """The length, in tokens, of what is drawn at ``progress``."""
        return next((n for n, end in zip(self.shorter, self.until, strict=True) if progress < end), self.full)

    def pieces(self, length: int) -> int:
        """How many sequences of ``length`` tokens a row gives."""
        return self.full // length if self.unfold else 1

    @property
    def all(self) -> tuple[int, ...]:
        """Every length that occurs, the full one first."""
        return (self.full, *sorted({*self.shorter}))


@dataclass(frozen=True)
class BatchSize:
    """Sequences of a step by progress: stairs of one height from ``start`` to ``end``, over ``until`` of the budget.

    Every size is held for the same share of the budget; ``end`` is there when ``until`` is over, and stays.

    Raises:
        UserError: a share that is not above 0 and up to 1.
    """

    start: int
    end: int
    until: float

    def __post_init__(self) -> None:
        if not 0.0 < self.until <= 1.0:
            raise UserError(
                f"train.batch_size_ramp={self.until} is not a share of the budget above 0 and up to 1; it says until "
                "when train.batch_size_initial grows to train.batch_size"
            )

    def __call__(self, progress: float) -> int:
        """The size of the step that begins at ``progress``."""
        height = math.gcd(self.start, self.end)
        stairs = abs(self.end - self.start) // height
        climbed = min(stairs, math.floor(progress / self.until * (stairs + 1)))
        return self.start + climbed * height * (1 if self.end > self.start else -1)
