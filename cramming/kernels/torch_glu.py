"""``block_diagonal_glu`` by torch's products, on every device, a block of outputs at a time.

Shape legend: ``operands.py``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.kernels.operands import Glu, GluGradients


def glu_lacks(given: Glu) -> str | None:
    """Nothing: it takes everything."""
    return None


def glu_forward(given: Glu, keep: bool) -> tuple[Tensor, Tensor]:
    """-> (T, q m), and gates and values, (T, 2 p o), if they are to be kept."""
    x, w_gate, w_value, w_out, bias = given
    pairs, width, _ = w_gate.shape
    inputs = x.chunk(2 * pairs, dim=1)
    made = x.new_empty(len(x), w_out.shape[0] * w_out.shape[1])
    kept = x.new_empty((len(x), 2 * pairs * width) if keep else 0)
    places = kept.chunk(2 * pairs, dim=1) if keep else ()
    outputs = made.chunk(len(w_out), dim=1)
    each = len(w_out) // pairs
    for pair in range(pairs):
        gates = torch.mm(inputs[pair], w_gate[pair].t())
        values = torch.mm(inputs[pairs + pair], w_value[pair].t())
        if keep:
            places[pair].copy_(gates)
            places[pairs + pair].copy_(values)
        middle = F.gelu(gates).mul_(values).chunk(each, dim=1)
        for number in range(each):
            block = pair * each + number
            outputs[block].copy_(torch.mm(middle[number], w_out[block].t()))
    if bias is not None:
        made += bias
    return made, kept


def glu_back(given: Glu, kept: Tensor, gradient: Tensor) -> GluGradients:
    """(T, 2 p o), (T, q m) -> gradients of what was given."""
    x, w_gate, w_value, w_out, bias = given
    pairs, each = len(w_gate), len(w_out) // len(w_gate)
    inputs, slopes = x.chunk(2 * pairs, dim=1), gradient.chunk(len(w_out), dim=1)
    before = kept.chunk(2 * pairs, dim=1)
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    places = of_x.chunk(2 * pairs, dim=1)
    of_gate, of_value, of_out = (torch.empty_like(weight) for weight in (w_gate, w_value, w_out))
    for pair in range(pairs):
        gates, values = before[pair], before[pairs + pair]
        active = F.gelu(gates)
        middle = (active * values).chunk(each, dim=1)
        blocks = range(pair * each, pair * each + each)
        for number, block in enumerate(blocks):
            torch.mm(slopes[block].t(), middle[number], out=of_out[block])
        of_middle = torch.cat([torch.mm(slopes[block], w_out[block]) for block in blocks], dim=1)
        of_values = of_middle * active
        of_gates = torch.ops.aten.gelu_backward(of_middle.mul_(values), gates)
        torch.mm(of_gates.t(), inputs[pair], out=of_gate[pair])
        torch.mm(of_values.t(), inputs[pairs + pair], out=of_value[pair])
        places[pair].copy_(torch.mm(of_gates, w_gate[pair]))
        places[pairs + pair].copy_(torch.mm(of_values, w_value[pair]))
    return GluGradients(of_x, of_gate, of_value, of_out, None if bias is None else gradient.sum(0))
