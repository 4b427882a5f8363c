"""BERT as published: https://arxiv.org/abs/1810.04805, code https://github.com/google-research/bert.

With norms before the sublayers it is the encoder of https://arxiv.org/abs/2104.07705, known as 24hBERT.

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


class Block(nn.Module):
    """Attention, then a feed-forward part, f in turn. ``post``: norm(x + f(x)). ``pre``: x + f(norm(x))."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.pre = config.norm_scheme == "pre"
        self.attention = SelfAttention(config.hidden, config.heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.feedforward = FeedForward(config.hidden, config.intermediate)
        self.feedforward_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: attention reads every token, the rest runs on theirs only."""
        residual = x if queries is None else queries.select(x)
        if self.pre:
            x = residual + self.dropout(self.attention(self.attention_norm(x), layout, queries))
            return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        x = self.attention_norm(residual + self.dropout(self.attention(x, layout, queries)))
        x = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return x


class Bert(MaskedLanguageModel):
    """BERT with the masked-language-model head."""

    def __init__(self, config: BertConfig, vocab_size: int, max_positions: int) -> None:
        super().__init__(**_parts(config, vocab_size, max_positions))
        self.head = MaskedLanguageHead(
            config.hidden, vocab_size, norm_eps=config.norm_eps, decoder_bias=config.decoder_bias
        )
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
        norm="layernorm" if config.embedding_norm else None,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )
    return {
        "embeddings": embeddings,
        "blocks": [Block(config) for _ in range(config.layers)],
        "vocab_size": vocab_size,
        "max_positions": max_positions,
        "final_norm": nn.LayerNorm(config.hidden, eps=config.norm_eps) if config.norm_scheme == "pre" else None,
    }
