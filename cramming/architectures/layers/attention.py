"""Multi-head self-attention over tokens, written out or through the fused kernel.

Shape legend: B sequences, S positions, Q queries of a sequence (S, or P predicted), H hidden, A heads, D = H / A,
T tokens after unpadding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.layers.rotary import rotate
from cramming.architectures.layers.unpadding import Layout, Queries

FORMS = ("auto", "math", "sdpa")
# On CPU the fused kernel's backward is slower than the plain products while a sequence's scores fit the caches; beyond
# this length it is even or better and needs less memory (benchmarks/attention_forms.py).
CPU_MATH_UP_TO = 256


def resolve_form(form: str, device: torch.device, length: int) -> str:
    """``math`` or ``sdpa``: what ``form`` means on this device at this length.

    Raises:
        ValueError: not one of ``FORMS``.
    """
    if form not in FORMS:
        raise ValueError(f"attention={form!r} is not one of {', '.join(FORMS)}")
    if form != "auto":
        return form
    return "math" if device.type == "cpu" and length <= CPU_MATH_UP_TO else "sdpa"


def math_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v as written: (B, A, Q, D), 2 x (B, A, S, D), (B, S) -> (B, A, Q, D)."""
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    if mask is not None:
        # Added, not filled in: the sum needs no pass in backward. A masked key's probability is exactly zero.
        blocked = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, torch.finfo(q.dtype).min)
        scores = scores + blocked[:, None, None, :]
    probabilities = F.softmax(scores, dim=-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    return probabilities @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same through ``scaled_dot_product_attention``."""
    attended = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attended, dropout_p=dropout)


class SelfAttention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values (in this order along its outputs)."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        dropout: float = 0.0,
        *,
        qkv_bias: bool = True,
        output_bias: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.hidden, self.heads, self.dropout, self.rotary = hidden, heads, dropout, rotary
        self.form = "auto"
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=qkv_bias)
        self.output = nn.Linear(hidden, hidden, bias=output_bias)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at the slots in use of ``queries``."""
        q, k, v = self._projected(x, layout, queries)
        if self.rotary:
            everywhere = torch.arange(layout.length, device=x.device)
            q = rotate(q, everywhere if queries is None else layout.positions_of(queries.rows))
            k = rotate(k, everywhere)
        attend = math_attention if resolve_form(self.form, x.device, layout.length) == "math" else sdpa_attention
        context = attend(q, k, v, layout.mask, self.dropout if self.training else 0.0)
        grid = context.transpose(1, 2).flatten(2)  # (B, Q, H)
        rows = layout.unpad(grid) if queries is None else queries.take(grid.flatten(0, 1))
        mixed: Tensor = self.output(rows)
        return mixed

    def _projected(self, x: Tensor, layout: Layout, queries: Queries | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, A, Q, D), keys and values (B, A, S, D)."""
        if queries is None:
            q, k, v = self._heads(layout.pad(self.qkv(x)), 3)
            return q, k, v
        weight, bias = self.qkv.weight, self.qkv.bias
        of_queries, of_others = (None, None) if bias is None else (bias[: self.hidden], bias[self.hidden :])
        wanted = F.linear(x[queries.rows], weight[: self.hidden], of_queries)
        k, v = self._heads(layout.pad(F.linear(x, weight[self.hidden :], of_others)), 2)
        return self._heads(wanted, 1)[0], k, v

    def _heads(self, grid: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, S, parts*H) -> parts of (B, A, S, D), copied once into the order batched products need."""
        split = grid.view(*grid.shape[:2], parts, self.heads, self.hidden // self.heads)
        ordered: tuple[Tensor, ...] = split.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return ordered
