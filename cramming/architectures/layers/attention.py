"""Multi-head self-attention over tokens, on a grid of sequences or on rows; ``attention_forms.py`` has the forms.

Shape legend: B sequences apart from one another, S positions, Q queries of a sequence (S, or P predicted), H hidden,
A heads, D = H / A, T tokens after unpadding, N slots in use of the wanted queries, R rows of queries.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.layers.alibi import alibi, slopes
from cramming.architectures.layers.attention_forms import (
    ROWS,
    Asked,
    Ends,
    Sight,
    chosen,
    flash_attention,
    flex_attention,
    resolve_form,
    varlen_attention,
)
from cramming.architectures.layers.axes import FIXED, Axes, Axis
from cramming.architectures.layers.blockwise import DistanceBias, blockwise_attention
from cramming.architectures.layers.dropout import dropout as drop
from cramming.architectures.layers.local_attention import banded, local_attention
from cramming.architectures.layers.rotary import angles, turn
from cramming.architectures.layers.unpadding import Group, Layout, Queries
from cramming.differentiation import twice


def math_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    dropout: float,
    *,
    drop: Callable[[Tensor, float], Tensor] = drop,
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v as written: (B, A, Q, D), 2 x (B, A, S, D), to (B, A, Q, S) -> (B, A, Q, D).

    The bias is added, masks too: the sum needs no pass in backward, and a masked key's probability is exactly zero.
    """
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    probabilities = F.softmax(scores, dim=-1)
    if dropout:
        probabilities = drop(probabilities, dropout)
    return probabilities @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """The same through ``scaled_dot_product_attention``."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


class SelfAttention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values (in this order along its outputs).

    Args:
        hidden: H.
        heads: A.
        dropout: of attention probabilities, in training mode.
        qkv_bias: a bias in the projection to queries, keys and values.
        output_bias: a bias in the projection of what was attended to.
        rotary: queries and keys are turned by their positions with this base; None: they are not.
        window: a token sees the keys at most so many positions away; None: all.
        alibi: the further a key, the lower its score (``layers/alibi.py``).

    Attributes:
        form: ``auto``, or the form that is to be taken.
    """

    plain: frozenset[str] = frozenset()

    def __init__(
        self,
        hidden: int,
        heads: int,
        dropout: float = 0.0,
        *,
        qkv_bias: bool = True,
        output_bias: bool = True,
        rotary: float | None = None,
        window: int | None = None,
        alibi: bool = False,
    ) -> None:
        super().__init__()
        self.hidden, self.heads, self.dropout = hidden, heads, dropout
        self.rotary, self.window = rotary, window
        self.slopes = tuple(slopes(heads)) if alibi else None
        self.form = "auto"
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=qkv_bias)
        self.output = nn.Linear(hidden, hidden, bias=output_bias)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at the slots in use of ``queries``."""
        form = self._chosen(x, layout)
        if form in ROWS:
            rows = self._on_rows(form, x, layout, queries)
        elif not layout.grouped:
            local = queries is not None and self._is_local(layout.length)  # cheaper for all tokens than for some
            rows = self._on_grid(x, layout, None if local else queries)
            rows = queries.select(rows) if local and queries is not None else rows
        else:
            # Every batch has other groups: a compiled graph of them would be another one in every step.
            apart = torch.compiler.is_compiling()
            attend = torch.compiler.disable(SelfAttention._in_groups) if apart else SelfAttention._in_groups
            rows = attend(self, self.qkv(x), layout)
            rows = rows if queries is None else queries.select(rows)
        mixed: Tensor = self.output(rows)
        return mixed

    @property
    def ways(self) -> frozenset[str]:
        """What of ``cramming.plain.WAYS`` there is to decide here."""
        local = {"local_attention"} if self.window is not None and self.slopes is None else set()
        return frozenset(local | ({"dropout"} if self.dropout else set()))

    def asked(self, dropout: float) -> Asked:
        """What a form must be able to do for this layer, with this much dropout of attention."""
        return Asked(self.hidden // self.heads, self.window, self.slopes is not None, dropout)

    def growing_axes(self) -> dict[str, Axes]:
        """Queries, keys and values grow apart from one another, in heads and in the width of a head."""
        width = self.hidden // self.heads
        turned: Axes = (width,) if self.rotary is None else (Axis(2, FIXED), width // 2)  # rotation pairs two halves
        rows: Axes = (Axis(3, FIXED), self.heads, *turned)
        return {
            "qkv.weight": (*rows, self.hidden),
            "qkv.bias": rows,
            "output.weight": (self.hidden, self.heads, width),
        }

    def seen(self, length: int) -> int:
        """Keys that a query in the middle of a sequence of ``length`` tokens reads."""
        return length if self.window is None else min(length, 2 * self.window + 1)

    def _chosen(self, x: Tensor, layout: Layout) -> str:
        """The form that these tokens, (T, H), are attended to in."""
        asked = self.asked(self.dropout if self.training else 0.0)
        by_ends = layout.told_by_ends(distances=asked.window is not None or asked.alibi)
        unpadded = layout.cells is not None
        return chosen(self.form, asked, x.device, x.dtype, layout.length, unpadded=unpadded, by_ends=by_ends)

    def _on_rows(self, form: str, x: Tensor, layout: Layout, queries: Queries | None) -> Tensor:
        """Rows as they are, without a grid: -> (T, H) or (N, H)."""
        # For kernels that are told of ends alone, queries have to stand where their sequence's keys do, unless distance
        # plays no part and a sequence of the batch is one to them.
        placed = self.window is not None or self.slopes is not None or layout.batch is not None
        if queries is None or (placed and form != "flex"):
            context = self._read(form, layout, self._split(self.qkv(x), 3))
            return context if queries is None else queries.select(context)
        q, others = self._projected_apart(x, queries.rows.flatten())
        return queries.take(self._read(form, layout, self._split(q, 1) + self._split(others, 2), queries.rows))

    def _read(self, form: str, layout: Layout, heads: tuple[Tensor, ...], rows: Tensor | None = None) -> Tensor:
        """What each query reads, on rows: (R, A, D) and 2 x (T, A, D), (B, P) the rows that are queries -> (R, H)."""
        q, k, v = heads
        flat = None if rows is None else rows.flatten()
        if self.rotary is not None:
            q, k = self._turned_rows(layout, q, flat), self._turned_rows(layout, k, None)
        if form == "flex":
            context = flex_attention(q, k, v, self._sight(layout, q.device, flat))
        else:
            ends = Ends.of(layout, q.device, None if rows is None else rows.shape[1])
            if form == "varlen":
                context = varlen_attention(q, k, v, ends, self.window)
            else:
                dropout = self.dropout if self.training else 0.0
                context = flash_attention(
                    q, k, v, ends, window=self.window, slopes=self._slopes(q.device), dropout=dropout
                )
        return context.flatten(1)

    def _turned_rows(self, layout: Layout, x: Tensor, rows: Tensor | None) -> Tensor:
        """Queries or keys turned by the positions of their rows, None being all: (R, A, D) -> (R, A, D)."""
        base = self.rotary
        assert base is not None
        positions = layout.positions()
        if rows is not None:
            positions = layout.positions_of(rows)
        elif positions is None:  # the same for all sequences
            positions = torch.arange(layout.length, device=x.device)
        wanted = ("angles of rows", base, x.shape[2], x.dtype)
        remembers = rows is None and not torch.compiler.is_compiling()
        by = layout.memo.get(wanted) if remembers else None
        if by is None:
            by = angles(positions, x.shape[2], base, x.dtype)[:, :, None]
            if remembers:
                layout.memo[wanted] = by
        return turn(x.unflatten(0, (-1, by.shape[1])), by).flatten(0, 1)

    def _sight(self, layout: Layout, device: torch.device, rows: Tensor | None) -> Sight:
        """Who sees whom, once for all layers that ask for the same."""
        if rows is not None or torch.compiler.is_compiling():
            return Sight.of(layout, device, self.window, self._slopes(device), rows)
        wanted = ("sight", self.window, self.slopes)
        if wanted not in layout.memo:
            layout.memo[wanted] = Sight.of(layout, device, self.window, self._slopes(device), None)
        found: Sight = layout.memo[wanted]
        return found

    def _slopes(self, device: torch.device) -> Tensor | None:
        """(A,) float32; None: distance alone changes no score."""
        return None if self.slopes is None else torch.tensor(self.slopes, device=device)

    def _on_grid(self, x: Tensor, layout: Layout, queries: Queries | None) -> Tensor:
        """All sequences at once, equally long as far as computing goes: -> (T, H) or (N, H)."""
        if queries is None:
            q, k, v = self._heads(layout.pad(self.qkv(x)), 3)
            return layout.unpad(self._context(layout, q, k, v))
        wanted, others = self._projected_apart(x, queries.rows)
        k, v = self._heads(layout.pad(others), 2)
        q = self._heads(wanted, 1)[0]
        places = layout.positions_of(queries.rows)
        return queries.take(self._context(layout, q, k, v, places).flatten(0, 1))

    def _projected_apart(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of some rows, keys and values of all: (T, H), any shape of rows -> (..., H), (T, 2H)."""
        weight, bias = self.qkv.weight, self.qkv.bias
        of_queries, of_others = (None, None) if bias is None else (bias[: self.hidden], bias[self.hidden :])
        return F.linear(x[rows], weight[: self.hidden], of_queries), F.linear(x, weight[self.hidden :], of_others)

    def _in_groups(self, projected: Tensor, layout: Layout) -> Tensor:
        """Sequences of similar length at a time, so that padding is hardly attended to: (T, 3H) -> (T, H)."""
        groups = layout.groups
        assert groups is not None
        grids = groups.spread(projected)
        mixed = [self._context(group, *self._heads(grid, 3)) for group, grid in zip(groups.members, grids, strict=True)]
        return groups.collect(mixed)

    def _context(self, grid: Group | Layout, q: Tensor, k: Tensor, v: Tensor, places: Tensor | None = None) -> Tensor:
        """What each query reads: (B, A, Q, D), 2 x (B, A, S, D) -> (B, Q, H).

        Args:
            grid: what they are on; its mask tells the tokens.
            q: queries.
            k: keys.
            v: values.
            places: (B, Q), positions of the queries; None: every position is one.
        """
        if self.rotary is not None:
            everywhere = self._angles(k, grid, self.rotary)
            by = everywhere if places is None else angles(places, k.shape[3], self.rotary, k.dtype)
            q, k = turn(q, by), turn(k, everywhere)
        dropout = self.dropout if self.training else 0.0
        if places is None and grid.places is None and self.window is not None and self._is_local(k.shape[2]):
            context = local_attention(q, k, v, self.window, mask=grid.mask, dropout=dropout)
        else:
            context = self._attend(grid, (q, k, v), places, dropout)
        return context.transpose(1, 2).flatten(2)

    def _attend(
        self, grid: Group | Layout, heads: tuple[Tensor, Tensor, Tensor], places: Tensor | None, dropout: float
    ) -> Tensor:
        """All keys by all queries, in the form that was asked for: arguments as of ``_context`` -> (B, A, Q, D)."""
        q, k, v = heads
        form = resolve_form(self.form, q.device, k.shape[2], q.dtype)
        # A block at a time is for running as it is written: there is no dropout in it, and nothing for a compiler.
        if form == "blocks" and not dropout and not torch.compiler.is_compiling() and not twice():
            by_distance = self.slopes is not None and self.window is None and grid.places is None
            known = self._line(k, grid, places) if by_distance else self._bias(k, grid, places)
            return blockwise_attention(q, k, v, known)
        bias = self._bias(k, grid, places)
        if form != "math":
            return sdpa_attention(q, k, v, bias, dropout)
        return math_attention(q, k, v, bias, dropout, drop=F.dropout if "dropout" in self.plain else drop)

    def _is_local(self, length: int) -> bool:
        """Whether the window is narrower than the whole sequence, and narrow enough for the chunks' overlap to pay."""
        if self.window is None or self.slopes is not None or "local_attention" in self.plain:
            return False
        return length > 4 * self.window

    def _angles(self, k: Tensor, grid: Group | Layout, base: float) -> Tensor:
        """By which keys are turned, once for all layers of the same base."""
        wanted = ("angles", base, k.shape[3], k.dtype)
        found: Tensor | None = None if torch.compiler.is_compiling() else grid.memo.get(wanted)
        if found is None:
            places = torch.arange(k.shape[2], device=k.device) if grid.places is None else grid.places
            found = angles(places, k.shape[3], base, k.dtype)
            if not torch.compiler.is_compiling():
                grid.memo[wanted] = found
        return found

    def _bias(self, k: Tensor, grid: Group | Layout, places: Tensor | None = None) -> Tensor | None:
        """What is added to the scores, (1 or B, 1 or A, 1 or Q, S), once for all layers that ask for the same."""
        if places is not None or torch.compiler.is_compiling():  # compiled, it is fused with what reads it
            return self._made_bias(k, grid, places)
        wanted = (self.slopes, self.window, k.dtype)
        if wanted not in grid.memo:
            grid.memo[wanted] = self._made_bias(k, grid)
        found: Tensor | None = grid.memo[wanted]
        return found

    def _line(self, k: Tensor, grid: Group | Layout, places: Tensor | None) -> DistanceBias:
        """The same where only distance and padding decide, for blocks."""
        wanted = ("line", self.slopes, k.dtype)
        if wanted not in grid.memo:
            distances = torch.arange(1 - k.shape[2], k.shape[2], device=k.device)
            slopes = torch.tensor(self.slopes, dtype=torch.promote_types(k.dtype, torch.float32), device=k.device)
            grid.memo[wanted] = alibi(slopes, distances.new_zeros(1), distances)[:, 0].to(k.dtype)
        return DistanceBias(grid.memo[wanted], places, grid.mask)

    def _made_bias(self, k: Tensor, grid: Group | Layout, places: Tensor | None = None) -> Tensor | None:
        """Of distance, keys out of sight, and padding; None: nothing is added."""
        everywhere = torch.arange(k.shape[2], device=k.device) if grid.places is None else grid.places
        places = everywhere if places is None else places
        keys = everywhere if grid.places is None else everywhere[:, None]  # (S,) or (B, 1, S)
        allowed = None if grid.mask is None else grid.mask[:, None, None, :]
        if self.window is not None and (grid.places is not None or self.window < k.shape[2] - 1):
            near = banded(places, keys, self.window)
            near = near[:, None] if near.dim() == 3 else near[None, None]
            allowed = near if allowed is None else allowed & near
        bias = None
        if self.slopes is not None:
            wide = torch.promote_types(k.dtype, torch.float32)  # 16 bits cannot tell far positions apart
            bias = alibi(torch.tensor(self.slopes, dtype=wide, device=k.device), places, keys).to(k.dtype)
            bias = bias if bias.dim() == 4 else bias[None]
        if allowed is None:
            return bias
        lowest = torch.finfo(k.dtype).min
        if bias is not None:
            return bias.masked_fill(~allowed, lowest)
        return torch.zeros(allowed.shape, dtype=k.dtype, device=k.device).masked_fill_(~allowed, lowest)

    def _heads(self, grid: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, S, parts*H) -> parts of (B, A, S, D), copied once into the order batched products need.

        On a GPU they stay where they are: its kernels read them there.
        """
        split = grid.view(*grid.shape[:2], parts, self.heads, self.hidden // self.heads).permute(2, 0, 3, 1, 4)
        ordered: tuple[Tensor, ...] = (split if grid.is_cuda else split.contiguous()).unbind(0)
        return ordered

    def _split(self, rows: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(T, parts*H) -> parts of (T, A, D), where they are."""
        return rows.view(-1, parts, self.heads, self.hidden // self.heads).unbind(1)
