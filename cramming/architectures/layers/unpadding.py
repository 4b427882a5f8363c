"""Where the tokens of a batch sit, so that dense layers run on tokens only and attention never sees padding.

Shape legend: B sequences, S positions, T tokens after unpadding (T = B*S where nothing is padded), P predicted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The (B, S) grid of a batch and which of its cells hold tokens.

    Tensors between layers have one row per token, (T, ...), ordered by sequence and position. Without padding every
    reshaping here is a view and no mask exists. A mask without ``cells`` means that padding is computed like everything
    else but attended to by nothing.
    """

    sequences: int  # B
    length: int  # S
    cells: Tensor | None = None  # (T,) int64: cell b*S + s of each token; None: all cells hold tokens
    mask: Tensor | None = None  # (B, S) bool: True where a token is, which may be attended to; None: everywhere

    @staticmethod
    def of(inputs: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None) -> "Layout":
        """The layout of ``inputs`` (B, S), with padding told by a mask (B, S), by lengths (B,), or absent."""
        sequences, length = inputs.shape
        if lengths is not None:
            mask = torch.arange(length, device=inputs.device) < lengths[:, None]
        if mask is None:
            return Layout(sequences, length)
        mask = mask.bool()
        return Layout(sequences, length, mask.flatten().nonzero().squeeze(1), mask)

    def unpad(self, grid: Tensor) -> Tensor:
        """The rows of tokens: (B, S, ...) -> (T, ...)."""
        rows = grid.flatten(0, 1)
        return rows if self.cells is None else rows[self.cells]

    def pad(self, rows: Tensor) -> Tensor:
        """The grid again, zero where no token is: (T, ...) -> (B, S, ...)."""
        if self.cells is not None:
            empty = rows.new_zeros(self.sequences * self.length, *rows.shape[1:])
            rows = empty.index_copy(0, self.cells, rows)
        return rows.view(self.sequences, self.length, *rows.shape[1:])

    def positions(self) -> Tensor | None:
        """Position of each token within its sequence, (T,); None where all positions repeat in order."""
        return None if self.cells is None else self.cells % self.length

    def positions_of(self, rows: Tensor) -> Tensor:
        """Position within its sequence of the token in each of these rows, any shape."""
        return (rows if self.cells is None else self.cells[rows]) % self.length

    def rows_of(self, positions: Tensor) -> Tensor:
        """Row of the token at each (sequence, position): (B, P) -> (B, P); a cell of padding gives some token's row."""
        start = torch.arange(self.sequences, device=positions.device)[:, None] * self.length
        cells = start + positions
        if self.cells is None:
            return cells
        return torch.searchsorted(self.cells, cells).clamp_(max=self.cells.shape[0] - 1)


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
