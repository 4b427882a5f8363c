"""Where the tokens of a batch sit, so that no layer works on padding and attention stays within a sequence.

Shape legend: B sequences of the batch, D sequences apart from one another (B, or the documents in them), S positions,
T tokens after unpadding (T = B*S where nothing is padded), P predicted, G sequences of a group, M the longest of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_LENGTHS_OF_GROUPS = 8  # sequences are attended to together when their lengths agree to an eighth of the longest


@dataclass(frozen=True)
class Group:
    """Sequences of similar length, a small grid of their own."""

    rows: Tensor  # (G, M) int64: row of the token at each place; a place of padding has some token's
    mask: Tensor | None  # (G, M) bool: True where a token is; None: all are equally long
    places: Tensor | None  # (t,) int64: the places g*M + m that hold tokens; None: all

    def take(self, grid: Tensor) -> Tensor:
        """The rows of its tokens: (G, M, ...) -> (t, ...)."""
        rows = grid.flatten(0, 1)
        return rows if self.places is None else rows[self.places]


@dataclass(frozen=True)
class Groups:
    """Every sequence in one group, and the way back."""

    members: tuple[Group, ...]
    order: Tensor  # (T,) int64: where each token is among those of all groups, one group after the other

    @staticmethod
    def of(lengths: Tensor) -> "Groups":
        """Groups of sequences whose tokens follow one another: (D,) tokens in each, none of them 0."""
        listed = lengths.tolist()
        unit = max(1, -(-max(listed) // _LENGTHS_OF_GROUPS))
        starts = lengths.cumsum(0) - lengths
        total = int(lengths.sum())
        classes: dict[int, list[int]] = {}
        for sequence, length in enumerate(listed):
            classes.setdefault(-(-length // unit), []).append(sequence)
        members, order = [], []
        for _, sequences in sorted(classes.items()):
            chosen = torch.tensor(sequences, device=lengths.device)
            inside = torch.arange(max(listed[s] for s in sequences), device=lengths.device)
            mask = inside < lengths[chosen, None]
            rows = (starts[chosen, None] + inside).clamp_(max=total - 1)
            whole = min(listed[s] for s in sequences) == mask.shape[1]
            order.append(rows.flatten() if whole else rows[mask])
            members.append(Group(rows, None, None) if whole else Group(rows, mask, mask.flatten().nonzero().squeeze(1)))
        return Groups(tuple(members), torch.cat(order).argsort())

    def join(self, parts: list[Tensor]) -> Tensor:
        """The tokens of every group, in the order of ``members``, as rows again: (t, ...) each -> (T, ...)."""
        return torch.cat(parts)[self.order]


@dataclass(frozen=True)
class Layout:
    """The (B, S) grid of a batch, which of its cells hold tokens, and which tokens belong together.

    Tensors between layers have one row per token, (T, ...), ordered by sequence and position. ``gather`` leads from the
    batch's grid to rows, ``scatter`` back. ``pad`` and ``unpad`` lead to and from the grid that tokens are mixed on,
    which has one row for each sequence apart: the same grid, unless documents within sequences are kept apart.

    Without padding and documents every reshaping here is a view and no mask exists. A mask without ``cells`` means that
    padding is computed like everything else but attended to by nothing.
    """

    sequences: int  # D
    length: int  # S, of the grid tokens are mixed on
    cells: Tensor | None = None  # (T,) int64: cell d*S + s of each token; None: all cells hold tokens
    mask: Tensor | None = None  # (D, S) bool: True where a token is, which may be attended to; None: everywhere
    groups: Groups | None = None  # for attention; None where nothing is padded, or padding is computed
    batch: tuple[int, int] | None = None  # (B, S) of the batch where its grid is another, documents being apart
    origin: Tensor | None = None  # (T,) int64: cell of the batch's grid each token is from; None: as ``cells``

    @staticmethod
    def of(
        inputs: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None, starts: Tensor | None = None
    ) -> "Layout":
        """The layout of ``inputs`` (B, S).

        Padding is told by a mask (B, S), by lengths (B,), or absent; documents to keep apart by ``starts`` (B, S),
        true at the first token of each, the first token of a sequence always being one.
        """
        sequences, length = inputs.shape
        if lengths is not None:
            mask = torch.arange(length, device=inputs.device) < lengths[:, None]
        if starts is not None:
            return Layout._apart(starts, mask)
        if mask is None:
            return Layout(sequences, length)
        mask = mask.bool()
        cells = mask.flatten().nonzero().squeeze(1)
        counts = mask.sum(1)
        return Layout(sequences, length, cells, mask, Groups.of(counts[counts > 0]))

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
        longest = int(counts.max())
        document = heads.cumsum(0) - 1
        inside = torch.arange(heads.shape[0], device=starts.device) - first[document]
        cells = document * longest + inside
        within = torch.arange(longest, device=starts.device) < counts[:, None]
        shape = (starts.shape[0], starts.shape[1])
        return Layout(counts.shape[0], longest, cells, within, Groups.of(counts), shape, origin)

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


def _placed(rows: Tensor, cells: Tensor | None, shape: tuple[int, int]) -> Tensor:
    if cells is not None:
        rows = rows.new_zeros(shape[0] * shape[1], *rows.shape[1:]).index_copy(0, cells, rows)
    return rows.view(*shape, *rows.shape[1:])
