"""A piece of work that somebody has to pay for."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["forward", "forward_backward", "update"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Work:
    """One call of a model, or one optimizer update.

    Attributes:
        kind: ``forward`` (no gradient), ``forward_backward``, or ``update`` (one optimizer step).
        sequences: how many sequences went through the model; 0 for an update.
        length: their padded length in tokens; 0 for an update.
        layers: how many layers were active.
        model: which model did it; each has a cost model of its own.

    Raises:
        ValueError: a kind that does not exist, or a negative number.
    """

    kind: Kind
    sequences: int = 0
    length: int = 0
    layers: int = 0
    model: str = "main"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of work {self.kind!r}: must be one of {', '.join(KINDS)}")
        for name, value in (("sequences", self.sequences), ("length", self.length), ("layers", self.layers)):
            if value < 0:
                raise ValueError(f"work with {name}={value}: must not be negative")
