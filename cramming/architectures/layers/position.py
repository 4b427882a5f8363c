"""What is added to the embeddings to tell positions apart.

Shape legend: S positions, E width of the embeddings.
"""

import math

import torch
from torch import Tensor, nn

from cramming.architectures.layers.axes import POSITIONS, Axes, Axis


class LearnedPositions(nn.Embedding):
    """A learned table."""

    def forward(self, length: int) -> Tensor:  # type: ignore[override]  # a lookup of the first rows
        """-> (S, E) for the first ``length`` positions."""
        return self.weight[:length]

    def growing_axes(self) -> dict[str, Axes]:
        """Its rows are positions."""
        return {"weight": (Axis(self.num_embeddings, POSITIONS), self.embedding_dim)}


class SinusoidalPositions(nn.Module):
    """sin(p / 10000^(2i/E)) at 2i, cos of the same at 2i+1 (Vaswani et al., 2017, section 3.5).

    Scaled, the table is multiplied by one learned number that starts at E^(-1/2) (https://arxiv.org/abs/2202.10447).
    """

    table: Tensor

    def __init__(self, positions: int, width: int, scaled: bool) -> None:
        super().__init__()
        angles = torch.arange(positions)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        self.register_buffer("table", table, persistent=False)
        self.scale = nn.Parameter(torch.tensor([width**-0.5])) if scaled else None

    def forward(self, length: int) -> Tensor:
        """-> (S, E) for the first ``length`` positions."""
        table = self.table[:length]
        return table if self.scale is None else self.scale * table


def make_positions(kind: str, positions: int, width: int) -> nn.Module | None:
    """``learned``, ``sinusoidal``, ``scaled_sinusoidal``, or None for ``none``; called with a length, -> (S, E).

    Raises:
        ValueError: another kind.
    """
    if kind == "learned":
        return LearnedPositions(positions, width)
    if kind in ("sinusoidal", "scaled_sinusoidal"):
        return SinusoidalPositions(positions, width, scaled=kind == "scaled_sinusoidal")
    if kind == "none":
        return None
    raise ValueError(f"position={kind!r} is not one of learned, sinusoidal, scaled_sinusoidal, none")
