"""ModernBERT (https://arxiv.org/abs/2412.13663; https://github.com/AnswerDotAI/ModernBERT) and others of its form.

NeoBERT (https://arxiv.org/abs/2502.19587) is this with RMSNorm, SiLU for gates, no norm of embeddings, all keys seen in
every layer, and nothing between the encoder and a vocabulary matrix of its own.

Shape legend: T tokens after unpadding, H hidden, N predicted tokens of the batch.
"""

from typing import Any

from torch import Tensor, nn

from cramming.architectures.configs.modern import ModernConfig
from cramming.architectures.encoder import Classifier, MaskedLanguageModel
from cramming.architectures.initialization import initialize_by_place
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.embedding import Embeddings
from cramming.architectures.layers.feedforward import FeedForward
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.norm import make_norm
from cramming.architectures.layers.unpadding import Layout, Queries


class PreNormBlock(nn.Module):
    """x = x + attention(norm(x)); x = x + feedforward(norm(x)).

    Where embeddings are normed, the first block has no norm before attention: it would be the second in a row.
    """

    def __init__(self, config: ModernConfig, layer: int) -> None:
        super().__init__()
        sees_all = config.sees_all(layer)
        self.attention_norm = None if layer == 0 and config.embedding_norm else _norm(config)
        self.attention = SelfAttention(
            config.hidden,
            config.heads,
            config.attention_dropout,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            rotary=config.theta if sees_all else config.local_theta,
            window=None if sees_all else config.window,
        )
        self.feedforward_norm = _norm(config)
        self.feedforward = FeedForward(
            config.hidden,
            2 * config.intermediate,
            nonlin=config.nonlin,
            gated=True,
            bias=config.feedforward_bias,
            dropout=config.feedforward_dropout,
        )
        self.attention_dropout = nn.Dropout(config.attention_outputs_drop_out)
        self.feedforward_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: attention reads every token, the rest runs on theirs only."""
        normed = x if self.attention_norm is None else self.attention_norm(x)
        kept = x if queries is None else queries.select(x)
        x = kept + self.attention_dropout(self.attention(normed, layout, queries))
        return x + self.feedforward_dropout(self.feedforward(self.feedforward_norm(x)))


class Modern(MaskedLanguageModel):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: ModernConfig, vocab_size: int, seq_length: int) -> None:
        super().__init__(**_parts(config, vocab_size, seq_length))
        self.head = MaskedLanguageHead(
            config.hidden,
            vocab_size,
            transform=config.head,
            nonlin=config.head_nonlin,
            norm=config.norm,
            norm_eps=config.norm_eps,
            norm_bias=config.norm_bias,
            bias=config.head_bias,
            decoder_bias=config.decoder_bias,
            tied=config.tie_weights,
        )
        initialize_by_place(self, config.init, config.init_std, config.init_cutoff)


class ModernClassifier(Classifier):
    """The encoder with a classification head."""

    def __init__(self, config: ModernConfig, vocab_size: int, seq_length: int, labels: int) -> None:
        super().__init__(**_parts(config, vocab_size, seq_length))
        head = config.classification_head
        self.head = ClassificationHead(
            config.hidden,
            labels,
            head.classifier_dropout,
            pooler=head.pooler,
            nonlin=head.nonlin,
            bias=head.bias,
            norm=config.norm if head.norm else None,
            norm_eps=config.norm_eps,
            norm_bias=config.norm_bias,
        )
        initialize_by_place(self, config.init, config.init_std, config.init_cutoff)


def _norm(config: ModernConfig) -> nn.Module:
    return make_norm(config.norm, config.hidden, config.norm_eps, config.norm_bias)


def _parts(config: ModernConfig, vocab_size: int, seq_length: int) -> dict[str, Any]:
    """What the encoder is made of."""
    embeddings = Embeddings(
        vocab_size,
        seq_length,
        config.hidden,
        position="none",
        norm=config.norm if config.embedding_norm else None,
        norm_eps=config.norm_eps,
        norm_bias=config.norm_bias,
        dropout=config.embeddings_drop_out,
    )
    return {
        "embeddings": embeddings,
        "blocks": [PreNormBlock(config, layer) for layer in range(config.layers)],
        "vocab_size": vocab_size,
        "max_positions": seq_length,  # what it is trained for: nothing depends on it, and longer sequences run
        "final_norm": _norm(config),
    }
