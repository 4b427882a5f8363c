"""Sequence-length warm-up (Li et al. 2022, "The Stability-Efficiency Dilemma: Investigating Sequence Length Warmup for
Training GPT Models", https://arxiv.org/abs/2108.06084).

Sequences are short at first and grow linearly with the budget spent, rounded down to a step of lengths; validation is
always at full length. Costs nothing: short sequences are priced at what they cost, which ``rst=calibrate`` measures for
every length that occurs, so ``multiple`` should leave few of them. The paper grows by steps and not by the budget, in
multiples of 8.
"""

from dataclasses import dataclass

from cramming.errors import UserError
from cramming.lengths import MODES, SHORTEST, Lengths
from cramming.method import Method
from cramming.registry import register
from cramming.suggest import nearest

MOST = 16  # lengths in all: each is measured for its price, and compiled for


@register("method", "length_warmup")
@dataclass
class LengthWarmup(Method):
    """Grow sequences from ``start`` tokens to full length.

    At progress p they have start + (full - start) p / until tokens, rounded down to one of start, start + multiple,
    start + 2 multiple, ...; where rows are unfolded, to one of these that divides a row.

    Attributes:
        start: tokens at first; the full length (``data.seq_length``) changes nothing.
        until: share of the budget at which they have full length.
        multiple: tokens between one length and the next.
        mode: ``truncate`` drops the end of each row, so that short steps have fewer tokens; ``unfold`` cuts rows into
            sequences of their own, so that they have as many.

    Raises:
        UserError: an option outside its range; when the full length is known, a start beyond it, too many lengths, or
            a start that rows cannot be unfolded into.
    """

    start: int = 32
    until: float = 0.3
    multiple: int = 32
    mode: str = "truncate"

    def __post_init__(self) -> None:
        if self.start < SHORTEST:
            raise UserError(f"method.length_warmup.start={self.start} must be at least {SHORTEST} tokens")
        if not 0 < self.until < 1:
            raise UserError(
                f"method.length_warmup.until={self.until} is the share of the budget at which sequences have full "
                "length: give a number between 0 and 1, such as 0.3"
            )
        if self.multiple < 1:
            raise UserError(f"method.length_warmup.multiple={self.multiple} must be at least 1 token, such as 32")
        if self.mode not in MODES:
            raise UserError(f"method.length_warmup.mode={self.mode} is unknown{nearest(self.mode, MODES)}")

    def lengths(self, full: int) -> Lengths:
        """Each length, until the line from ``start`` to ``full`` reaches the next one."""
        if self.start > full:
            raise UserError(
                f"method.length_warmup.start={self.start} is longer than data.seq_length={full}; give less, or "
                f"{full}, which changes nothing"
            )
        if self.start == full:
            return Lengths(full)
        unfold = self.mode == "unfold"
        if unfold and full % self.start:
            fitting = max(n for n in range(1, self.start + 1) if full % n == 0)
            raise UserError(
                f"method.length_warmup.start={self.start} does not divide data.seq_length={full}, so rows cannot be "
                f"unfolded into it; {fitting} does, or use method.length_warmup.mode=truncate"
            )
        shorter = [n for n in range(self.start, full, self.multiple) if not unfold or full % n == 0]
        if len(shorter) >= MOST:
            few = -(-(full - self.start) // (MOST - 1))
            raise UserError(
                f"method.length_warmup.multiple={self.multiple} makes {len(shorter) + 1} lengths from {self.start} to "
                f"{full}, and each is measured by itself; give {few} or more"
            )
        ends = [self.until * (n - self.start) / (full - self.start) for n in (*shorter[1:], full)]
        return Lengths(full, tuple(shorter), tuple(ends), unfold)
