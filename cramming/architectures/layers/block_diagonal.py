"""Linear layers whose matrix is block-diagonal, and the gated feed-forward part made of them.

Shape legend: T tokens, I inputs, O outputs, b blocks, i = ceil(I / b) and o = ceil(O / b) inputs and outputs of a
block, H hidden, W width between the two layers.

One of Monarch's two factors (https://arxiv.org/abs/2204.00595) without its permutation, as M2-BERT has it: channels of
different blocks meet in the dense layers around it only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.layers.axes import FIXED, Axes, Axis
from cramming.kernels import backends, block_diagonal_glu


class BlockDiagonalLinear(nn.Module):
    """Block k of the inputs, times a matrix of its own, is block k of the outputs.

    Where b does not divide a size, the last block has zeros for the inputs that are missing, and gives no more outputs
    than there are.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, bias: bool = True) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(torch.empty(blocks, -(-outputs // blocks), -(-inputs // blocks)))  # (b, o, i)
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform as the reference has it: matrices within sqrt(b / I), biases within 1 / sqrt(O)."""
        bound = math.sqrt(self.weight.shape[0] / self.inputs)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.outputs)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        blocks, _, wide = self.weight.shape
        rows = F.pad(x.flatten(0, -2), (0, blocks * wide - self.inputs)).unflatten(1, (blocks, wide))
        y = torch.bmm(rows.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1).flatten(1)
        y = y[:, : self.outputs].unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class BlockDiagonalGatedFeedForward(nn.Module):
    """gelu(gates) * values between two block-diagonal layers, [gates, values] (2 W) being the first one's outputs.

    The first half of the blocks gives the gates, the second the values, so a gate's input channels are others than its
    value's. The outer layer has a bias, the inner one none.

    All of it is one operation (``kernels/gated_feed_forward.py``) but where something is dropped in the middle of it,
    or where the blocks do not come in pairs.

    Args:
        hidden: H.
        width: W.
        blocks: b, of both layers.
        dropout: of what goes into the outer layer, in training mode.

    Attributes:
        kernels: the operation's backend.
    """

    plain: frozenset[str] = frozenset()

    def __init__(self, hidden: int, width: int, blocks: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.kernels = backends.AUTO
        self.dropout = nn.Dropout(dropout)
        self.expand = BlockDiagonalLinear(hidden, 2 * width, blocks, bias=False)
        self.contract = BlockDiagonalLinear(width, hidden, blocks)
        # A block of values then stands beside one of gates, and is the inputs of two blocks of the outer layer.
        self.paired = blocks % 2 == 0 and hidden % blocks == 0 and width % blocks == 0

    @property
    def ways(self) -> frozenset[str]:
        """What of ``cramming.plain.WAYS`` there is to decide here."""
        return frozenset({"block_diagonal"} if self.paired else ())

    def growing_axes(self) -> dict[str, Axes]:
        """Blocks stay apart, and so do the two blocks of the outer layer that a block of the inner one leads to.

        Where a block of gates does not face one of values, nothing may grow.
        """
        inner, outer = self.expand.weight.shape, self.contract.weight.shape
        if not self.paired and inner[0] > 1:
            fixed = ([Axis(size, FIXED) for size in shape] for shape in (inner, outer))
            return dict(zip(("expand.weight", "contract.weight"), map(tuple, fixed), strict=True))
        apart = Axis(inner[0], FIXED)
        return {
            "expand.weight": (apart, Axis(2, FIXED), inner[1] // 2, inner[2]),
            "contract.weight": (apart, *outer[1:]),
        }

    def stream(self) -> tuple[int, int]:
        """Features of the residual stream, and how many blocks of them it keeps apart."""
        return self.contract.outputs, self.contract.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        if self.paired and "block_diagonal" not in self.plain:
            return self._dropping(x) if self.training and self.dropout.p else self._whole(x)
        gates, values = self.expand(x).chunk(2, dim=-1)
        contracted: Tensor = self.contract(self.dropout(F.gelu(gates) * values))
        return contracted

    def _whole(self, x: Tensor) -> Tensor:
        """As one operation."""
        pairs = self.expand.weight.shape[0] // 2
        gates, values = self.expand.weight.split(pairs)
        return block_diagonal_glu(x, gates, values, self.contract.weight, self.contract.bias, backend=self.kernels)

    def _dropping(self, x: Tensor) -> Tensor:
        """With dropout in the middle, a block of outputs at a time: what lies between them is never copied."""
        inner, outer = self.expand.weight, self.contract.weight
        pairs = inner.shape[0] // 2
        inputs = x.chunk(2 * pairs, dim=-1)
        halves = [weight.chunk(2) for weight in inner.unbind()]  # of a block's outputs: (o / 2, i) each
        outputs = []
        for pair in range(pairs):
            for half, weight in enumerate(outer[2 * pair : 2 * pair + 2].unbind()):
                gates = F.linear(inputs[pair], halves[pair][half])
                values = F.linear(inputs[pair + pairs], halves[pair + pairs][half])
                outputs.append(F.linear(self.dropout(F.gelu(gates) * values), weight))
        bias = self.contract.bias
        joined = torch.cat(outputs, dim=-1)
        return joined if bias is None else joined + bias
