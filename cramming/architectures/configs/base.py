"""What every architecture's options have in common. Nothing here imports torch; ``build`` does when it is called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cramming.errors import UserError
from cramming.suggest import nearest

if TYPE_CHECKING:
    from torch import nn


@dataclass
class ArchConfig:
    """What every architecture has; the subclass registered under ``kind`` adds its own sizes.

    Attributes:
        FREE: fields that change nothing of what a pass costs, which cost tables therefore do not ask about. A family
            extends it with its own.

    Raises:
        UserError: a probability outside [0, 1), or a size below 1.
    """

    FREE: ClassVar[tuple[str, ...]] = (
        "name", "batch_size", "vocab_size", "init_std", "norm_eps", "separate_documents"
    )  # fmt: skip

    kind: str = "???"
    name: str = "???"
    batch_size: int = 64  # sequences in one optimizer step, as published for this size
    vocab_size: int = 8192  # the tokenizer size that suits this architecture; data.vocab_size follows it
    separate_documents: bool = False  # how this family trains on packed rows; train.separate_documents follows it
    dropout: float = 0.0  # of embeddings and of each sublayer's output, in training mode
    attention_dropout: float = 0.0  # of attention probabilities, in training mode

    def __post_init__(self) -> None:
        self._probabilities("dropout", "attention_dropout")
        self._at_least_one("batch_size", "vocab_size")

    @property
    def drops_out(self) -> bool:
        """Whether pretraining with these options draws random numbers, and so runs in training mode."""
        return self.dropout > 0 or self.attention_dropout > 0

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        """The model with fresh weights.

        Args:
            vocab_size: number of token ids of the tokenizer in use.
            seq_length: longest sequence it will see, in tokens.
            labels: None for the masked-language-model head; else a classification head of that many outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no architecture by itself")

    def shortened(self, layers: int) -> ArchConfig:
        """Options of the model that the first so many layers of this one are, with its weights.

        Raises:
            UserError: there are no options that make them compute the same alone.
        """
        return replace(self, layers=layers)  # type: ignore[call-arg]

    def _at_least_one(self, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"arch.{key}={value} is too small: it must be at least 1")

    def _probabilities(self, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            if value is not None and not 0.0 <= value < 1.0:
                raise UserError(f"arch.{key}={value} is not a probability below 1: choose it from [0, 1)")

    def _one_of(self, key: str, known: Collection[str]) -> None:
        value = getattr(self, key)
        if value not in known:
            raise UserError(f"arch.{key}={value} is unknown{nearest(str(value), known)}")

    def _heads_divide_hidden(self, heads: int, hidden: int) -> None:
        if hidden % heads:
            fitting = [n for n in range(1, hidden + 1) if hidden % n == 0]
            close = min(fitting, key=lambda n: abs(n - heads))
            raise UserError(
                f"arch.heads={heads} does not divide arch.hidden={hidden}: the nearest that does is {close}"
            )

    def _position_rows(self, seq_length: int, max_positions: int | None) -> int:
        """Rows of a position table: as many as are asked for, or as the data's sequences have.

        Raises:
            UserError: sequences longer than the table.
        """
        if max_positions is not None and seq_length > max_positions:
            raise UserError(
                f"data.seq_length={seq_length} is longer than arch.max_positions={max_positions}: "
                f"shorten the sequences or raise arch.max_positions"
            )
        return seq_length if max_positions is None else max_positions

    @staticmethod
    def _padded(vocab_size: int, multiple: int) -> int:
        """Rows of the vocabulary's matrices: filled up to a multiple, with ids that no text has."""
        return -(-vocab_size // multiple) * multiple
