"""The definitions, in O(S^2): plain torch, differentiable by autograd as often as wanted; in float64 what others are
tested against.

Shape legends: ``operands.py``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.kernels.operands import Convolution, Glu
from cramming.kernels.types import as_given

SHORT = 3  # taps of the short convolution
Long = Callable[[Tensor, int], Tensor]  # (B, C, S) and which filter -> (B, C, S)


def convolve(given: Convolution) -> Tensor:
    """-> (C, B, S), of z's type."""

    def long(signal: Tensor, number: int) -> Tensor:
        taps, skip = (given.taps_residual, given.bias_residual) if number else (given.taps, given.bias)
        assert taps is not None
        assert skip is not None
        return _long(signal if given.mask is None else signal * given.mask[:, None], taps, skip)

    return written_out(given, long)


def written_out(given: Convolution, long: Long) -> Tensor:
    """All of it around the long convolutions: -> (C, B, S)."""
    length, wide = given.z.shape[-1], given.taps.dtype
    with as_given(given.z):
        thirds = F.conv1d(
            given.z.to(wide).transpose(0, 1),
            given.short_weight[:, None],
            given.short_bias,
            padding=SHORT - 1,
            groups=len(given.short_weight),
        )
        first, second, values = thirds[..., :length].chunk(3, dim=1)
        mixed = second * long(first * values, 0)
        if given.u is not None:
            mixed = mixed + long(given.u.to(wide).transpose(0, 1), 1)
    return mixed.transpose(0, 1).to(given.z.dtype).contiguous()


def _long(signal: Tensor, taps: Tensor, skip: Tensor) -> Tensor:
    """(B, C, S), (D, C, R), (C,) -> (B, C, S)."""
    reach = min(taps.shape[-1], signal.shape[-1])  # no position has more before or behind it
    taps = taps[..., :reach]
    behind, ahead = taps[0], taps[1] if taps.shape[0] == 2 else taps.new_zeros(taps.shape[1], 0)
    kernel = torch.cat((behind[:, 1:].flip(-1), behind[:, :1] + skip[:, None], ahead), dim=-1)  # lags R - 1 .. -R
    padded = F.pad(signal, (reach - 1, ahead.shape[-1]))
    return F.conv1d(padded, kernel[:, None], groups=kernel.shape[0])


def glu(given: Glu) -> Tensor:
    """-> (T, q m)."""
    tokens, pairs = given.x.shape[0], given.w_gate.shape[0]
    gates_in, values_in = given.x.unflatten(1, (2, pairs, -1)).unbind(1)
    gates = torch.einsum("tpi,poi->tpo", gates_in, given.w_gate)
    values = torch.einsum("tpi,poi->tpo", values_in, given.w_value)
    middle = (F.gelu(gates) * values).reshape(tokens, given.w_out.shape[0], given.w_out.shape[2])
    out = torch.einsum("tqn,qmn->tqm", middle, given.w_out).flatten(1)
    return out if given.bias is None else out + given.bias
