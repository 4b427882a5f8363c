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
        short_length: tokens of each sequence that went through the short layers; 0 where there are none.
        short_layers: how many of the layers, of those before the last, ran on so many tokens only.

    Raises:
        ValueError: a kind that does not exist, a negative number, or short layers that cannot be.
    """

    kind: Kind
    sequences: int = 0
    length: int = 0
    layers: int = 0
    model: str = "main"
    short_length: int = 0
    short_layers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of work {self.kind!r}: must be one of {', '.join(KINDS)}")
        for name in ("sequences", "length", "layers", "short_length", "short_layers"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"work with {name}={value}: must not be negative")
        if self.short_layers and not (self.short_layers < self.layers and 0 < self.short_length <= self.length):
            raise ValueError(
                f"work with {self.short_layers} short layers of {self.short_length} tokens among {self.layers} layers "
                f"of {self.length}: the last layer is never short, and short ones have 1 to {self.length} tokens"
            )
