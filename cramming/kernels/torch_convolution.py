"""``gated_long_conv`` by real transforms, on every device: a few channels at a time while they lie in a core's cache.

Shape legend: ``operands.py``; n points of a transform, F = n/2 + 1 frequencies, c channels of a part.

Nothing is kept for backward but what was given; transforms are cheap enough to work them out again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cramming.kernels.operands import Convolution, ConvolutionGradients
from cramming.kernels.reference import SHORT, written_out

# float32 values of a signal worked on at a time: see architectures/layers/cross_entropy.py.
CHUNK_VALUES = {"cpu": 1 << 18}
CHUNK_VALUES_ELSEWHERE = 1 << 26


def transform_size(length: int, taps: int) -> int:
    """n: points of the transforms for sequences of ``length`` positions and filters of ``taps`` a direction.

    A filter reaches ``taps`` positions either way and no position further than ``length - 1`` is met, so a circle of
    ``length + min(length - 1, taps)`` points or more keeps both ends of a sequence apart. A power of two: of the sizes
    that were measured on CPUs it needs the least time for a value, and few sizes mean few spectra to keep.
    """
    return int(max(2, 1 << (length + min(length - 1, taps) - 1).bit_length()))


def convolution_flops(length: int, taps: int) -> float:
    """Floating-point operations of one long convolution of one channel, the filter's spectrum being known.

    A real transform of n points is counted as 2.5 n log2 n, a complex product as 6.
    """
    points = transform_size(length, taps)
    return 2 * 2.5 * points * (points.bit_length() - 1) + 6 * (points // 2 + 1)


def points_of(given: Convolution) -> int:
    """n for these operands: both filters go through transforms of one size."""
    both = (taps for taps in (given.taps, given.taps_residual) if taps is not None)
    return transform_size(given.z.shape[-1], max(taps.shape[-1] for taps in both))


def spectra_of(given: Convolution, points: int) -> Tensor:
    """Transforms of the filters with their biases, laid around circles of n points: -> (K, C, F) complex."""
    circles = [circle_of(given.taps, given.bias, points)]
    if given.taps_residual is not None and given.bias_residual is not None:
        circles.append(circle_of(given.taps_residual, given.bias_residual, points))
    return torch.fft.rfft(torch.stack(circles))


def circle_of(taps: Tensor, bias: Tensor, points: int) -> Tensor:
    """(D, C, R), (C,) -> (C, n): lag d of the forward direction lies at d, lag -d, backward tap d - 1, at n - d."""
    rows = min(taps.shape[-1], points // 2)
    circle = taps.new_zeros(taps.shape[1], points)
    circle[:, :rows] = taps[0, :, :rows]
    circle[:, 0] += bias
    if taps.shape[0] == 2:
        reach = min(taps.shape[-1], points // 2 - 1)
        circle[:, points - reach :] = taps[1, :, :reach].flip(-1)
    return circle


def taps_back(circle: Tensor, taps: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Gradients of taps and bias from that of their circle: (C, n), (D, C, R) -> (D, C, R), (C,).

    Lags that no pair of positions has get zero, not the rounding of transforms: an optimizer that divides by the size
    of gradients would make steps of it.
    """
    found = torch.zeros_like(taps)
    rows = min(taps.shape[-1], length)
    found[0, :, :rows] = circle[:, :rows]
    if taps.shape[0] == 2:
        reach = min(taps.shape[-1], length - 1)
        found[1, :, :reach] = circle[:, circle.shape[-1] - reach :].flip(-1)
    return found, circle[:, 0].clone()


def composed(given: Convolution) -> Tensor:
    """By transforms and autograd, which can differentiate it again: -> (C, B, S)."""
    points = points_of(given)
    spectra = spectra_of(given, points)

    def long(signal: Tensor, number: int) -> Tensor:
        inside = signal if given.mask is None else signal * given.mask[:, None]
        return torch.fft.irfft(torch.fft.rfft(inside, points) * spectra[number], points)[..., : signal.shape[-1]]

    return written_out(given, long)


def convolution_lacks(given: Convolution) -> str | None:
    """Nothing: it takes everything."""
    return None


def convolve(given: Convolution) -> Tensor:
    """-> (C, B, S)."""
    work = _Work(given)
    mixed = given.z.new_empty(work.shape)
    for part in work.parts():
        _, (first, second, values) = work.short(part)
        y = work.back(work.there(first, values).mul_(work.of(0, part))).mul_(second)
        if given.u is not None:
            y += work.back(work.there(given.u[part]).mul_(work.of(1, part)))
        mixed[part] = y
    return mixed


