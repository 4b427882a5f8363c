"""What turns hidden states into predictions.

Shape legend: N tokens, B sequences, H hidden, V vocabulary, C labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.layers.cross_entropy import linear_cross_entropy


class MaskedLanguageHead(nn.Module):
    """Dense, GELU, LayerNorm, then the embedding matrix as decoder with a bias of its own.

    The matrix is passed to each call: it belongs to the embeddings.
    """

    def __init__(self, hidden: int, vocab_size: int, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, decoder: Tensor) -> Tensor:
        """Logits: (N, H), (V, H) -> (N, V)."""
        return F.linear(self._transformed(x), decoder, self.bias)

    def losses(self, x: Tensor, decoder: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy: (N, H), (V, H), (N,) -> (N,) float32."""
        return linear_cross_entropy(self._transformed(x), decoder, self.bias, labels)

    def _transformed(self, x: Tensor) -> Tensor:
        transformed: Tensor = self.norm(F.gelu(self.dense(x)))
        return transformed


class ClassificationHead(nn.Module):
    """tanh(dense(first token)), dropout, one linear output per label; one label is a regression."""

    def __init__(self, hidden: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, labels)

    @property
    def labels(self) -> int:
        """C, the number of outputs."""
        return self.classifier.out_features

    def forward(self, first: Tensor) -> Tensor:
        """Logits of the first tokens' hidden states: (B, H) -> (B, C)."""
        logits: Tensor = self.classifier(self.dropout(torch.tanh(self.pooler(first))))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error for one label, mean cross entropy for more: (B, C), (B,) -> ()."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.labels == 1:
            return F.mse_loss(wide.squeeze(1), labels.to(wide.dtype).view(-1))
        return F.cross_entropy(wide, labels)
