"""Attention to the neighbourhood of each token only, at a cost that grows with the window and not with the length.

A sequence is cut into chunks of queries; each needs the keys of its own chunk and of W more on either side.

Shape legend: B sequences, A heads, S positions, D width of a head, W keys seen on each side, C positions of a chunk,
K chunks of a sequence, L = C + 2W keys that a chunk needs, n heads of a block.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cramming.architectures.layers.blockwise import blocks
from cramming.differentiation import twice

SMALLEST, LARGEST = 32, 128  # positions of a chunk: fewer starve the matrix units, more read too many keys


def banded(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """True where a key lies within the window of a query: (Q,) or (B, Q), (S,) or (B, 1, S) -> (Q, S) or (B, Q, S)."""
    return (queries[..., :, None] - keys).abs() <= window


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax over the keys at most ``window`` positions away.

    What a position of padding reads is any finite number.

    Args:
        q: (B, A, S, D).
        k: (B, A, S, D).
        v: (B, A, S, D).
        window: W, at least 1.
        mask: (B, S), true where a token is; None: everywhere.
        dropout: of the probabilities.

    Returns:
        (B, A, S, D).
    """
    if q.device.type == "cpu" and not dropout and not torch.compiler.is_compiling() and not twice():
        context: Tensor = _Local.apply(q, k, v, _Cut.of(q.shape[2], window, mask))  # type: ignore[no-untyped-call]
        return context
    return plain_local_attention(q, k, v, window, mask=mask, dropout=dropout)