def convolve_back(given: Convolution, gradient: Tensor) -> ConvolutionGradients:
    """(C, B, S) -> gradients of what ``convolve`` was given."""
    work, u = _Work(given), given.u
    of_z = torch.empty_like(given.z, memory_format=torch.contiguous_format).unflatten(0, (3, -1))
    of_u = None if u is None else torch.empty_like(u, memory_format=torch.contiguous_format)
    of_weight, of_bias = torch.empty_like(work.weight), torch.empty_like(work.bias)
    of_circles = work.spectra.real.new_empty(*work.spectra.shape[:2], work.points)
    for part in work.parts():
        y = gradient[part].to(work.wide).contiguous()
        thirds, (first, second, values) = work.short(part)
        slopes = torch.empty_like(thirds)
        signal = work.there(first, values)
        torch.mul(y, work.back(signal * work.of(0, part)), out=slopes[1])
        incoming = work.there(y, second, masked=False)
        of_circles[0, part] = work.correlated(signal, incoming)
        gated = work.back(incoming.mul_(work.of(0, part).conj()), masked=True)
        torch.mul(gated, values, out=slopes[0])
        torch.mul(gated, first, out=slopes[2])
        of_z[:, part] = work.short_back(thirds, slopes, part, of_weight, of_bias)
        if u is not None and of_u is not None:
            incoming = work.there(y, masked=False)
            of_circles[1, part] = work.correlated(work.there(u[part]), incoming)
            of_u[part] = work.back(incoming.mul_(work.of(1, part).conj()), masked=True)
    of_taps, of_skip = taps_back(of_circles[0], given.taps, work.shape[2])
    residual = (None, None)
    if given.taps_residual is not None:
        residual = taps_back(of_circles[1], given.taps_residual, work.shape[2])  # type: ignore[assignment]
    short = of_weight.view(given.short_weight.shape), of_bias.flatten()
    return ConvolutionGradients(of_z.flatten(0, 1), of_u, of_taps, residual[0], of_skip, residual[1], *short)


class _Work:
    """The steps of both passes on ``part``, a slice of a few channels c, in the wide type."""

    def __init__(self, given: Convolution) -> None:
        self.wide = given.taps.dtype
        self.z = given.z.unflatten(0, (3, -1))
        self.shape = self.z.shape[1:]  # C, B, S
        self.weight = given.short_weight.view(3, -1, SHORT)
        self.bias = given.short_bias.view(3, -1)
        self.points = points_of(given)
        if given.spectra is None:
            self.spectra = spectra_of(given, self.points)
        else:
            self.spectra = torch.view_as_complex(given.spectra)
        self.mask = None if given.mask is None else given.mask.to(self.wide)
        _, sequences, length = self.shape
        values = CHUNK_VALUES.get(given.z.device.type, CHUNK_VALUES_ELSEWHERE)
        self.channels = min(self.shape[0], max(1, values // max(1, sequences * length)))
        # What a signal is laid out in before its transform; its second part stays zero.
        self.padded = torch.zeros(self.channels, sequences, self.points, dtype=self.wide, device=given.z.device)

    def parts(self) -> Iterator[slice]:
        for start in range(0, self.shape[0], self.channels):
            yield slice(start, min(start + self.channels, self.shape[0]))

    def of(self, number: int, part: slice) -> Tensor:
        """A filter's spectrum, (c, 1, F)."""
        return self.spectra[number, part, None]

    def short(self, part: slice) -> tuple[Tensor, Tensor]:
        """z before and after the short convolution, 2 x (3, c, B, S)."""
        before = self.z[:, part].to(self.wide).contiguous()
        oldest, older, now = self.weight[:, part, None, None].unbind(-1)
        after = before * now
        after += self.bias[:, part, None, None]
        after[..., 1:].addcmul_(before[..., :-1], older)
        after[..., 2:].addcmul_(before[..., :-2], oldest)
        return before, after

    def short_back(self, before: Tensor, slopes: Tensor, part: slice, of_weight: Tensor, of_bias: Tensor) -> Tensor:
        """Gradient before the short convolution from that after it; those of its weight and bias are written."""
        oldest, older, now = self.weight[:, part, None, None].unbind(-1)
        for tap, lag in enumerate(range(SHORT - 1, -1, -1)):
            reached = before.shape[-1] - lag
            product = slopes[..., lag:] * before[..., : max(0, reached)]
            of_weight[:, part, tap] = product.sum((-2, -1))
        of_bias[:, part] = slopes.sum((-2, -1))
        through = slopes * now
        through[..., :-1].addcmul_(slopes[..., 1:], older)
        through[..., :-2].addcmul_(slopes[..., 2:], oldest)
        return through

    def there(self, signal: Tensor, gate: Tensor | None = None, masked: bool = True) -> Tensor:
        """Spectrum of a signal, or of its product with a gate, followed by zeros: (c, B, S) -> (c, B, F)."""
        padded = self.padded[: signal.shape[0]]
        inside = padded[..., : signal.shape[-1]]
        if gate is None:
            inside.copy_(signal)
        else:
            torch.mul(signal, gate, out=inside)
        if masked and self.mask is not None:
            inside *= self.mask
        return torch.fft.rfft(padded)

    def back(self, spectrum: Tensor, masked: bool = False) -> Tensor:
        """The signal of a spectrum: (c, B, F) -> (c, B, S)."""
        signal = torch.fft.irfft(spectrum, self.points)[..., : self.shape[-1]]
        return signal * self.mask if masked and self.mask is not None else signal

    def correlated(self, signal: Tensor, other: Tensor) -> Tensor:
        """Gradient of a filter's circle from a signal's spectrum, which is used up, and that of what comes back.

        2 x (c, B, F) -> (c, n): conj(signal) * other, summed over sequences, transformed back.
        """
        return torch.fft.irfft(signal.conj_physical_().mul_(other).sum(1), self.points)
