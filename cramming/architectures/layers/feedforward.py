"""The position-wise part of an encoder layer.

Shape legend: T tokens after unpadding, H hidden.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Dense, GELU (the erf form), dense."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.expand = nn.Linear(hidden, intermediate)
        self.contract = nn.Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        contracted: Tensor = self.contract(F.gelu(self.expand(x)))
        return contracted
