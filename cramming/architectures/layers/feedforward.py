"""The position-wise part of an encoder layer.

Shape legend: T tokens after unpadding, H hidden, F width of the first matrix.
"""

from torch import Tensor, nn

from cramming.architectures.layers.activation import ACTIVATIONS
from cramming.architectures.layers.axes import FIXED, Axes, Axis


class FeedForward(nn.Module):
    """Dense, nonlinearity, dense.

    Gated (https://arxiv.org/abs/2002.05202), the first matrix gives values (F/2) and gates (F/2), in this order, and
    nonlin(gates) * values go on.

    Args:
        hidden: H.
        intermediate: F.
        nonlin: the nonlinearity, a key of ``ACTIVATIONS``.
        gated: half of the first matrix's outputs are gates.
        bias: whether the first matrix has a bias.
        output_bias: whether the second has one; None: as the first.
        dropout: of what the second matrix reads, in training mode.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        nonlin: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        output_bias: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activate, self.gated = ACTIVATIONS[nonlin], gated
        self.expand = nn.Linear(hidden, intermediate, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(
            intermediate // 2 if gated else intermediate, hidden, bias=bias if output_bias is None else output_bias
        )

    def growing_axes(self) -> dict[str, Axes]:
        """Values and gates grow apart from one another."""
        intermediate, hidden = self.expand.weight.shape
        rows: Axes = (Axis(2, FIXED), intermediate // 2) if self.gated else (intermediate,)
        return {"expand.weight": (*rows, hidden), "expand.bias": rows}

    def forward(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        wide = self.expand(x)
        if self.gated:
            values, gates = wide.chunk(2, dim=-1)
            activated = self.activate(gates) * values
        else:
            activated = self.activate(wide)
        contracted: Tensor = self.contract(self.dropout(activated))
        return contracted
