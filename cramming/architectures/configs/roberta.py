"""``arch=roberta``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cramming.architectures.configs.bert import BertConfig
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn


@register("arch", "roberta")
@dataclass
class RobertaConfig(BertConfig):
    """RoBERTa as published (https://arxiv.org/abs/1907.11692): BERT with one type of token, which counts the positions
    of tokens without the padding between them.

    Raises:
        UserError: sizes that no model can have; ``build``: sequences longer than the position table.
    """

    kind: str = "roberta"
    name: str = "roberta"
    batch_size: int = 8192
    vocab_size: int = 50265
    token_types: int = 1
    norm_eps: float = 1e-5

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        positions = self._position_rows(seq_length, self.max_positions)
        from cramming.architectures.roberta import Roberta, RobertaClassifier

        if labels is None:
            return Roberta(self, self.rows(vocab_size), positions)
        return RobertaClassifier(self, self.rows(vocab_size), positions, labels)
