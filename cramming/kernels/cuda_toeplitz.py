"""``gated_long_conv`` of 16-bit signals by the compiled Toeplitz kernels, for short sequences.

Sums are float32, and so are lag 0 and all products but those of the long convolutions' other lags, whose signals and
taps are rounded to 16 bits for the matrix units. What is kept for the backward pass is what was given.
``csrc/toeplitz.h`` says how the kernels work.

Shape legend: ``operands.py``; N thread blocks that share a channel's sequences, P the lesser of R and S.
"""

import torch
from torch import Tensor

from cramming.kernels import cuda
from cramming.kernels.operands import Convolution, ConvolutionGradients

LONGEST = 1024  # positions
DTYPES = (torch.bfloat16, torch.float16)
_TILE_SEQUENCES, _TILE_POSITIONS, _LEAST_TILES = 16, 128, 4  # as in csrc/toeplitz.h


def convolution_lacks(given: Convolution) -> str | None:
    """Why these kernels cannot do this; whether they are there at all is not asked here."""
    channels, sequences, length = given.z.shape
    if given.z.dtype not in DTYPES:
        return f"Toeplitz kernels are for bfloat16 and float16, not {str(given.z.dtype).removeprefix('torch.')}"
    if length > LONGEST:
        return f"Toeplitz kernels are for at most {LONGEST} positions, not {length}"
    if max(3 * channels, (sequences + 64) * length, channels * splits_of(given.z)) >= 2**31:
        return f"Toeplitz kernels count in 32 bits: {channels // 3} channels of {sequences} sequences are too many"
    return None


def splits_of(z: Tensor) -> int:
    """N: how many thread blocks share a channel's sequences."""
    tiles = -(-z.shape[2] // _TILE_POSITIONS)
    return -(-z.shape[1] // (_TILE_SEQUENCES * max(1, _LEAST_TILES // tiles)))


def convolve(given: Convolution) -> Tensor:
    """-> (C, B, S)."""
    given = _contiguous(given)
    mixed = given.z.new_empty(given.z.shape[0] // 3, *given.z.shape[1:])
    cuda.ops().toeplitz_forward(*given[:9], mixed)
    return mixed


def convolve_back(given: Convolution, gradient: Tensor) -> ConvolutionGradients:
    """(C, B, S) -> gradients of what ``convolve`` was given."""
    given, gradient, ops = _contiguous(given), gradient.contiguous(), cuda.ops()
    z, u, splits = given.z, given.u, splits_of(given.z)
    of_z, of_taps = torch.empty_like(z), _parts(given.taps, splits, z)
    of_short = z.new_empty(splits, z.shape[0], 4, dtype=torch.float32)  # weight and bias
    shared = given.short_weight, given.short_bias, given.mask
    ops.toeplitz_backward(z, gradient, given.taps, given.bias, *shared, of_z, of_taps, of_short)
    taps, bias = _whole(of_taps, given.taps)
    of_u = taps_residual = bias_residual = None
    if u is not None and given.taps_residual is not None:
        of_u, of_taps = torch.empty_like(u), _parts(given.taps_residual, splits, z)
        ops.toeplitz_backward_residual(
            u, gradient, given.taps_residual, given.bias_residual, given.mask, of_u, of_taps
        )  # fmt: skip
        taps_residual, bias_residual = _whole(of_taps, given.taps_residual)
    short = of_short.sum(0)
    weight, short_bias = short[:, :3].contiguous(), short[:, 3].contiguous()
    return ConvolutionGradients(of_z, of_u, taps, taps_residual, bias, bias_residual, weight, short_bias)


def _contiguous(given: Convolution) -> Convolution:
    return Convolution(*(None if part is None else part.contiguous() for part in given))  # type: ignore[arg-type]


def _parts(taps: Tensor, splits: int, z: Tensor) -> Tensor:
    """Where slopes of taps go before they are summed over thread blocks: (N, D, C, P)."""
    directions, channels, count = taps.shape
    return taps.new_empty(splits, directions, channels, min(count, z.shape[2]))


def _whole(parts: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of taps (D, C, R), zero for lags that no pair of positions has, and of the bias (C,), which is lag 0's."""
    kept = parts.sum(0)
    if kept.shape != taps.shape:
        whole = torch.zeros_like(taps)
        whole[..., : kept.shape[-1]] = kept
        kept = whole
    return kept, kept[0, :, 0].clone()
