"""Heads of tasks that read more than one vector of a text: words it asks about, or every word.

Shape legend: R texts, S positions, H hidden, K spans of a text, C outputs.
"""

import torch
from torch import Tensor, nn

from cramming.architectures.layers.heads import ClassificationHead

INIT_STD = 0.02  # of matrices that no architecture initializes: BERT's (https://arxiv.org/abs/1810.04805, its code)


class NoHead(nn.Module):
    """In the place of an encoder's head where another one reads its states.

    Args:
        pool_padding: as of the head that was there.
    """

    def __init__(self, pool_padding: bool = False) -> None:
        super().__init__()
        self.pool_padding = pool_padding


class SpanHead(nn.Module):
    """What a classification head makes of the text, beside the mean of each span's states: one linear layer on all.

    As the baselines of SuperGLUE join the states of marked words to that of [CLS] (https://arxiv.org/abs/1905.00537,
    section 4.1).

    Args:
        base: whose pooling, dense layer and dropout it uses; its last layer it exchanges.
        hidden: H.
        spans: K, of every text.
        labels: C.
    """

    def __init__(self, base: ClassificationHead, hidden: int, spans: int, labels: int) -> None:
        super().__init__()
        self.spans = spans
        self.base = base
        base.classifier = _linear(base.classifier.in_features + spans * hidden, labels)

    def forward(self, states: Tensor, mask: Tensor | None, spans: Tensor) -> Tensor:
        """(R, S, H), (R, S), (R, K, 2) -> (R, C).

        Args:
            states: of the text.
            mask: true where a token is; None: everywhere.
            spans: first token and one past the last; the mean of one that was cut off, (0, 0), is zeros.
        """
        text = self.base.features(states, mask)
        within = _within(spans, states.shape[1]).to(states.dtype)
        means = within @ states / within.sum(2, keepdim=True).clamp(min=1)
        return self.base.decide(torch.cat((text, means.flatten(1)), dim=1))


class WordHead(nn.Module):
    """One linear layer on the state of each word's first token (https://arxiv.org/abs/1810.04805, section 5.3).

    Args:
        hidden: H.
        labels: C.
        dropout: before it, in training mode.
    """

    def __init__(self, hidden: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = _linear(hidden, labels)

    def forward(self, states: Tensor, spans: Tensor) -> Tensor:
        """(R, S, H), (R, K, 2) -> (R, K, C); where there is no word, or it was cut off, anything finite."""
        first = spans[..., :1].clamp(min=0).expand(-1, -1, states.shape[2])
        logits: Tensor = self.classifier(self.dropout(states.gather(1, first)))
        return logits


def pooled_head(hidden: int, labels: int, dropout: float, pooler: str) -> ClassificationHead:
    """A head of BERT's form, dense and tanh, for a network whose own cannot do what is asked."""
    head = ClassificationHead(hidden, labels, dropout, pooler=pooler)
    for layer in (head.pooler, head.classifier):
        assert layer is not None
        _initialize(layer)
    return head


def _within(spans: Tensor, length: int) -> Tensor:
    """Which positions a span holds: (R, K, 2) -> (R, K, S) bool."""
    places = torch.arange(length, device=spans.device)
    return (places >= spans[..., :1]) & (places < spans[..., 1:])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    _initialize(layer)
    return layer


def _initialize(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)
