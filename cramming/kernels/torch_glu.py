"""``block_diagonal_glu`` by torch's products, on every device, a block of outputs at a time.

Shape legend: ``operands.py``.

Gates and values are kept matrix after matrix, each (T, o) in one piece, whatever the shape says in which they are
handed on: on a CPU elementwise work on columns of a wider tensor takes three times as long. Nobody else reads them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.kernels.operands import Glu, GluGradients
from cramming.kernels.types import as_given

# A 16-bit middle of so few values is worked out in float32 from end to end. It costs next to nothing, and of so few
# roundings to 16 bits it may happen that most go one way: the more there are, the surer they are not to.
FEW = 1 << 16


def glu_lacks(given: Glu) -> str | None:
    """Nothing: it takes everything."""
    return None


def glu_forward(given: Glu, keep: bool) -> tuple[Tensor, Tensor]:
    """-> (T, q m), and gates and values, of the size (T, 2 p o), if they are to be kept."""
    x, w_gate, w_value, w_out, bias = given
    if few(given):
        return tuple(made.to(x.dtype) for made in glu_forward(_wide(given), keep))  # type: ignore[return-value]
    pairs, width, _ = w_gate.shape
    inputs = x.chunk(2 * pairs, dim=1)
    made = x.new_empty(len(x), w_out.shape[0] * w_out.shape[1])
    kept = x.new_empty((2 * pairs if keep else 2, len(x), width))
    outputs = made.chunk(len(w_out), dim=1)
    biases = None if bias is None else bias.chunk(len(w_out))
    each = len(w_out) // pairs
    with as_given(x):
        for pair in range(pairs):
            gates, values = kept[2 * pair : 2 * pair + 2] if keep else kept
            torch.mm(inputs[pair], w_gate[pair].t(), out=gates)
            torch.mm(inputs[pairs + pair], w_value[pair].t(), out=values)
            middle = F.gelu(gates).mul_(values)
            for number, part in enumerate(middle.chunk(each, dim=1)):
                block = pair * each + number
                if biases is None:
                    torch.mm(part, w_out[block].t(), out=outputs[block])
                else:
                    torch.addmm(biases[block], part, w_out[block].t(), out=outputs[block])
    return made, kept.view(len(x), -1) if keep else x.new_empty(0)


def glu_back(given: Glu, kept: Tensor, gradient: Tensor) -> GluGradients:
    """(T, 2 p o), (T, q m) -> gradients of what was given."""
    x, w_gate, w_value, w_out, bias = given
    if few(given):
        wide = _wide(given)
        found = glu_back(wide, glu_forward(wide, True)[1], _floats(gradient))
        return GluGradients(*(None if part is None else part.to(x.dtype) for part in found))  # type: ignore[arg-type]
    pairs, each = len(w_gate), len(w_out) // len(w_gate)
    inputs, slopes = x.chunk(2 * pairs, dim=1), gradient.chunk(len(w_out), dim=1)
    before = kept.view(pairs, 2, len(x), -1)
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    places = of_x.chunk(2 * pairs, dim=1)
    of_gate, of_value, of_out = (torch.empty_like(weight) for weight in (w_gate, w_value, w_out))
    of_middle = x.new_empty(len(x), w_gate.shape[1])
    with as_given(x):
        for pair in range(pairs):
            gates, values = before[pair]
            active = F.gelu(gates)
            blocks = range(pair * each, pair * each + each)
            for block, part in zip(blocks, (active * values).chunk(each, dim=1), strict=True):
                torch.mm(slopes[block].t(), part, out=of_out[block])
            for block, part in zip(blocks, of_middle.chunk(each, dim=1), strict=True):
                torch.mm(slopes[block], w_out[block], out=part)
            of_values = active.mul_(of_middle)
            torch.mm(of_values.t(), inputs[pairs + pair], out=of_value[pair])
            torch.mm(of_values, w_value[pair], out=places[pairs + pair])
            of_gates = torch.ops.aten.gelu_backward(values * of_middle, gates)
            torch.mm(of_gates.t(), inputs[pair], out=of_gate[pair])
            torch.mm(of_gates, w_gate[pair], out=places[pair])
    return GluGradients(of_x, of_gate, of_value, of_out, None if bias is None else gradient.sum(0))


def few(given: Glu) -> bool:
    """Whether the middle has so few 16-bit values that it is worked out in float32."""
    narrow = given.x.dtype.itemsize < torch.float32.itemsize
    return narrow and len(given.x) * given.w_gate.shape[0] * given.w_gate.shape[1] < FEW


def _wide(given: Glu) -> Glu:
    return Glu(*(None if part is None else _floats(part) for part in given))  # type: ignore[arg-type]


def _floats(part: Tensor) -> Tensor:
    return part.to(torch.promote_types(part.dtype, torch.float32))
