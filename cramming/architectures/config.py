"""What a user may say about an architecture. Nothing here imports torch; ``build`` does when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from cramming.errors import UserError
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn


@dataclass
class ArchConfig:
    """What every architecture has; the subclass registered under ``kind`` adds its own sizes.

    Raises:
        UserError: a probability outside [0, 1), or a size below 1.
    """

    kind: str = "???"
    name: str = "???"
    batch_size: int = 64  # sequences in one optimizer step, as published for this size
    vocab_size: int = 8192  # the tokenizer size that suits this architecture; data.vocab_size follows it
    dropout: float = 0.0  # of embeddings and of each sublayer's output, in training mode
    attention_dropout: float = 0.0  # of attention probabilities, in training mode

    def __post_init__(self) -> None:
        for key in ("dropout", "attention_dropout"):
            value = getattr(self, key)
            if not 0.0 <= value < 1.0:
                raise UserError(f"arch.{key}={value} is not a probability below 1: choose it from [0, 1)")
        self._at_least_one("batch_size", "vocab_size")

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        """The model with fresh weights.

        Args:
            vocab_size: number of token ids of the tokenizer in use.
            seq_length: longest sequence it will see, in tokens.
            labels: None for the masked-language-model head; else a classification head of that many outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} describes no architecture by itself")

    def _at_least_one(self, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            if value < 1:
                raise UserError(f"arch.{key}={value} is too small: it must be at least 1")


@register("arch", "bert")
@dataclass
class BertConfig(ArchConfig):
    """BERT as published (https://arxiv.org/abs/1810.04805): post-norm, erf GELU, learned positions.

    Raises:
        UserError: sizes that no model can have; ``build``: sequences longer than the position table.
    """

    kind: str = "bert"
    name: str = "bert"
    batch_size: int = 256
    vocab_size: int = 30522
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    # Rows of the position table; None: as many as the data's sequences have.
    max_positions: Optional[int] = None  # noqa: UP045 (OmegaConf reads this form)
    token_types: int = 2  # pretraining uses type 0 only
    norm_eps: float = 1e-12
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("layers", "hidden", "heads", "intermediate", "token_types")
        if self.hidden % self.heads:
            fitting = [n for n in range(1, self.hidden + 1) if self.hidden % n == 0]
            close = min(fitting, key=lambda n: abs(n - self.heads))
            raise UserError(
                f"arch.heads={self.heads} does not divide arch.hidden={self.hidden}: the nearest that does is {close}"
            )

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        if self.max_positions is not None and seq_length > self.max_positions:
            raise UserError(
                f"data.seq_length={seq_length} is longer than arch.max_positions={self.max_positions}: "
                f"shorten the sequences or raise arch.max_positions"
            )
        from cramming.architectures.bert import Bert, BertClassifier

        positions = seq_length if self.max_positions is None else self.max_positions
        if labels is None:
            return Bert(self, vocab_size, positions)
        return BertClassifier(self, vocab_size, positions, labels)
