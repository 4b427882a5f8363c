"""Attention written out a few heads and queries at a time, so that their scores never leave a core's cache.

On a processor with 16-bit matrix units the plain products are about twice as fast as the fused kernel, if only scores
of long sequences did not fill the memory. Here a block's scores are made, used and forgotten; backward makes them
again, which costs one product in six and keeps the memory of a layer at what the fused kernel needs.

Shape legend: B sequences, A heads, Q queries of a sequence, S positions, D width of a head.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SCORES = 1 << 20  # of a block for each thread: 2 MB in 16 bits; fewer starve threads, more leave the caches
Block = tuple[slice, slice]  # sequences, heads


def blocks(sequences: int, heads: int, scores: int) -> Iterator[Block]:
    """Cut B sequences of A heads into parts that lie together in memory: a head for each thread, or as many as fit.

    Args:
        sequences: B.
        heads: A.
        scores: of one head.
    """
    threads = torch.get_num_threads()
    size = max(threads, threads * SCORES // scores)
    if size < heads:
        for sequence in range(sequences):
            for head in range(0, heads, size):
                yield slice(sequence, sequence + 1), slice(head, min(head + size, heads))
    else:
        step = size // heads
        for first in range(0, sequences, step):
            yield slice(first, min(first + step, sequences)), slice(0, heads)


class _Blockwise(torch.autograd.Function):
    """Each block's products; only its inputs and outputs stay."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: "Tensor | DistanceBias | None") -> Tensor:
        """(B, A, Q, D), 2 x (B, A, S, D), to (B, A, Q, S) -> (B, A, Q, D)."""
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        made = isinstance(bias, DistanceBias)
        ctx.save_for_backward(q, k, v, None if made else bias)
        ctx.bias = bias if made else None
        context = torch.empty_like(q)
        for block, rows in _cut(q, k):
            part = (*block, rows)
            probabilities = _probabilities(_scaled(q[part]), _flat(k[block]), _part(bias, part))
            context[part] = torch.bmm(probabilities, _flat(v[block])).view(context[part].shape)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_context: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """(B, A, Q, D) -> (B, A, Q, D), 2 x (B, A, S, D)."""
        q, k, v, bias = ctx.saved_tensors
        bias = bias if ctx.bias is None else ctx.bias
        wide = torch.promote_types(q.dtype, torch.float32)
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        sums: tuple[Tensor, Tensor] | None = None
        for block, rows in _cut(q, k):
            part = (*block, rows)
            queries, keys, values = _scaled(q[part]), _flat(k[block]), _flat(v[block])
            slope = _flat(of_context[part])
            probabilities = _probabilities(queries, keys, _part(bias, part))
            to_values = torch.bmm(probabilities.transpose(1, 2), slope)
            of_scores = torch._softmax_backward_data(
                torch.bmm(slope, values.transpose(1, 2)), probabilities, -1, probabilities.dtype
            )
            of_q[part] = torch.bmm(of_scores, keys).view(of_q[part].shape)
            to_keys = torch.bmm(of_scores.transpose(1, 2), queries)
            # Several blocks of queries add to the same keys, in float32.
            if rows.start > 0:
                assert sums is not None
                sums = (sums[0].add_(to_keys), sums[1].add_(to_values))
            elif rows.stop < q.shape[2]:
                sums = (to_keys.to(wide), to_values.to(wide))
            else:
                sums = (to_keys, to_values)
            if rows.stop >= q.shape[2]:
                of_k[block], of_v[block] = (part.view(of_k[block].shape) for part in sums)
        return of_q.mul_(_scale(q)), of_k, of_v, None


class DistanceBias:
    """A bias that depends on a head and a distance, of which (B or 1, A, Q, S) never exist.

    It is for keys in reverse, the last one first. Then what a query at i adds to them is a stretch of a line, from i
    on, and what a block of queries adds is a view of that line, row after row one place further.

    Args:
        line: (A, 2S-1), what is added at the distances 1-S to S-1 of a query from a key.
        places: (B, Q) int64, positions of the queries; None: all positions in order.
        mask: (B, S), false at keys that nothing reads, the first key first; None: all are read.
    """

    def __init__(self, line: Tensor, places: Tensor | None, mask: Tensor | None) -> None:
        self._rows = line.unfold(1, (line.shape[1] + 1) // 2, 1)  # (A, S, S), a view
        self._places = places
        self._hidden = None if mask is None else ~mask.flip(1)

    def part(self, sequences: slice, heads: slice, queries: slice) -> Tensor:
        """Of a block, (1 or b, a, q, S)."""
        if self._places is None:
            bias = self._rows[heads, queries][None]
        else:
            bias = self._rows[heads][:, self._places[sequences, queries]].transpose(0, 1)
        if self._hidden is None:
            return bias
        return bias.masked_fill(self._hidden[sequences, None, None, :], torch.finfo(bias.dtype).min)


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | DistanceBias | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v: (B, A, Q, D), 2 x (B, A, S, D), to (B, A, Q, S) -> (B, A, Q, D).

    The bias is a constant: it gets no gradient.
    """
    assert not isinstance(bias, Tensor) or not bias.requires_grad
    if isinstance(bias, DistanceBias):
        k, v = k.flip(2), v.flip(2)
    context: Tensor = _Blockwise.apply(q, k, v, bias)  # type: ignore[no-untyped-call]
    return context


def _cut(q: Tensor, k: Tensor) -> Iterator[tuple[Block, slice]]:
    """Sequences, heads and queries of each block; the queries of the same heads follow one another."""
    sequences, heads, queries, _ = q.shape
    rows = min(queries, max(1, SCORES // k.shape[2]))
    for block in blocks(sequences, heads, rows * k.shape[2]):
        for first in range(0, queries, rows):
            yield block, slice(first, min(first + rows, queries))


def _probabilities(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """(n, q, D), (n, S, D), to (b, a, q, S) with b a = n -> (n, q, S)."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if bias is not None:
        heads = scores.shape[0] // bias.shape[0] if bias.shape[1] == 1 else bias.shape[1]
        scores.view(-1, heads, *scores.shape[1:]).add_(bias)
    return F.softmax(scores, dim=-1)


def _part(bias: Tensor | DistanceBias | None, part: tuple[slice, slice, slice]) -> Tensor | None:
    """What of the bias is added to a part of the scores; an axis of size 1 is the same for all."""
    if bias is None:
        return None
    if isinstance(bias, DistanceBias):
        return bias.part(*part)
    return bias[tuple(where if size > 1 else slice(None) for where, size in zip(part, bias.shape[:3], strict=True))]


def _flat(part: Tensor) -> Tensor:
    """(b, a, s, D) -> (b a, s, D)."""
    return part.flatten(0, 1)


def _scaled(queries: Tensor) -> Tensor:
    return _flat(queries) * _scale(queries)


def _scale(queries: Tensor) -> float:
    return 1.0 / math.sqrt(queries.shape[-1])
