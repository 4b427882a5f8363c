"""``gated_long_conv`` by Toeplitz products in Triton: for short lengths on a GPU, right at every length, no build step.

Shape legend: ``operands.py``; the kernels are in ``triton_convolution_kernels.py`` and ``triton_convolution_sums.py``.

Operations grow with S^2, so beyond 500 or 1,000 positions transforms are faster. Where memory is the limit, a position
and channel of 16 bits cost, of the 10 bytes that are needed forward, 10 up to ``FUSED`` positions and 14 beyond; of the
20 that are needed backward, 28 up to ``WHOLE`` (``slopes`` 20, ``lag_products`` 8) and 40 beyond (``gate`` 12 as well).

In 16 bits what enters a product is rounded to them once: taps, the gated signal x1 v, and backward the gradient times
x2, which must stay within what float16 holds. Nothing is kept for backward but what was given.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cramming.kernels import triton_convolution_kernels as kernels
from cramming.kernels import triton_convolution_sums as sums
from cramming.kernels.operands import Convolution, ConvolutionGradients
from cramming.kernels.triton_products import no_device

LEAST = 16  # sides of the smallest tile of a product
WHOLE = 128  # positions up to which, in 16 bits, a program takes whole sequences, in one product
# Positions up to which, in 16 bits, every tile of outputs works its gated signal out again rather than read it.
FUSED = 512
PROGRAMS = 1024  # what lag_products is split into where channels are few: about four rounds of the largest GPUs


class Tiles(NamedTuple):
    """How a program is cut: sequences, positions of its outputs, positions of a sum at a time; warps and stages."""

    rows: int
    positions: int
    depth: int
    warps: int
    stages: int


def mix_tiles(dtype: torch.dtype, sequences: int, length: int) -> Tiles:
    """Tiles of ``mix``.

    float32 has no tensor cores: a thread multiplies operands that it holds whole, so sums are taken in short parts.
    """
    if dtype == torch.float32:
        return Tiles(_up_to(32, sequences), _up_to(64, length), LEAST, 4, 2)
    if length <= WHOLE:
        return Tiles(_up_to(32, sequences), _up_to(WHOLE, length), _up_to(WHOLE, length), 4, 2)
    if length <= FUSED:
        return Tiles(_up_to(32, sequences), 256, 64, 8, 2)
    return Tiles(_up_to(64, sequences), 128, 64, 8, 3)


def slopes_tiles(dtype: torch.dtype, sequences: int, length: int) -> Tiles:
    """Tiles of ``slopes``, which holds several tiles of float32 at once.

    Where rows are not aligned each element is loaded by itself, and addresses take registers: more threads share them.
    """
    if dtype == torch.float32:
        return Tiles(LEAST, _up_to(64, length), LEAST, 4, 2)
    if length <= WHOLE:
        warps = 8 if length % LEAST else 4
        return Tiles(_up_to(32, sequences), _up_to(WHOLE, length), _up_to(WHOLE, length), warps, 2)
    return Tiles(_up_to(32, sequences), 128, 64, 8, 2)


def lag_tiles(dtype: torch.dtype, length: int) -> Tiles:
    """Tiles of ``lag_products``: ``positions`` is the side of its product, ``depth`` what it sums at a time."""
    if dtype == torch.float32:
        return Tiles(0, _up_to(64, length), LEAST, 4, 2)
    return Tiles(0, _up_to(128, length), 32, 8, 2)


def convolution_lacks(given: Convolution) -> str | None:
    """Why this cannot be done here, or None."""
    if given.z.dtype == torch.float64:
        return "float64 has no place in its products, which sum in float32"
    return no_device(given.z.device)


def convolve(given: Convolution) -> Tensor:
    """-> (C, B, S)."""
    work = _Work(given)
    tiles = mix_tiles(given.z.dtype, work.sequences, work.length)
    out = torch.empty_like(work.z[: work.channels])
    with torch.cuda.device_of(out):
        lags = work.lags(tiles, tiles.positions)
        gated = given.z.dtype == torch.float32 or work.length > FUSED
        signal = torch.empty_like(out) if gated else out
        if gated:
            work.gate(signal)
        positions, sequences = triton.cdiv(work.length, tiles.positions), triton.cdiv(work.sequences, tiles.rows)
        work.launch(
            kernels.mix,
            work.channels * positions * sequences,
            tiles,
            (work.z, work.u, signal, work.mask, lags.main, lags.residual, *work.skips, *work.short, out),
            (*work.shape, positions, sequences, lags.width, lags.origin, *work.reaches),
            WHOLE=work.whole(tiles),
            GATED=gated,
            RESIDUAL=work.residual,
            MASKED=work.masked,
            ROWS=tiles.rows,
            POSITIONS=tiles.positions,
            DEPTH=tiles.depth,
        )
    return out


def convolve_back(given: Convolution, gradient: Tensor) -> ConvolutionGradients:
    """(C, B, S) -> gradients of what ``convolve`` was given."""
    work = _Work(given)
    gradient = gradient.to(given.z.dtype).contiguous()
    tiles = slopes_tiles(given.z.dtype, work.sequences, work.length)
    of_z, of_weight, of_bias, of_skip = (torch.empty_like(part) for part in (work.z, *work.short, work.skips[0]))
    of_u = torch.empty_like(work.u) if work.residual else None
    with torch.cuda.device_of(of_z):
        whole = work.whole(tiles)
        signal, incoming = torch.empty_like(gradient), torch.empty_like(gradient)
        if not whole:
            work.gate(signal, (gradient, incoming))
        # The short convolution's transpose needs two positions of the next tile: tiles overlap by what stays aligned.
        step = tiles.positions if work.length <= tiles.positions else tiles.positions - LEAST
        positions, sequences = triton.cdiv(work.length, step), triton.cdiv(work.sequences, tiles.rows)
        programs = positions * sequences
        partial = torch.empty(work.channels, programs, kernels.SUMS.value, device=of_z.device)
        lags, flipped = work.lags(tiles, step), work.lags(tiles, step, flipped=True)
        work.launch(
            kernels.slopes,
            work.channels * programs,
            tiles,
            (work.z, gradient, signal, incoming, work.mask, lags.main, flipped.main, flipped.residual),
            (*work.skips, *work.short, of_z, of_z if of_u is None else of_u, partial),
            (*work.shape, positions, sequences, lags.width, lags.origin, *work.reaches),
            WHOLE=whole,
            RESIDUAL=work.residual,
            MASKED=work.masked,
            ROWS=tiles.rows,
            POSITIONS=tiles.positions,
            STEP=step,
            DEPTH=tiles.depth,
        )
        sums.sum_short[(work.channels,)](
            partial, of_weight, of_bias, of_skip, work.channels, programs, ROWS=16, BLOCK=16, num_warps=1
        )
        of_taps = work.taps_back(given.taps, signal, incoming, masked=False)
        if given.taps_residual is None:
            return ConvolutionGradients(of_z, None, of_taps, None, of_skip, None, of_weight, of_bias)
        of_residual = work.taps_back(given.taps_residual, work.u, gradient, masked=work.masked)
        # The skip is another tap at lag 0, and here nothing was rounded before the products.
        of_skips = of_skip, of_residual[0, :, 0].clone()
    return ConvolutionGradients(of_z, of_u, of_taps, of_residual, *of_skips, of_weight, of_bias)


class _Lags(NamedTuple):
    """Filters laid out for a kernel: (C, copies, width); lag i - origin - k of copy k is at i."""

    main: Tensor
    residual: Tensor
    width: int
    origin: int


class _Work:
    """The steps of both passes; what was not given is stood in for by z, which the kernels then leave alone."""

    def __init__(self, given: Convolution) -> None:
        self.z = given.z.contiguous()
        self.residual, self.masked = given.u is not None, given.mask is not None
        self.u = self.z if given.u is None else given.u.contiguous()
        self.mask = self.z if given.mask is None else given.mask.contiguous().view(torch.uint8)
        self.shape = (self.z.shape[0] // 3, *self.z.shape[1:])
        self.channels, self.sequences, self.length = self.shape
        self.short = given.short_weight.contiguous(), given.short_bias.contiguous()
        self.taps = [given.taps.contiguous()]
        skips = [given.bias.contiguous()]
        if given.taps_residual is not None and given.bias_residual is not None:
            self.taps.append(given.taps_residual.contiguous())
            skips.append(given.bias_residual.contiguous())
        self.skips = skips[0], skips[-1]
        both = self.taps[0], self.taps[-1]
        self.reaches = tuple(
            reach for taps in both for reach in (taps.shape[2] - 1, (taps.shape[0] - 1) * taps.shape[2])
        )

    def launch(
        self, kernel: Any, programs: int, tiles: Tiles, *operands: tuple[Tensor | int, ...], **fixed: int | bool
    ) -> None:
        """Run a kernel of ``tiles`` on the current device's current stream."""
        given = [part for some in operands for part in some]
        kernel[(programs,)](*given, **fixed, num_warps=tiles.warps, num_stages=tiles.stages)

    def lags(self, tiles: Tiles, step: int, flipped: bool = False) -> _Lags:
        """Both filters for programs that stand ``step`` apart, in z's type."""
        origin = _to(self.length, tiles.depth)
        width = origin + (triton.cdiv(self.length, step) - 1) * step + tiles.positions
        made = []
        for taps in self.taps:
            lags = self.z.new_empty(self.channels, kernels.COPIES.value, width)
            block = min(1024, triton.next_power_of_2(width))
            kernels.lay_out_taps[self.channels, kernels.COPIES.value, triton.cdiv(width, block)](
                taps, lags, self.channels, taps.shape[2], taps.shape[0], width, origin, FLIPPED=flipped, BLOCK=block
            )
            made.append(lags)
        return _Lags(made[0], made[-1], width, origin)

    def whole(self, tiles: Tiles) -> bool:
        """Whether a program takes whole sequences, in one product."""
        return self.length <= tiles.positions == tiles.depth

    def gate(self, signal: Tensor, back: tuple[Tensor, Tensor] | None = None) -> None:
        """Write s, and from the first of ``back``, the gradient, its product with x2 into the second: (C, B, S)."""
        tiles = Tiles(min(16, triton.next_power_of_2(self.sequences)), _up_to(128, self.length), 0, 4, 1)
        gradient, incoming = back or (signal, signal)
        positions, sequences = triton.cdiv(self.length, tiles.positions), triton.cdiv(self.sequences, tiles.rows)
        self.launch(
            kernels.gate,
            self.channels * positions * sequences,
            tiles,
            (self.z, gradient, self.mask, *self.short, signal, incoming),
            (*self.shape, positions, sequences),
            BACK=back is not None,
            MASKED=self.masked,
            ROWS=tiles.rows,
            POSITIONS=tiles.positions,
        )

    def taps_back(self, taps: Tensor, signal: Tensor, incoming: Tensor, masked: bool) -> Tensor:
        """The gradient of taps (D, C, R) from what they were applied to and what comes back."""
        tiles = lag_tiles(signal.dtype, self.length)
        directions, _, rows = taps.shape
        block = tiles.positions
        blocks = triton.cdiv(self.length, block)
        reach = min(blocks - 1, triton.cdiv(rows, block))
        distances = 2 * reach + 1
        pairs = self.sequences * blocks  # of distance 0, which has most
        splits = min(triton.cdiv(PROGRAMS, self.channels * distances), triton.cdiv(pairs, 4 * tiles.depth))
        share = _to(triton.cdiv(pairs, splits), tiles.depth)
        parts = torch.empty(splits, self.channels, distances, 2, block, device=signal.device)
        self.launch(
            sums.lag_products,
            distances * self.channels * splits,
            tiles,
            (signal, incoming, self.mask, parts),
            (*self.shape, blocks, reach, splits, share),
            MASKED=masked,
            BLOCK=block,
            DEPTH=tiles.depth,
        )
        of_taps = torch.empty_like(taps, memory_format=torch.contiguous_format)
        sums.sum_lags[self.channels, directions, triton.cdiv(rows, block)](
            parts, of_taps, self.channels, rows, directions, self.length, reach, splits, BLOCK=block
        )
        return of_taps


def _up_to(most: int, size: int) -> int:
    """The side of a tile for ``size``: a power of two, ``LEAST`` to ``most``."""
    return max(LEAST, min(most, triton.next_power_of_2(size)))


def _to(size: int, multiple: int) -> int:
    """``size`` rounded up."""
    return triton.cdiv(size, multiple) * multiple
