"""The encoder of "Cramming" (https://arxiv.org/abs/2212.14034) and its variants.

Code: https://github.com/JonasGeiping/cramming, and https://github.com/JeanKaddour/NoTrainNoGain, whose model is the
default here.

Shape legend: T tokens after unpadding, H hidden, N predicted tokens of the batch.
"""

from typing import Any

from torch import Tensor, nn

from cramming.architectures.configs.crammed import CrammedConfig
from cramming.architectures.encoder import Classifier, MaskedLanguageModel
from cramming.architectures.initialization import initialize, spread
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.embedding import Embeddings
from cramming.architectures.layers.feedforward import FeedForward
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.norm import make_norm
from cramming.architectures.layers.rotary import BASE
from cramming.architectures.layers.unpadding import Layout, Queries


class Sublayer(nn.Module):
    """Attention or feed-forward with its residual and norms.

    ``pre``: a x + f(norm(x)). ``post``: norm(a x + f(x)). ``sandwich``: a x + output_norm(f(norm(x))). a is 1, or
    (2 L)^(1/4) with DeepNorm's scaling.
    """

    def __init__(self, config: CrammedConfig, function: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.norm = make_norm(config.norm, config.hidden, config.norm_eps)
        sandwich = config.norm_scheme == "sandwich"
        self.output_norm = make_norm(config.norm, config.hidden, config.norm_eps) if sandwich else None
        self.post = config.norm_scheme == "post"
        self.scale = (2 * config.layers) ** 0.25 if config.deepnorm_scaling else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout | None = None, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``; attention takes the layout, a feed-forward part does without."""
        inputs = x if self.post else self.norm(x)
        change = self.dropout(self.function(inputs) if layout is None else self.function(inputs, layout, queries))
        if self.output_norm is not None:
            change = self.output_norm(change)
        kept = x if queries is None else queries.select(x)
        x = (kept if self.scale is None else kept * self.scale) + change
        return self.norm(x) if self.post else x


class Block(nn.Module):
    """Attention, then in every n-th layer a feed-forward part, n being ``ffn_layer_frequency``."""

    def __init__(self, config: CrammedConfig, layer: int) -> None:
        super().__init__()
        attention = SelfAttention(
            config.hidden,
            config.heads,
            config.attention_dropout,
            qkv_bias=config.qkv_bias,
            output_bias=config.bias,
            rotary=BASE if config.rotary else None,
        )
        self.attention = Sublayer(config, attention)
        self.feedforward = None
        if (layer + 1) % config.ffn_layer_frequency == 0:
            feedforward = FeedForward(
                config.hidden, config.intermediate, nonlin=config.nonlin, gated=config.glu, bias=config.bias
            )
            self.feedforward = Sublayer(config, feedforward)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: attention reads every token, the rest runs on theirs only."""
        x = self.attention(x, layout, queries)
        return x if self.feedforward is None else self.feedforward(x)


class Crammed(MaskedLanguageModel):
    """The encoder with a masked-language-model head."""

    def __init__(self, config: CrammedConfig, vocab_size: int, max_positions: int) -> None:
        super().__init__(**_parts(config, vocab_size, max_positions))
        self.head = MaskedLanguageHead(
            config.hidden,
            vocab_size,
            config.embedding_width,
            transform=config.head,
            nonlin=config.nonlin,
            norm=config.norm,
            norm_eps=config.norm_eps,
            bias=config.bias,
            decoder_bias=config.decoder_bias,
            tied=config.tie_weights,
        )
        initialize(self, spread(config.init, config.hidden, config.layers, config.init_std))


class CrammedClassifier(Classifier):
    """The encoder with a classification head."""

    def __init__(self, config: CrammedConfig, vocab_size: int, max_positions: int, labels: int) -> None:
        super().__init__(**_parts(config, vocab_size, max_positions))
        head = config.classification_head
        self.head = ClassificationHead(
            config.hidden,
            labels,
            head.classifier_dropout,
            pooler=head.pooler,
            width=head.head_dim if head.include_ff_layer else 0,
            nonlin=head.nonlin,
            pool_padding=head.pool_padding,
        )
        initialize(self, spread(config.init, config.hidden, config.layers, config.init_std))


def _parts(config: CrammedConfig, vocab_size: int, max_positions: int) -> dict[str, Any]:
    """What the encoder is made of."""
    embeddings = Embeddings(
        vocab_size,
        max_positions,
        config.embedding_width,
        position=config.position,
        norm=config.norm if config.embedding_norm else None,
        norm_eps=config.norm_eps,
        dropout=config.embeddings_drop_out,
        hidden=config.hidden,
        bias=config.bias,
    )
    return {
        "embeddings": embeddings,
        "blocks": [Block(config, layer) for layer in range(config.layers)],
        "vocab_size": vocab_size,
        "max_positions": max_positions,
        "final_norm": make_norm(config.norm, config.hidden, config.norm_eps) if config.final_norm else None,
        "attend_padding": config.attend_padding,
    }
