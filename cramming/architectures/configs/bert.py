"""``arch=bert``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn


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
        self._heads_divide_hidden(self.heads, self.hidden)

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        positions = self._position_rows(seq_length, self.max_positions)
        from cramming.architectures.bert import Bert, BertClassifier

        if labels is None:
            return Bert(self, vocab_size, positions)
        return BertClassifier(self, vocab_size, positions, labels)
