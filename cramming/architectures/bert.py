"""BERT as published: https://arxiv.org/abs/1810.04805, code https://github.com/google-research/bert.

Shape legend: T tokens after unpadding, H hidden, N predicted tokens of the batch.
"""

from typing import Any

from torch import Tensor, nn

from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.encoder import Classifier, MaskedLanguageModel
from cramming.architectures.initialization import initialize
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.embedding import Embeddings
from cramming.architectures.layers.feedforward import FeedForward
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.unpadding import Layout, Queries


class PostNormBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feedforward(x))."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.hidden, config.heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.feedforward = FeedForward(config.hidden, config.intermediate)
        self.feedforward_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: attention reads every token, the rest runs on theirs only."""
        residual = x if queries is None else queries.select(x)
        x = self.attention_norm(residual + self.dropout(self.attention(x, layout, queries)))
        x = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return x


class Bert(MaskedLanguageModel):
    """BERT with the masked-language-model head."""

    def __init__(self, config: BertConfig, vocab_size: int, max_positions: int) -> None:
        super().__init__(**_parts(config, vocab_size, max_positions))
        self.head = MaskedLanguageHead(config.hidden, vocab_size, norm_eps=config.norm_eps)
        initialize(self, config.init_std)


class BertClassifier(Classifier):
    """BERT with a classification head on its first token."""

    def __init__(self, config: BertConfig, vocab_size: int, max_positions: int, labels: int) -> None:
        super().__init__(**_parts(config, vocab_size, max_positions))
        self.head = ClassificationHead(config.hidden, labels, config.dropout)
        initialize(self, config.init_std)


def _parts(config: BertConfig, vocab_size: int, max_positions: int) -> dict[str, Any]:
    """What the encoder is made of."""
    embeddings = Embeddings(
        vocab_size,
        max_positions,
        config.hidden,
        position="learned",
        token_types=config.token_types,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )
    blocks = [PostNormBlock(config) for _ in range(config.layers)]
    return {"embeddings": embeddings, "blocks": blocks, "vocab_size": vocab_size, "max_positions": max_positions}
