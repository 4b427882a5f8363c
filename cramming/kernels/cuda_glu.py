"""``block_diagonal_glu`` of 16-bit operands by compiled kernels, forward in two steps and backward in several.

Shape legend: ``operands.py``. ``csrc/glu.h`` says how the kernels work. They do what has work between two products:

* forward: gates and values, and of them the middle, which alone goes through memory; the outer layer is a product of
  torch's, which has nothing of its own to add but the bias;
* backward: the middle's gradient, and of it those of gates and of values, beside the middle again; the products these
  go into are torch's, of tall matrices that lie in memory as they are needed.

A middle of few values is torch's altogether, in float32: of so few 16-bit roundings most may go one way.
"""

import torch
from torch import Tensor

from cramming.kernels import cuda, torch_glu
from cramming.kernels.glu_products import blocks_of, gradients_of
from cramming.kernels.operands import Glu, GluGradients
from cramming.kernels.torch_glu import few

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
    if few(given):
        return torch_glu.glu_forward(given, keep)
    x, w_gate, w_value, w_out, bias = given = _readable(given)
    pairs, width, _ = w_gate.shape
    blocks, outputs, _ = w_out.shape
    kept = x.new_empty((len(x), 2 * pairs * width) if keep else 0)
    middle, out = x.new_empty(len(x), pairs * width), x.new_empty(len(x), blocks * outputs)
    cuda.ops().glu_forward(x, w_gate, w_value, middle, kept if keep else None)
    parts, places = blocks_of(middle, blocks), blocks_of(out, blocks)
    if bias is None:
        torch.bmm(parts, w_out.transpose(1, 2), out=places)
    else:  # rounded once, with the bias
        torch.baddbmm(bias.view(blocks, 1, outputs), parts, w_out.transpose(1, 2), out=places)
    return out, kept


def glu_back(given: Glu, kept: Tensor, gradient: Tensor) -> GluGradients:
    """(T, 2 p o), (T, q m) -> gradients of what was given."""
    if few(given):
        return torch_glu.glu_back(given, kept, gradient)
    given, gradient, kept = _readable(given), _piecewise(gradient), _piecewise(kept)
    of_kept, middle = torch.empty_like(kept), kept.new_empty(len(kept), kept.shape[1] // 2)
    cuda.ops().glu_backward(gradient, given.w_out.transpose(1, 2).contiguous(), kept, of_kept, middle)
    return gradients_of(given, of_kept, middle, gradient)


def _readable(given: Glu) -> Glu:
    return Glu(*(None if part is None else _piecewise(part) for part in given))  # type: ignore[arg-type]


def _piecewise(part: Tensor) -> Tensor:
    """The same values one after another from a multiple of 16 bytes on, where a piece may begin."""
    part = part.contiguous()
    return part if part.data_ptr() % (PIECE * part.element_size()) == 0 else part.clone()
