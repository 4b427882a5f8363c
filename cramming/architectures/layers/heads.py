"""What turns hidden states into predictions.

Shape legend: N tokens, B sequences, S positions, H hidden, E width of the embeddings, V vocabulary, C labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.layers.activation import ACTIVATIONS
from cramming.architectures.layers.cross_entropy import linear_cross_entropy
from cramming.architectures.layers.norm import make_norm


class MaskedLanguageHead(nn.Module):
    """A transform to the embeddings' width, then the vocabulary projection, by default the embedding matrix.

    That matrix is passed to each call: it belongs to the embeddings.

    Args:
        hidden: H.
        vocab_size: V.
        width: E.
        transform: ``transform`` (linear, nonlinearity, norm: BERT's), ``linear`` or ``none``.
        nonlin: the nonlinearity, a key of ``ACTIVATIONS``.
        norm: see ``make_norm``.
        norm_eps: its epsilon.
        norm_bias: see ``make_norm``.
        bias: whether the linear layer has a bias.
        decoder_bias: whether the logits have a bias.
        tied: use the embedding matrix; else one of its own.
    """

    ways = frozenset({"cross_entropy"})
    plain: frozenset[str] = frozenset()

    def __init__(
        self,
        hidden: int,
        vocab_size: int,
        width: int | None = None,
        *,
        transform: str = "transform",
        nonlin: str = "gelu",
        norm: str = "layernorm",
        norm_eps: float = 1e-12,
        norm_bias: bool = True,
        bias: bool = True,
        decoder_bias: bool = True,
        tied: bool = True,
    ) -> None:
        super().__init__()
        width = hidden if width is None else width
        self.activate = ACTIVATIONS[nonlin]
        self.dense = None if transform == "none" else nn.Linear(hidden, width, bias=bias)
        self.norm = make_norm(norm, width, norm_eps, norm_bias) if transform == "transform" else None
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if decoder_bias else None
        self.decoder = None if tied else nn.Linear(width, vocab_size, bias=False)

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """Logits: (N, H), (V, E) -> (N, V)."""
        return F.linear(self._transformed(x), self._decoder(embeddings), self.bias)

    def losses(self, x: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy: (N, H), (V, E), (N,) -> (N,) float32."""
        plain = "cross_entropy" in self.plain
        return linear_cross_entropy(self._transformed(x), self._decoder(embeddings), self.bias, labels, plain=plain)

    def _transformed(self, x: Tensor) -> Tensor:
        if self.dense is not None:
            x = self.dense(x)
        return x if self.norm is None else self.norm(self.activate(x))

    def _decoder(self, embeddings: Tensor) -> Tensor:
        return embeddings if self.decoder is None else self.decoder.weight


class ClassificationHead(nn.Module):
    """norm(nonlin(dense(pooled tokens))), dropout, one linear output per label; one label is a regression.

    Args:
        hidden: H.
        labels: C.
        dropout: before the last layer, in training mode.
        pooler: how a sequence's tokens become one vector: ``zero_index`` (the first), ``avg``, ``max``, ``lse``
            (log of the sum of exponentials).
        width: of the dense layer; None: H; 0: there is none.
        nonlin: the nonlinearity, a key of ``ACTIVATIONS``.
        bias: whether the dense layer has a bias.
        norm: see ``make_norm``; None: none.
        norm_eps: its epsilon.
        norm_bias: see ``make_norm``.
        pool_padding: pool over all positions, those of padding included.
    """

    def __init__(
        self,
        hidden: int,
        labels: int,
        dropout: float,
        *,
        pooler: str = "zero_index",
        width: int | None = None,
        nonlin: str = "tanh",
        bias: bool = True,
        norm: str | None = None,
        norm_eps: float = 1e-12,
        norm_bias: bool = True,
        pool_padding: bool = False,
    ) -> None:
        super().__init__()
        self.pool, self.activate, self.pool_padding = _POOLERS[pooler], ACTIVATIONS[nonlin], pool_padding
        self.pooler = None if width == 0 else nn.Linear(hidden, width or hidden, bias=bias)
        self.norm = None if norm is None else make_norm(norm, width or hidden, norm_eps, norm_bias)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width or hidden, labels)

    @property
    def labels(self) -> int:
        """C, the number of outputs."""
        return self.classifier.out_features

    @property
    def reads_first(self) -> bool:
        """Whether nothing but the first token's state goes into the logits."""
        return self.pool is _first

    def pool_by(self, pooler: str) -> None:
        """Another of the poolers."""
        self.pool = _POOLERS[pooler]

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits: (B, S, H), (B, S) true where a token is (None: everywhere) -> (B, C)."""
        return self.decide(self.features(hidden, mask))

    def features(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the last layer reads, before dropout: (B, S, H), (B, S) -> (B, width)."""
        pooled = self.pool(hidden, None if self.pool_padding else mask)
        if self.pooler is not None:
            pooled = self.pooler(pooled)
        pooled = self.activate(pooled)
        return pooled if self.norm is None else self.norm(pooled)

    def decide(self, features: Tensor) -> Tensor:
        """The last layer: (B, width) -> (B, C)."""
        logits: Tensor = self.classifier(self.dropout(features))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error for one label, mean cross entropy for more: (B, C), (B,) -> ()."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.labels == 1:
            return F.mse_loss(wide.squeeze(1), labels.to(wide.dtype).view(-1))
        return F.cross_entropy(wide, labels)


def _first(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden[:, 0]


def _average(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.mean(dim=1)
    return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _maximum(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return _without(hidden, mask).amax(dim=1)


def _log_sum_exp(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return _without(hidden, mask).logsumexp(dim=1)


def _without(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Padding lowered out of the way of maxima."""
    return hidden if mask is None else hidden.masked_fill(~mask[..., None], float("-inf"))


_POOLERS = {"zero_index": _first, "avg": _average, "max": _maximum, "lse": _log_sum_exp}
