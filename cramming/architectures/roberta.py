"""RoBERTa: https://arxiv.org/abs/1907.11692, code https://github.com/facebookresearch/fairseq (``examples/roberta``).

Shape legend: B sequences, S positions.
"""

from torch import Tensor

from cramming.architectures.bert import Bert, BertClassifier
from cramming.architectures.encoder import Encoder
from cramming.architectures.layers.unpadding import Layout


class _CountsTokens(Encoder):
    """A token's position is the number of tokens before it, wherever padding stands.

    The reference counts from the padding's id + 1, so that the first rows of its table are never read; ours begins
    with the row that its first token reads.
    """

    def layout(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Layout:
        """The layout of (B, S); every sequence begins at its first token."""
        if mask is not None and starts is None:
            tokens = mask.bool()
            starts = tokens & (tokens.cumsum(1) == 1)
        return super().layout(inputs, mask, lengths, starts)


class Roberta(_CountsTokens, Bert):
    """RoBERTa with the masked-language-model head."""


class RobertaClassifier(_CountsTokens, BertClassifier):
    """RoBERTa with a classification head on its first token."""
