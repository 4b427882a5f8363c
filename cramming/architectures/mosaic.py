"""MosaicBERT: https://arxiv.org/abs/2312.17482, code https://github.com/mosaicml/examples.

Shape legend: T tokens after unpadding, H hidden, N predicted tokens of the batch.
"""

from typing import Any

from torch import Tensor, nn

from cramming.architectures.configs.mosaic import ANY_LENGTH, MosaicConfig
from cramming.architectures.encoder import Classifier, MaskedLanguageModel
from cramming.architectures.initialization import initialize
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.embedding import Embeddings
from cramming.architectures.layers.feedforward import FeedForward
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.norm import make_norm
from cramming.architectures.layers.unpadding import Layout, Queries

HEAD_NORM_EPS = 1e-12  # whatever ``norm_eps`` is


class MosaicBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feedforward(x)).

    With gates, dropout comes before the feed-forward part's second matrix and not after it.
    """

    def __init__(self, config: MosaicConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.hidden, config.heads, config.attention_dropout, alibi=True)
        self.attention_norm = make_norm(config.norm, config.hidden, config.norm_eps)
        self.feedforward = FeedForward(
            config.hidden,
            2 * config.intermediate if config.glu else config.intermediate,
            gated=config.glu,
            bias=not config.glu,
            output_bias=True,
            dropout=config.dropout if config.glu else 0.0,
        )
        self.feedforward_norm = make_norm(config.norm, config.hidden, config.norm_eps)
        self.attention_dropout = nn.Dropout(config.dropout)
        self.feedforward_dropout = nn.Dropout(0.0 if config.glu else config.dropout)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: attention reads every token, the rest runs on theirs only."""
        residual = x if queries is None else queries.select(x)
        x = self.attention_norm(residual + self.attention_dropout(self.attention(x, layout, queries)))
        x = self.feedforward_norm(x + self.feedforward_dropout(self.feedforward(x)))
        return x


class Mosaic(MaskedLanguageModel):
    """The encoder with the masked-language-model head."""

    def __init__(self, config: MosaicConfig, vocab_size: int) -> None:
        super().__init__(**_parts(config, vocab_size))
        self.head = MaskedLanguageHead(config.hidden, vocab_size, norm=config.norm, norm_eps=HEAD_NORM_EPS)
        initialize(self, config.init_std)


class MosaicClassifier(Classifier):
    """The encoder with a classification head on its first token."""

    def __init__(self, config: MosaicConfig, vocab_size: int, labels: int) -> None:
        super().__init__(**_parts(config, vocab_size))
        dropout = config.dropout if config.classifier_dropout is None else config.classifier_dropout
        self.head = ClassificationHead(config.hidden, labels, dropout)
        initialize(self, config.init_std)


def _parts(config: MosaicConfig, vocab_size: int) -> dict[str, Any]:
    """What the encoder is made of."""
    embeddings = Embeddings(
        vocab_size,
        ANY_LENGTH,
        config.hidden,
        position="none",
        token_types=config.token_types,
        norm=config.norm,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )
    blocks = [MosaicBlock(config) for _ in range(config.layers)]
    return {"embeddings": embeddings, "blocks": blocks, "vocab_size": vocab_size, "max_positions": ANY_LENGTH}
