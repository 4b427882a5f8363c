"""``block_diagonal_glu`` of 16-bit operands by compiled kernels, forward in two steps and backward in several.

Shape legend: ``operands.py``. ``csrc/glu.h`` says how the kernels work. They do what has work between two products:

* forward: gates and values, and of them the middle, which alone goes through memory; the outer layer is a product of
  torch's, which has nothing of its own to add but the bias;
* backward: the middle's gradient, and of it those of gates and of values, beside the middle again; the products these
  go into are torch's, of tall matrices that lie in memory as they are needed.
"""

import torch
from torch import Tensor

from cramming.kernels import cuda
from cramming.kernels.operands import Glu, GluGradients

DTYPES = (torch.bfloat16, torch.float16)
PIECE = 8  # numbers of 16 bits that a thread reads at once
# What fits into 99 KB of shared memory beside two stages of weights (csrc/glu.h); every GPU of compute capability 8.0
# or more has it.
WIDEST_INPUTS, WIDEST_OUTPUTS = 640, 1440


def glu_lacks(given: Glu) -> str | None:
    """Why the compiled kernels cannot do this, or None."""
    x, w_gate, _, w_out, _ = given
    if x.dtype not in DTYPES:
        return f"its products are of bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    _, width, inputs = w_gate.shape
    _, outputs, inner = w_out.shape
    if any(size % PIECE for size in (inputs, width, outputs, inner)):
        return "it reads eight numbers at a time, and widths of blocks are no multiples of that"
    if inputs > WIDEST_INPUTS or outputs > WIDEST_OUTPUTS:
        return "blocks are wider than a GPU's shared memory holds of enough tokens"
    return cuda.lacks(x.device)


def glu_forward(given: Glu, keep: bool) -> tuple[Tensor, Tensor]:
    """-> (T, q m), and gates and values, (T, 2 p o), if they are to be kept."""
    x, w_gate, w_value, w_out, bias = given = _readable(given)
    pairs, width, _ = w_gate.shape
    blocks, outputs, _ = w_out.shape
    kept = x.new_empty((len(x), 2 * pairs * width) if keep else 0)
    middle, out = x.new_empty(len(x), pairs * width), x.new_empty(len(x), blocks * outputs)
    cuda.ops().glu_forward(x, w_gate, w_value, middle, kept if keep else None)
    parts, places = _blocks(middle, blocks), _blocks(out, blocks)
    if bias is None:
        torch.bmm(parts, w_out.transpose(1, 2), out=places)
    else:  # rounded once, with the bias
        torch.baddbmm(bias.view(blocks, 1, outputs), parts, w_out.transpose(1, 2), out=places)
    return out, kept


def glu_back(given: Glu, kept: Tensor, gradient: Tensor) -> GluGradients:
    """(T, 2 p o), (T, q m) -> gradients of what was given."""
    x, w_gate, w_value, w_out, bias = given = _readable(given)
    pairs, blocks = len(w_gate), len(w_out)
    gradient, kept = _piecewise(gradient), _piecewise(kept)
    of_kept, middle = torch.empty_like(kept), x.new_empty(len(x), pairs * w_gate.shape[1])
    cuda.ops().glu_backward(gradient, w_out.transpose(1, 2).contiguous(), kept, of_kept, middle)
    of_x = torch.empty_like(x)
    slopes, signals, places = (_blocks(part, 2 * pairs) for part in (of_kept, x, of_x))
    torch.bmm(slopes[:pairs], w_gate, out=places[:pairs])
    torch.bmm(slopes[pairs:], w_value, out=places[pairs:])
    of_gate, of_value, of_out = (torch.empty_like(weight) for weight in (w_gate, w_value, w_out))
    # One by one: of a single product with few outputs cuBLAS divides the long sum among all multiprocessors.
    for number, place in enumerate((*of_gate, *of_value)):
        torch.mm(slopes[number].t(), signals[number], out=place)
    for number, (slope, part) in enumerate(zip(_blocks(gradient, blocks), _blocks(middle, blocks), strict=True)):
        torch.mm(slope.t(), part, out=of_out[number])
    return GluGradients(of_x, of_gate, of_value, of_out, None if bias is None else gradient.sum(0))


def _blocks(rows: Tensor, number: int) -> Tensor:
    """(T, number w) -> (number, T, w), a view."""
    return rows.unflatten(1, (number, -1)).transpose(0, 1)


def _readable(given: Glu) -> Glu:
    return Glu(*(None if part is None else _piecewise(part) for part in given))  # type: ignore[arg-type]


def _piecewise(part: Tensor) -> Tensor:
    """The same values one after another from a multiple of 16 bytes on, where a piece may begin."""
    part = part.contiguous()
    return part if part.data_ptr() % (PIECE * part.element_size()) == 0 else part.clone()
