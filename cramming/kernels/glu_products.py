"""What kernels of ``block_diagonal_glu`` leave to torch: products of tall matrices that lie as they are needed.

Shape legend: ``operands.py``.
"""

import torch
from torch import Tensor

from cramming.kernels.operands import Glu, GluGradients


def blocks_of(rows: Tensor, number: int) -> Tensor:
    """(T, number w) -> (number, T, w), a view."""
    return rows.unflatten(1, (number, -1)).transpose(0, 1)


def gradients_of(given: Glu, of_kept: Tensor, middle: Tensor, gradient: Tensor) -> GluGradients:
    """All gradients from those of gates and values.

    Args:
        given: contiguous.
        of_kept: (T, 2 p o), gradients of gates and of values.
        middle: (T, p o), gelu(gates) * values.
        gradient: (T, q m), contiguous.
    """
    x, w_gate, w_value, w_out, bias = given
    pairs, blocks = len(w_gate), len(w_out)
    of_x = torch.empty_like(x)
    slopes, signals, places = (blocks_of(part, 2 * pairs) for part in (of_kept, x, of_x))
    torch.bmm(slopes[:pairs], w_gate, out=places[:pairs])
    torch.bmm(slopes[pairs:], w_value, out=places[pairs:])
    of_gate, of_value, of_out = (torch.empty_like(weight) for weight in (w_gate, w_value, w_out))
    # One by one: of a single product with few outputs cuBLAS can divide the long sum among all multiprocessors.
    for number, place in enumerate((*of_gate, *of_value)):
        torch.mm(slopes[number].t(), signals[number], out=place)
    for number, (slope, part) in enumerate(zip(blocks_of(gradient, blocks), blocks_of(middle, blocks), strict=True)):
        torch.mm(slope.t(), part, out=of_out[number])
    return GluGradients(of_x, of_gate, of_value, of_out, None if bias is None else gradient.sum(0))
