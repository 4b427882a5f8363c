"""Attention to the neighbourhood of each token only, at a cost that grows with the window and not with the length.

Shape legend: B sequences, A heads, S positions, D width of a head, W keys seen on each side, C positions of a chunk,
K chunks of a sequence.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def banded(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """True where a key lies within the window of a query: (Q,) or (B, Q), (S,) -> (Q, S) or (B, Q, S)."""
    return (queries[..., :, None] - keys).abs() <= window


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax over the keys at most ``window`` positions away.

    The sequence is cut into chunks of W queries; each needs the keys of its own chunk and of the two beside it.

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
    sequences, heads, length, width = q.shape
    chunks = -(-length // window)
    missing = chunks * window - length
    inside = torch.ones(1, length, dtype=torch.bool, device=q.device) if mask is None else mask
    around = F.pad(inside, (window, window + missing)).unfold(1, 3 * window, window)  # (B, K, 3C)
    place = torch.arange(3 * window, device=q.device)
    band = banded(place[window : 2 * window], place, window)  # (C, 3C)
    allowed = band & around[:, :, None, :]  # (B, K, C, 3C)
    if missing:
        q = F.pad(q, (0, 0, 0, missing))
    q = q.view(sequences, heads, chunks, window, width) * (1.0 / math.sqrt(width))
    wide = (0, 0, window, window + missing)
    k = F.pad(k, wide).unfold(2, 3 * window, window)  # (B, A, K, D, 3C)
    v = F.pad(v, wide).unfold(2, 3 * window, window)
    blocked = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device)
    blocked.masked_fill_(~allowed, torch.finfo(q.dtype).min)
    probabilities = F.softmax(q @ k + blocked[:, None], dim=-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    context = probabilities @ v.transpose(-2, -1)
    return context.flatten(2, 3)[:, :, :length]