def plain_local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """The same in few operations on all chunks at once, which suits a GPU and a compiler; arguments as there."""
    sequences, heads, length, width = q.shape
    cut = _Cut.of(length, window, mask)
    blocked = cut.band(q) + cut.edges(q)  # (1 or B, K, C, L)
    after = cut.chunks * cut.chunk - length
    q = F.pad(q, (0, 0, 0, after)).view(sequences, heads, cut.chunks, cut.chunk, width) * (1.0 / math.sqrt(width))
    k, v = (F.pad(x, (0, 0, window, window + after)).unfold(2, cut.keys, cut.chunk) for x in (k, v))  # (B, A, K, D, L)
    probabilities = F.softmax(q @ k + blocked[:, None], dim=-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    context = probabilities @ v.transpose(-2, -1)
    return context.flatten(2, 3)[:, :, :length]


@dataclass(frozen=True)
class _Cut:
    """How sequences are cut."""

    length: int  # S
    window: int  # W
    chunk: int  # C
    chunks: int  # K
    mask: Tensor | None  # (B, S), true where a token is; None: everywhere

    @staticmethod
    def of(length: int, window: int, mask: Tensor | None) -> "_Cut":
        chunk = min(max(window, SMALLEST), LARGEST, length)
        return _Cut(length, window, chunk, -(-length // chunk), mask)

    @property
    def keys(self) -> int:
        """L."""
        return self.chunk + 2 * self.window

    @property
    def reaching_over(self) -> tuple[int, int]:
        """The chunks before the first of these and from the second on need keys that a sequence does not have."""
        after = self.window + self.chunks * self.chunk - self.length
        return -(-self.window // self.chunk), self.chunks - -(-after // self.chunk)

    def band(self, like: Tensor) -> Tensor:
        """What is added to a chunk's scores to shut out keys further than the window: (C, L)."""
        places = torch.arange(self.keys, device=like.device)
        near = banded(places[self.window : self.window + self.chunk], places, self.window)
        return _shut_out(~near, like)

    def edges(self, like: Tensor) -> Tensor:
        """The same to shut out keys before the sequence, after it, and of padding: (1 or B, K, 1, L)."""
        everywhere = torch.ones(1, self.length, dtype=torch.bool, device=like.device)
        inside = everywhere if self.mask is None else self.mask
        after = self.chunks * self.chunk - self.length
        around = F.pad(inside, (self.window, self.window + after)).unfold(1, self.keys, self.chunk)
        return _shut_out(~around, like)[:, :, None, :]

    def in_chunks(self, part: Tensor) -> Tensor:
        """(n, S, D) -> (n K, C, D), the last chunk of each filled up with zeros."""
        after = self.chunks * self.chunk - self.length
        return F.pad(part, (0, 0, 0, after)).reshape(-1, self.chunk, part.shape[-1])

    def around(self, part: Tensor) -> Tensor:
        """What each chunk needs of the keys or values: (n, S, D) -> (n K, L, D), rows of one (n K C + 2W, D).

        Heads follow one another without a gap: the keys before a sequence and after it are some other's, and ``edges``
        shuts them out.
        """
        heads, _, width = part.shape
        padded = self.chunks * self.chunk
        rows = part.new_zeros(heads * padded + 2 * self.window, width)
        inner = rows[self.window : self.window + heads * padded].view(heads, padded, width)
        inner[:, : self.length] = part
        return rows.as_strided((heads * self.chunks, self.keys, width), (self.chunk * width, width, 1))

    def sum_back(self, windows: Tensor, heads: int) -> Tensor:
        """The inverse of ``around`` for gradients, each row the sum of its copies: (n K, L, D) -> (n, S, D)."""
        count, keys, width = windows.shape
        wide = torch.promote_types(windows.dtype, torch.float32)
        rows = torch.zeros(count * self.chunk + 2 * self.window, width, dtype=wide)
        for first in range(0, keys, self.chunk):  # within a slice so long, chunks do not overlap
            piece = windows[:, first : first + self.chunk]
            target = rows[first:].as_strided(piece.shape, (self.chunk * width, width, 1), first * width)
            target.add_(piece)
        inner = rows[self.window : self.window + count * self.chunk]
        return inner.view(heads, -1, width)[:, : self.length]


class _Local(torch.autograd.Function):
    """A few heads at a time, so that their scores stay in a core's cache; the probabilities are kept for backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cut: _Cut) -> Tensor:
        """3 x (B, A, S, D) -> (B, A, S, D)."""
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        scale = 1.0 / math.sqrt(q.shape[-1])
        ctx.cut, ctx.scale = cut, scale
        band, edges = cut.band(q), cut.edges(q)
        first, last = cut.reaching_over
        context, kept = torch.empty_like(q), []
        for block in _cut(q, cut):
            part = q[block]
            scores = torch.bmm(cut.in_chunks(part.flatten(0, 1) * scale), cut.around(k[block].flatten(0, 1)).mT)
            scores.add_(band)
            by_sequence = scores.view(*part.shape[:2], cut.chunks, cut.chunk, cut.keys)
            if cut.mask is not None:
                by_sequence.add_(edges[block[0], None])
            else:
                for ends in (slice(0, first), slice(max(first, last), cut.chunks)):
                    by_sequence[:, :, ends].add_(edges[:, None, ends])
            probabilities = F.softmax(scores, dim=-1)
            read = torch.bmm(probabilities, cut.around(v[block].flatten(0, 1)))
            context[block] = read.view(*part.shape[:2], -1, part.shape[-1])[:, :, : cut.length]
            kept.append(probabilities)
        ctx.save_for_backward(q, k, v, *kept)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_context: Tensor) -> tuple[Tensor | None, ...]:
        """(B, A, S, D) -> 3 x (B, A, S, D)."""
        q, k, v, *kept = ctx.saved_tensors
        cut, scale = ctx.cut, ctx.scale
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for block, probabilities in zip(_cut(q, cut), kept, strict=True):
            shape = q[block].shape
            heads = shape[0] * shape[1]
            slope = cut.in_chunks(of_context[block].flatten(0, 1))
            of_probabilities = torch.bmm(slope, cut.around(v[block].flatten(0, 1)).mT)
            of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
            to_queries = torch.bmm(of_scores, cut.around(k[block].flatten(0, 1)))
            of_q[block] = to_queries.view(*shape[:2], -1, shape[-1])[:, :, : cut.length]
            to_keys = torch.bmm(of_scores.mT, cut.in_chunks(q[block].flatten(0, 1) * scale))
            of_k[block] = cut.sum_back(to_keys, heads).view(shape)
            of_v[block] = cut.sum_back(torch.bmm(probabilities.mT, slope), heads).view(shape)
        return of_q.mul_(scale), of_k, of_v, None


def _cut(q: Tensor, cut: _Cut) -> list[tuple[slice, slice]]:
    return list(blocks(q.shape[0], q.shape[1], cut.chunks * cut.chunk * cut.keys))


def _shut_out(where: Tensor, like: Tensor) -> Tensor:
    """Zero, or so low that exp gives zero: half the lowest number, as two may be added."""
    return torch.zeros(where.shape, dtype=like.dtype, device=like.device).masked_fill_(
        where, torch.finfo(like.dtype).min / 2
    )
