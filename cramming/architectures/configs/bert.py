"""``arch=bert``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn


NORM_SCHEMES = ("post", "pre")


@register("arch", "bert")
@dataclass
class BertConfig(ArchConfig):
    """BERT as published (https://arxiv.org/abs/1810.04805): post-norm, erf GELU, learned positions.

    With ``norm_scheme=pre``, and neither a norm of the embeddings nor a bias of the logits, it is 24hBERT
    (https://arxiv.org/abs/2104.07705).

    Raises:
        UserError: sizes that no model can have, a norm scheme that does not exist; ``build``: sequences longer than the
            position table.
    """

    # A norm, a bias or a few words more or less are within what repeated measurements differ by.
    FREE: ClassVar[tuple[str, ...]] = (
        *ArchConfig.FREE, "norm_scheme", "embedding_norm", "decoder_bias", "pad_vocab_to"
    )  # fmt: skip

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
    pad_vocab_to: int = 1  # rows of the vocabulary are filled up to a multiple of this, such as matrix units like
    norm_scheme: str = "post"  # where the norms are: after each sublayer; or pre: before, and one after the last
    embedding_norm: bool = True
    decoder_bias: bool = True  # of the logits
    norm_eps: float = 1e-12
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("layers", "hidden", "heads", "intermediate", "token_types", "pad_vocab_to")
        self._one_of("norm_scheme", NORM_SCHEMES)
        self._heads_divide_hidden(self.heads, self.hidden)

    def rows(self, vocab_size: int) -> int:
        """Rows of the vocabulary's matrices."""
        return self._padded(vocab_size, self.pad_vocab_to)

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        positions = self._position_rows(seq_length, self.max_positions)
        from cramming.architectures.bert import Bert, BertClassifier

        if labels is None:
            return Bert(self, self.rows(vocab_size), positions)
        return BertClassifier(self, self.rows(vocab_size), positions, labels)
