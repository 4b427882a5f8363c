"""BERT as published: https://arxiv.org/abs/1810.04805, code https://github.com/google-research/bert.

Shape legend: B sequences, S positions, P predicted, H hidden, L layers, V vocabulary, T tokens after unpadding,
C labels, N predicted tokens of the batch.
"""

from torch import Tensor, nn

from cramming.architectures.config import BertConfig
from cramming.architectures.encoder import Encoder
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.embedding import Embeddings
from cramming.architectures.layers.feedforward import FeedForward
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.unpadding import Layout, Queries
from cramming.batch import Batch


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


class BertEncoder(Encoder):
    """Embeddings and blocks of BERT; a subclass adds the head."""

    def __init__(self, config: BertConfig, vocab_size: int, max_positions: int) -> None:
        embeddings = Embeddings(
            vocab_size,
            max_positions,
            config.token_types,
            config.hidden,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
        )
        super().__init__(embeddings, (PostNormBlock(config) for _ in range(config.layers)), vocab_size, max_positions)
        self.config = config

    def _initialize(self) -> None:
        """Normal weights of ``init_std``, zero biases, norms the identity, as the reference."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


class Bert(BertEncoder):
    """BERT with the masked-language-model head."""

    head: MaskedLanguageHead

    def __init__(self, config: BertConfig, vocab_size: int, max_positions: int) -> None:
        super().__init__(config, vocab_size, max_positions)
        self.head = MaskedLanguageHead(config.hidden, vocab_size, config.norm_eps)
        self._initialize()

    def forward(self, batch: Batch, logits: bool = False) -> Tensor:
        """Losses at the predicted positions, -> (B, P) float32, zero in empty slots; or logits there, -> (B, P, V)."""
        layout = Layout.of(batch.inputs, lengths=batch.lengths)
        # Where sequences differ in length so does the number of slots in use, and shapes vary anyway.
        kept = None if batch.lengths is None or logits else batch.weights.flatten().nonzero().squeeze(1)
        queries = Queries(layout.rows_of(batch.positions), kept)
        x, decoder = self.encode(batch.inputs, layout, queries=queries)
        if logits:
            scores: Tensor = self.head(x, decoder)
            return scores.view(*batch.positions.shape, -1)
        losses: Tensor = self.head.losses(x, decoder, queries.take(batch.labels.flatten()))
        if kept is not None:
            losses = losses.new_zeros(batch.labels.numel()).index_copy(0, kept, losses)
        return losses.view(batch.labels.shape)

    def flops(self, length: int, predicted: int, layers: int) -> float:
        """Floating-point operations of one sequence forward, a multiply-add counted as 2, products only.

        Args:
            length: tokens of the sequence.
            predicted: predicted positions among them.
            layers: active blocks; the last one works out its output at predicted positions only.
        """
        hidden, wide = self.config.hidden, self.config.intermediate
        per_token = 2 * hidden * (3 * hidden + hidden + 2 * wide)
        full = length * per_token + 4 * length * length * hidden
        keys_and_values = length * 2 * hidden * 2 * hidden
        last = keys_and_values + predicted * (per_token - 4 * hidden * hidden) + 4 * predicted * length * hidden
        head = predicted * 2 * hidden * (hidden + self.vocab_size)
        return float((layers - 1) * full + last + head) if layers else float(head)


class BertClassifier(BertEncoder):
    """BERT with a classification head on its first token; its input is whole sequences, not masked ones."""

    head: ClassificationHead

    def __init__(self, config: BertConfig, vocab_size: int, max_positions: int, labels: int) -> None:
        super().__init__(config, vocab_size, max_positions)
        self.head = ClassificationHead(config.hidden, labels, config.dropout)
        self._initialize()

    def forward(  # type: ignore[override]
        self, inputs: Tensor, mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        """Logits of each sequence: (B, S), (B, S) true where a token is, (B, S) -> (B, C)."""
        layout = Layout.of(inputs, mask)
        logits: Tensor = self.head(layout.pad(self.encode(inputs, layout, token_types)[0])[:, 0])
        return logits
