"""``block_diagonal_glu``: the gated feed-forward part of M2-BERT, from its input to its output.

Shape legend: ``operands.py``.
"""

import torch
from torch import Tensor

from cramming.differentiation import twice
from cramming.kernels import backends, reference
from cramming.kernels.operands import Glu, GluGradients
from cramming.kernels.types import autocast_to, same_device, wide_of

OP = "block_diagonal_glu"


def block_diagonal_glu(
    x: Tensor,
    w_gate: Tensor,
    w_value: Tensor,
    w_out: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str = backends.AUTO,
) -> Tensor:
    """gelu(gates) * values between two block-diagonal layers: -> (T, q m).

    With x cut into 2 p blocks of i channels, one after another, and the middle into q blocks of n,

        gates[k] = w_gate[k] x[k],   values[k] = w_value[k] x[p + k]        for k < p,  o channels each
        y[j] = w_out[j] (gelu(gates) * values)[j] + bias[j]                 for j < q,  m channels each

    so that a gate's inputs are others than its value's, and each block of the middle is the inputs of q / p outer ones
    (https://arxiv.org/abs/2310.12109, as in its BERT; gelu is the exact one). Products of 16-bit operands are summed in
    float32, the middle is rounded to their type before the second product; where there are few values of it, backends
    may compute in float32 throughout.

    Args:
        x: (T, 2 p i): float32, bfloat16, float16 or float64; under autocast everything is taken in its type.
        w_gate: (p, o, i), of x's type.
        w_value: (p, o, i).
        w_out: (q, m, n), q a multiple of p and q n = p o.
        bias: (q m,).
        backend: of ``backends.NAMES``, or ``auto``.

    Raises:
        ValueError: shapes that do not fit one another.
        TypeError: types or devices that do not.
    """
    given = Glu(*autocast_to(x, w_gate, w_value, w_out, bias))  # type: ignore[arg-type]
    _check(given)
    backends.check(backend)
    if twice() or backend == backends.REFERENCE:
        return reference.glu(given)
    needed = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in given)
    made: Tensor = _forward(*given, needed, backend)[0]
    return made


def forward(
    x: Tensor, w_gate: Tensor, w_value: Tensor, w_out: Tensor, bias: Tensor | None, keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """-> (T, q m), and, if ``keep``, gates and values side by side for backward, (T, 2 p o), else (0,)."""
    given = Glu(x, w_gate, w_value, w_out, bias)
    if not x.numel():
        return x.new_empty(len(x), w_out.shape[0] * w_out.shape[1]), x.new_empty(_kept_shape(x, w_gate, keep))
    made: tuple[Tensor, Tensor] = backends.module(OP, backend, given).glu_forward(given, keep)
    return made


_forward = torch.library.custom_op("cramming::block_diagonal_glu", forward, mutates_args=())


@_forward.register_fake
def _(
    x: Tensor, w_gate: Tensor, w_value: Tensor, w_out: Tensor, bias: Tensor | None, keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], w_out.shape[0] * w_out.shape[1]), x.new_empty(_kept_shape(x, w_gate, keep))


def _kept_shape(x: Tensor, w_gate: Tensor, keep: bool) -> tuple[int, ...]:
    return (x.shape[0], 2 * w_gate.shape[0] * w_gate.shape[1]) if keep else (0,)


def backward(
    gradient: Tensor,
    x: Tensor,
    w_gate: Tensor,
    w_value: Tensor,
    w_out: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    backend: str,
) -> list[Tensor]:
    """Gradients in the order of ``GluGradients``; an empty tensor for a bias that was not given."""
    given = Glu(x, w_gate, w_value, w_out, bias)
    if x.numel():
        found = backends.module(OP, backend, given).glu_back(given, kept, gradient)
    else:
        found = GluGradients(*(None if part is None else torch.zeros_like(part) for part in given))  # type: ignore[arg-type]
    # In the order in memory that was promised, whatever that of the operands is.
    return [x.new_empty(0) if part is None else part.contiguous() for part in found]


_backward = torch.library.custom_op("cramming::block_diagonal_glu_backward", backward, mutates_args=())


@_backward.register_fake
def _(gradient: Tensor, *given: Tensor | None) -> list[Tensor]:
    x = given[0]
    assert x is not None
    return [x.new_empty(0) if part is None else part.new_empty(part.shape) for part in given[:5]]


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *given, _, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*given, output[1])


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, gradient: Tensor, of_kept: Tensor | None
) -> tuple[Tensor | None, ...]:
    *given, kept = ctx.saved_tensors  # type: ignore[attr-defined]
    found = _backward(gradient, *given, kept, ctx.backend)  # type: ignore[attr-defined]
    slopes = (None if part is None else slope for part, slope in zip(given, found, strict=True))
    return *slopes, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _check(given: Glu) -> None:
    """Shapes, types and devices.

    Raises:
        ValueError: shapes.
        TypeError: types or devices.
    """
    x, w_gate, w_value, w_out, bias = given
    for name, part, dims in (("x", x, 2), ("w_gate", w_gate, 3), ("w_value", w_value, 3), ("w_out", w_out, 3)):
        if part.dim() != dims or (name != "x" and not part.numel()):
            raise ValueError(f"{name} has the shape {tuple(part.shape)}: it must have {dims} dimensions, none empty")
    pairs, width, inputs = w_gate.shape
    blocks, outputs, inner = w_out.shape
    if w_value.shape != w_gate.shape:
        raise ValueError(f"w_value has the shape {tuple(w_value.shape)} and w_gate {tuple(w_gate.shape)}: the same")
    if x.shape[1] != 2 * pairs * inputs:
        raise ValueError(
            f"x has the shape {tuple(x.shape)}: beside w_gate {tuple(w_gate.shape)} it must be "
            f"(T, {2 * pairs * inputs})"
        )
    if blocks % pairs or blocks * inner != pairs * width:
        raise ValueError(
            f"w_out has the shape {tuple(w_out.shape)}: beside w_gate {tuple(w_gate.shape)} its blocks must be a "
            f"multiple of {pairs}, and with their inputs make {pairs * width}"
        )
    if bias is not None and tuple(bias.shape) != (blocks * outputs,):
        raise ValueError(f"bias has the shape {tuple(bias.shape)}: it must be ({blocks * outputs},)")
    wide_of(x)
    for name, other in zip(given._fields, given, strict=True):
        if other is not None and other.dtype != x.dtype:
            raise TypeError(f"{name} is {other.dtype} and x {x.dtype}: all must be of one type")
    same_device(given)
