"""Where the tokens of a batch sit, so that no layer works on padding and attention stays within a sequence.

Shape legend: B sequences of the batch, D sequences apart from one another (B, or the documents in them), S positions,
T tokens after unpadding (T = B*S where nothing is padded), P predicted, G sequences of a group, M the longest of them,
C cells of all groups.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LENGTHS_OF_GROUPS = 8  # sequences are attended to together when their lengths agree to an eighth of the longest

Memo = dict[Hashable, Any]  # what the layers of a pass work out once for all of them


class _Spread(torch.autograd.Function):
    """Rows of tokens laid out in cells; what is in a cell of padding must influence nothing, and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: Tensor, cells: Tensor) -> Tensor:
        """(T, ...), (C,), (T,) -> (C, ...)."""
        ctx.save_for_backward(cells)
        return tokens.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(C, ...) -> (T, ...): no two cells are summed, as autograd would have to expect."""
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, cells: Tensor) -> Tensor:
        """(C, ...), (T,) -> (T, ...)."""
        ctx.save_for_backward(cells)
        ctx.places = grid.shape[0]
        return grid.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """(T, ...) -> (C, ...), zero at padding."""
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, ctx.saved_tensors[0], grad), None


@dataclass(frozen=True)
class Group:
    """Sequences of similar length, a small grid of their own."""

    sequences: int  # G
    length: int  # M
    mask: Tensor | None  # (G, M) bool: True where a token is; None: all are equally long
    places: Tensor | None = None  # (G, M) int64: position of the token in each cell; None: its column
    memo: Memo = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Groups:
    """Every sequence in one group. The grids follow one another: C cells in all, of which T hold tokens."""

    members: tuple[Group, ...]
    rows: Tensor  # (C,) int64: row of the token in each cell; a cell of padding has some token's
    cells: Tensor  # (T,) int64: cell of each token

    @staticmethod
    def of(lengths: Tensor, positions: Tensor | None = None) -> "Groups":
        """Groups of sequences whose tokens follow one another: (D,) tokens in each, none of them 0.

        ``positions`` (T,) are those of the tokens within their sequences where some are left out; None: they count up.
        """
        device, listed = lengths.device, lengths.tolist()
        unit = max(1, -(-max(listed) // _LENGTHS_OF_GROUPS))
        starts = lengths.cumsum(0) - lengths
        classes: dict[int, list[int]] = {}
        for sequence, length in enumerate(listed):
            classes.setdefault(-(-length // unit), []).append(sequence)
        members, rows, filled = [], [], []
        for _, sequences in sorted(classes.items()):
            longest = max(listed[sequence] for sequence in sequences)
            chosen = torch.tensor(sequences, device=device)
            inside = torch.arange(longest, device=device)
            mask = inside < lengths[chosen, None]
            whole = min(listed[sequence] for sequence in sequences) == longest
            rows.append((starts[chosen, None] + inside).flatten())
            places = None
            if positions is not None:  # padding gets some token's, and is attended to by nothing
                places = positions[rows[-1].clamp(max=len(positions) - 1)].view(mask.shape)
            members.append(Group(len(sequences), longest, None if whole else mask, places))
            filled.append(mask.flatten())
        row, holds = torch.cat(rows), torch.cat(filled)
        total = sum(listed)
        # Every token is in one cell, so this writes each place once.
        cells = row.new_empty(total).index_copy_(0, row[holds], holds.nonzero().squeeze(1))
        return Groups(tuple(members), row.clamp_(max=total - 1), cells)

    def spread(self, tokens: Tensor) -> list[Tensor]:
        """The grid of every group: (T, ...) -> (G, M, ...) each. Nothing that is kept may depend on padding."""
        grid: Tensor = _Spread.apply(tokens, self.rows, self.cells)  # type: ignore[no-untyped-call]
        sizes = [group.sequences * group.length for group in self.members]
        parts = grid.split(sizes) if len(sizes) > 1 else (grid,)  # whose gradient is a copy
        return [part.view(g.sequences, g.length, *grid.shape[1:]) for g, part in zip(self.members, parts, strict=True)]

    def collect(self, grids: list[Tensor]) -> Tensor:
        """The rows of all tokens: (G, M, ...) of every group -> (T, ...)."""
        rows = [grid.flatten(0, 1) for grid in grids]
        joined = torch.cat(rows) if len(rows) > 1 else rows[0]
        tokens: Tensor = _Collect.apply(joined, self.cells)  # type: ignore[no-untyped-call]
        return tokens


@dataclass(frozen=True)
class Layout:
    """The (B, S) grid of a batch, which of its cells hold tokens, and which tokens belong together.

    Tensors between layers have one row per token, (T, ...), ordered by sequence and position. ``gather`` leads from the
    batch's grid to rows, ``scatter`` back. ``pad`` and ``unpad`` lead to and from the grid that tokens are mixed on,
    which has one row for each sequence apart: the same grid, unless documents within sequences are kept apart.

    Without padding and documents every reshaping here is a view and no mask exists. A mask without ``cells`` means that
    padding is computed like everything else but attended to by nothing.

    Kernels that take rows need no more than ``ends``; others mix sequences of similar length, in ``groups``, which are
    made when they are first asked for.
    """

    sequences: int  # D
    length: int  # S, of the grid tokens are mixed on
    cells: Tensor | None = None  # (T,) int64: cell d*S + s of each token; None: all cells hold tokens
    mask: Tensor | None = None  # (D, S) bool: True where a token is, which may be attended to; None: everywhere
    ends: Tensor | None = None  # (D+1,) int32: 0, then where each sequence's rows end; None: every cell is a row
    holes: bool = False  # padding lies between tokens of a sequence, so that rows next to one another may be far apart
    batch: tuple[int, int] | None = None  # (B, S) of the batch where its grid is another, documents being apart
    origin: Tensor | None = None  # (T,) int64: cell of the batch's grid each token is from; None: as ``cells``
    places: Tensor | None = None  # (D, S) int64: position of the token in each cell; None: its column
    memo: Memo = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(
        inputs: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
        *,
        computed: bool = False,
    ) -> "Layout":
        """The layout of ``inputs`` (B, S).

        Padding is told by a mask (B, S), by lengths (B,), or absent; documents to keep apart by ``starts`` (B, S),
        true at the first token of each, the first token of a sequence always being one. ``computed``: padding is to
        be computed like everything else, and attended to by nothing; not where documents are apart.
        """
        sequences, length = inputs.shape
        if lengths is not None:
            mask = torch.arange(length, device=inputs.device) < lengths[:, None]
        if starts is not None:
            return Layout._apart(starts, mask)
        if mask is None:
            return Layout(sequences, length)
        mask = mask.bool()
        if computed:
            return Layout(sequences, length, mask=mask)
        cells = mask.flatten().nonzero().squeeze(1)
        holes = lengths is None and bool((_runs(mask) > 1).any())
        return Layout(sequences, length, cells, mask, _ends(mask.sum(1)), holes)

    @staticmethod
    def _apart(starts: Tensor, mask: Tensor | None) -> "Layout":
        """Every document a row of a grid of its own."""
        starts = starts.clone()
        starts[:, 0] = True
        flat = starts.flatten()
        origin = None if mask is None else mask.flatten().nonzero().squeeze(1)
        heads = flat if origin is None else flat[origin]
        first = heads.nonzero().squeeze(1)
        counts = torch.diff(first, append=first.new_tensor([heads.shape[0]]))
        cells, within = _cells(counts)
        shape = (starts.shape[0], starts.shape[1])
        return Layout(counts.shape[0], within.shape[1], cells, within, _ends(counts), batch=shape, origin=origin)

    def part(self, rows: Tensor, each: int | None = None) -> "Layout":
        """The layout of some of the tokens, which keep their positions; for mixing only, the batch has no grid of it.

        Args:
            rows: (T',) int64, ascending, their rows among all tokens.
            each: how many are of each sequence, if that is known: then nothing waits for the device to count.
        """
        cells = rows if self.cells is None else self.cells[rows]
        positions = cells % self.length
        if each is not None and self.mask is None:
            return Layout(self.sequences, each, places=positions.view(self.sequences, each))
        counts = torch.bincount(cells // self.length, minlength=self.sequences)
        counts = counts[counts > 0]
        cells, within = _cells(counts)
        shape = (counts.shape[0], within.shape[1])
        return Layout(*shape, cells, within, _ends(counts), places=_placed(positions, cells, shape))

    @property
    def grouped(self) -> bool:
        """Whether sequences of similar length are mixed together; else all of them at once, on the grid."""
        return self.ends is not None and not self.holes

    @cached_property
    def groups(self) -> Groups | None:
        """Sequences of similar length together; None where nothing is padded, or padding is computed.

        Their sizes are asked of the device, which has to wait for it; kernels that take rows do without them.
        """
        if self.ends is None or self.holes:
            return None
        counts = self.ends.diff().long()
        return Groups.of(counts[counts > 0], None if self.places is None else self.unpad(self.places))

    def rows_end(self, device: torch.device) -> Tensor:
        """``ends``, also where every cell is a row: (D+1,) int32."""
        if self.ends is not None:
            return self.ends
        assert self.cells is None
        return torch.arange(self.sequences + 1, device=device, dtype=torch.int32) * self.length

    def told_by_ends(self, distances: bool) -> bool:
        """Whether nothing but ``rows_end`` says which rows see one another.

        Args:
            distances: it also matters how far apart they are.
        """
        computed = self.mask is not None and self.cells is None
        return not computed and not (distances and (self.holes or self.places is not None))

    def sequences_of(self, rows: Tensor) -> Tensor:
        """The sequence, 0 to D-1, of the token in each of these rows, any shape."""
        return (rows if self.cells is None else self.cells[rows]) // self.length

    def gather(self, grid: Tensor) -> Tensor:
        """The rows of tokens of the batch's grid: (B, S, ...) -> (T, ...)."""
        rows = grid.flatten(0, 1)
        cells = self._origin
        return rows if cells is None else rows[cells]

    def scatter(self, rows: Tensor) -> Tensor:
        """The batch's grid again, zero where no token is: (T, ...) -> (B, S, ...)."""
        return _placed(rows, self._origin, self.batch or (self.sequences, self.length))

    def unpad(self, grid: Tensor) -> Tensor:
        """The rows of tokens of the grid they are mixed on: (D, S, ...) -> (T, ...)."""
        rows = grid.flatten(0, 1)
        return rows if self.cells is None else rows[self.cells]

    def pad(self, rows: Tensor) -> Tensor:
        """The grid tokens are mixed on, zero where no token is: (T, ...) -> (D, S, ...)."""
        return _placed(rows, self.cells, (self.sequences, self.length))

    def positions(self) -> Tensor | None:
        """Position of each token within its sequence, (T,); None where all positions repeat in order."""
        if self.places is not None:
            return self.unpad(self.places)
        return None if self.cells is None else self.cells % self.length

    def positions_of(self, rows: Tensor) -> Tensor:
        """Position within its sequence of the token in each of these rows, any shape."""
        return (rows if self.cells is None else self.cells[rows]) % self.length

    def rows_of(self, positions: Tensor) -> Tensor:
        """Row of the token at each (sequence of the batch, position): (B, P) -> (B, P); padding gives some token's."""
        width = self.length if self.batch is None else self.batch[1]
        cells = torch.arange(positions.shape[0], device=positions.device)[:, None] * width + positions
        origin = self._origin
        return cells if origin is None else torch.searchsorted(origin, cells).clamp_(max=origin.shape[0] - 1)

    @property
    def _origin(self) -> Tensor | None:
        return self.cells if self.batch is None else self.origin


@dataclass(frozen=True)
class Queries:
    """The positions whose output is wanted from the last layer, P of every sequence."""

    rows: Tensor  # (B, P) int64: their rows among the T tokens
    kept: Tensor | None = None  # (N,) int64: of the B*P slots, those that are in use; None: all

    def take(self, slots: Tensor) -> Tensor:
        """The slots in use: (B*P, ...) -> (N, ...)."""
        return slots if self.kept is None else slots[self.kept]

    def select(self, tokens: Tensor) -> Tensor:
        """The rows of the slots in use: (T, ...) -> (N, ...)."""
        return tokens[self.take(self.rows.flatten())]


@torch.compiler.disable
def groups_of(layout: Layout) -> Groups:
    """Its groups, which a compiler has no part in: every batch has others."""
    assert layout.groups is not None
    return layout.groups


def _ends(counts: Tensor) -> Tensor:
    """0, then where each sequence's rows end: (D,) -> (D+1,) int32."""
    return F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))


def _cells(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Cell of each token, (T,), and where tokens are, (D, S), of sequences with so many that follow one another."""
    longest = int(counts.max())
    sequence = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    inside = torch.arange(sequence.shape[0], device=counts.device) - first[sequence]
    return sequence * longest + inside, torch.arange(longest, device=counts.device) < counts[:, None]


def _placed(rows: Tensor, cells: Tensor | None, shape: tuple[int, int]) -> Tensor:
    if cells is not None:
        rows = rows.new_zeros(shape[0] * shape[1], *rows.shape[1:]).index_copy(0, cells, rows)
    return rows.view(*shape, *rows.shape[1:])


def _runs(mask: Tensor) -> Tensor:
    """How many stretches of tokens each row has: (B, S) bool -> (B,)."""
    return mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
