"""Token, position and type embeddings, with a lookup that shares its matrix with the vocabulary projection.

Shape legend: B sequences, S positions, H hidden, E width of the embeddings, V vocabulary, T tokens after unpadding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.layers.norm import make_norm
from cramming.architectures.layers.position import make_positions
from cramming.architectures.layers.unpadding import Layout


class _TiedLookup(torch.autograd.Function):
    """Rows of a matrix and the matrix itself for a second use, so that both gradients arrive in one place.

    Autograd would make a dense (V, H) gradient of the lookup, mostly zeros, and add it to the projection's; here the
    few rows that were looked up are added to the one dense gradient there is. A frequent token occurs hundreds of times
    in a batch: its rows are summed in float32, because a bfloat16 running sum stops growing after about 2^8 terms.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, padding_id: int | None, into: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(V, H), (T,) -> (T, H), (V, H)."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_id, ctx.into = weight.shape, padding_id, into
        return F.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, looked_up: Tensor | None, dense: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        """(T, H), (V, H) -> (V, H)."""
        if looked_up is None:
            return dense, None, None, None
        (ids,) = ctx.saved_tensors
        if ctx.padding_id is not None:
            looked_up = looked_up.masked_fill((ids == ctx.padding_id)[:, None], 0.0)
        if ctx.into is not None:
            ctx.into.index_add_(0, ids, looked_up.to(ctx.into.dtype))
            return dense, None, None, None
        if dense is None:
            dense = looked_up.new_zeros(ctx.shape)
        distinct, group = torch.unique(ids, return_inverse=True)
        wide = torch.promote_types(looked_up.dtype, torch.float32)
        sums = torch.zeros(distinct.shape[0], ctx.shape[1], dtype=wide, device=ids.device)
        sums.index_add_(0, group, looked_up.to(wide))
        return dense.index_add(0, distinct, sums.to(dense.dtype)), None, None, None


def tied_lookup(
    weight: Tensor, ids: Tensor, padding_id: int | None = None, into: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Embeddings of ``ids`` and an alias of ``weight`` for the decoder: (V, H), (T,) -> (T, H), (V, H).

    Args:
        weight: (V, H) embedding matrix.
        ids: (T,) token ids.
        padding_id: a token whose lookup gives no gradient, as in the reference; None: there is none.
        into: (V, H) float32; the gradient of the lookup is added to it, and is no part of the matrix's own.
    """
    rows, alias = _TiedLookup.apply(weight, ids, padding_id, into)  # type: ignore[no-untyped-call]
    return rows, alias


class Embeddings(nn.Module):
    """dropout(norm(word + position + type)), each part of it optional but the words.

    Types are learned; the sum of three learned tables under a LayerNorm is BERT's (Devlin et al., 2018, section 3).

    Args:
        vocab_size: V.
        positions: longest sequence, in tokens.
        width: E, of the tables.
        position: see ``make_positions``.
        token_types: rows of the table of types; 0: none, and types given to ``forward`` do nothing.
        norm: see ``make_norm``; None: none.
        norm_eps: its epsilon.
        norm_bias: see ``make_norm``.
        dropout: probability in training mode.
        hidden: H; where it is not E, a linear layer leads to it, after the dropout (https://arxiv.org/abs/1909.11942).
        bias: whether that layer has a bias.

    Attributes:
        padding_id: a token whose lookup gives no gradient; importers set it.
        row_gradients: see ``tied_lookup``'s ``into``. Whoever sets it sees to it that it is zero where a step begins:
            a batch looks few rows up, and the others need neither be written nor read.
        dtype: of what is looked up, where the table of words is in another type than all else; None: the table's.
    """

    ways = frozenset({"word_gradient"})
    plain: frozenset[str] = frozenset()

    def __init__(
        self,
        vocab_size: int,
        positions: int,
        width: int,
        *,
        position: str = "learned",
        token_types: int = 0,
        norm: str | None = "layernorm",
        norm_eps: float = 1e-12,
        norm_bias: bool = True,
        dropout: float = 0.0,
        hidden: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, width)
        self.position = make_positions(position, positions, width)
        self.token_type = nn.Embedding(token_types, width) if token_types else None
        self.norm = None if norm is None else make_norm(norm, width, norm_eps, norm_bias)
        self.dropout = nn.Dropout(dropout)
        self.projection = None if hidden in (None, width) else nn.Linear(width, hidden, bias=bias)  # type: ignore[arg-type]
        self.padding_id: int | None = None
        self.row_gradients: Tensor | None = None
        self.dtype: torch.dtype | None = None

    def forward(self, inputs: Tensor, layout: Layout, token_types: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embedded tokens and the word matrix for the decoder: (B, S) -> (T, H), (V, E); no types: all of type 0."""
        ids, table = layout.gather(inputs), self.word.weight
        if "word_gradient" in self.plain and self.row_gradients is None:
            words, alias = F.embedding(ids, table, self.padding_id), table
        else:
            words, alias = tied_lookup(table, ids, self.padding_id, self.row_gradients)
        if self.dtype is not None:
            words = words.to(self.dtype)
        x = self._placed(words, layout, token_types)
        x = self.dropout(x if self.norm is None else self.norm(x))
        return x if self.projection is None else self.projection(x), alias

    def _placed(self, words: Tensor, layout: Layout, token_types: Tensor | None) -> Tensor:
        """(T, E) -> (T, E) with position and type added."""
        place = None if self.position is None else self.position(layout.length)  # (S, E)
        types = self.token_type
        if types is not None and token_types is not None:
            if place is not None:
                words = words + layout.unpad(place.expand(layout.sequences, -1, -1))
            return words + types(layout.gather(token_types))
        if types is not None:
            place = types.weight[0] if place is None else place + types.weight[0]
        if place is None or place.dim() == 1:
            return words if place is None else words + place
        positions = layout.positions()
        return layout.unpad(layout.pad(words) + place) if positions is None else words + place[positions]
