"""``gated_long_conv`` by real transforms, on every device: a few channels at a time while they lie in a core's cache.

Shape legend: ``operands.py``; n points of a transform, F = n/2 + 1 frequencies, c channels of a part.

Nothing is kept for backward but what was given; transforms are cheap enough to work them out again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cramming.kernels.operands import Convolution, ConvolutionGradients
from cramming.kernels.reference import SHORT, written_out
from cramming.kernels.types import as_given

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
    filters = (filter_of(given, number) for number in range(1 if given.u is None else 2))
    return torch.stack([torch.fft.rfft(circle_of(*one, points)) for one in filters])


def filter_of(given: Convolution, number: int) -> tuple[Tensor, Tensor]:
    """Taps and bias of a filter."""
    taps, bias = (given.taps_residual, given.bias_residual) if number else (given.taps, given.bias)
    assert taps is not None
    assert bias is not None
    return taps, bias


def circle_of(taps: Tensor, bias: Tensor, points: int, room: Tensor | None = None) -> Tensor:
    """(D, C, R), (C,) -> (C, n): lag d of the forward direction lies at d, lag -d, backward tap d - 1, at n - d.

    ``room``: one such circle, of the same D and R, to be written over; what lies between its taps is zero already.
    """
    rows = min(taps.shape[-1], points // 2)
    circle = taps.new_zeros(taps.shape[1], points) if room is None else room
    circle[:, :rows] = taps[0, :, :rows]
    circle[:, 0] += bias
    if taps.shape[0] == 2:
        reach = min(taps.shape[-1], points // 2 - 1)
        circle[:, points - reach :] = taps[1, :, :reach].flip(-1)
    return circle


def taps_back(circle: Tensor, length: int, of_taps: Tensor, of_bias: Tensor) -> None:
    """Write gradients of taps and bias, (D, C, R) and (C,), from that of their circle, (C, n).

    Lags that no pair of positions has get zero, not the rounding of transforms: an optimizer that divides by the size
    of gradients would make steps of it.
    """
    reach = min(of_taps.shape[-1], length)
    of_taps[0, :, :reach] = circle[:, :reach]
    of_taps[0, :, reach:] = 0
    if of_taps.shape[0] == 2:
        reach = min(of_taps.shape[-1], length - 1)
        of_taps[1, :, :reach] = circle[:, circle.shape[-1] - reach :].flip(-1)
        of_taps[1, :, reach:] = 0
    of_bias.copy_(circle[:, 0])


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
    with as_given(given.z):
        for part in work.parts():
            _, (first, second, values) = work.short(part)
            y = work.back(work.there(first, values).mul_(work.spectrum(0, part)))
            if given.u is None:
                torch.mul(y, second, out=mixed[part])
            else:
                beside = work.back(work.there(given.u[part]).mul_(work.spectrum(1, part)))
                torch.addcmul(beside, y, second, out=mixed[part])
    return mixed


def convolve_back(given: Convolution, gradient: Tensor) -> ConvolutionGradients:
    """(C, B, S) -> gradients of what ``convolve`` was given."""
    work, u = _Work(given), given.u
    of_z = torch.empty_like(given.z, memory_format=torch.contiguous_format).unflatten(0, (3, -1))
    of_u = None if u is None else torch.empty_like(u, memory_format=torch.contiguous_format)
    of_weight, of_bias = torch.empty_like(work.weight), torch.empty_like(work.bias)
    of_taps, of_skip = torch.empty_like(given.taps), torch.empty_like(given.bias)
    of_taps_residual, of_skip_residual = (
        None if part is None else torch.empty_like(part) for part in (given.taps_residual, given.bias_residual)
    )
    with as_given(given.z):
        for part in work.parts():
            y = gradient[part].to(work.wide)
            before, (first, second, values) = work.short(part)
            slopes = work.slopes(part)
            filters = work.spectrum(0, part)
            signal = work.there(first, values)
            torch.mul(y, work.back(signal * filters), out=slopes[1])
            incoming = work.there(y, second, masked=False)
            circle = work.correlated(signal, incoming)
            taps_back(circle, work.shape[2], of_taps[:, part], of_skip[part])
            gated = work.back(incoming.mul_(filters.conj_physical_()), masked=True)
            torch.mul(gated, values, out=slopes[0])
            torch.mul(gated, first, out=slopes[2])
            work.short_back(before, slopes, part, (of_z[:, part], of_weight[:, part], of_bias[:, part]))
            if u is not None and of_u is not None and of_taps_residual is not None and of_skip_residual is not None:
                incoming = work.there(y, masked=False)
                circle = work.correlated(work.there(u[part]), incoming)
                taps_back(circle, work.shape[2], of_taps_residual[:, part], of_skip_residual[part])
                of_u[part] = work.back(incoming.mul_(work.spectrum(1, part).conj_physical_()), masked=True)
    short = of_weight.view(given.short_weight.shape), of_bias.flatten()
    return ConvolutionGradients(of_z.flatten(0, 1), of_u, of_taps, of_taps_residual, of_skip, of_skip_residual, *short)


class _Work:
    """The steps of both passes on ``part``, a slice of a few channels c, in the wide type."""

    def __init__(self, given: Convolution) -> None:
        self.given, self.wide = given, given.taps.dtype
        self.z = given.z.unflatten(0, (3, -1))
        self.shape = self.z.shape[1:]  # C, B, S
        self.weight = given.short_weight.view(3, -1, SHORT)
        self.bias = given.short_bias.view(3, -1)
        self.points = points_of(given)
        self.mask = None if given.mask is None else given.mask.to(self.wide)
        channels, sequences, length = self.shape
        values = CHUNK_VALUES.get(given.z.device.type, CHUNK_VALUES_ELSEWHERE)
        self.channels = min(channels, max(1, values // (sequences * length)))
        # What a signal is laid out in before its transform; its second part stays zero.
        self.padded = torch.zeros(self.channels, sequences, self.points, dtype=self.wide, device=given.z.device)
        self._circles: dict[int, Tensor] = {}
        self._thirds = self.padded.new_empty(2, 3, self.channels, sequences, length)

    def parts(self) -> Iterator[slice]:
        for start in range(0, self.shape[0], self.channels):
            yield slice(start, min(start + self.channels, self.shape[0]))

    def spectrum(self, number: int, part: slice) -> Tensor:
        """A filter's, (c, 1, F), to be written over."""
        if self.given.spectra is not None:
            return torch.view_as_complex(self.given.spectra[number, part])[:, None].clone()
        taps, bias = filter_of(self.given, number)
        if number not in self._circles:
            self._circles[number] = taps.new_zeros(self.channels, self.points)
        room = self._circles[number][: part.stop - part.start]
        return torch.fft.rfft(circle_of(taps[:, part], bias[part], self.points, room))[:, None]

    def slopes(self, part: slice) -> Tensor:
        """Room for gradients of the three thirds, (3, c, B, S)."""
        return self._thirds[1, :, : part.stop - part.start]

    def short(self, part: slice) -> tuple[Tensor, Tensor]:
        """z before and after the short convolution, 2 x (3, c, B, S)."""
        before = self.z[:, part].to(self.wide)
        oldest, older, now = self.weight[:, part, None, None].unbind(-1)
        after = torch.mul(before, now, out=self._thirds[0, :, : part.stop - part.start])
        after += self.bias[:, part, None, None]
        after[..., 1:].addcmul_(before[..., :-1], older)
        after[..., 2:].addcmul_(before[..., :-2], oldest)
        return before, after

    def short_back(self, before: Tensor, slopes: Tensor, part: slice, found: tuple[Tensor, Tensor, Tensor]) -> None:
        """Write gradients of z, of the short convolution's weight and of its bias, from those of what it gave."""
        of_z, of_weight, of_bias = found
        oldest, older, now = self.weight[:, part, None, None].unbind(-1)
        for tap, lag in enumerate(range(SHORT - 1, -1, -1)):
            reached = max(0, before.shape[-1] - lag)
            of_weight[..., tap] = (slopes[..., lag:] * before[..., :reached]).sum((-2, -1))
        of_bias.copy_(slopes.sum((-2, -1)))
        through = of_z if of_z.dtype == self.wide else self._thirds[0, :, : part.stop - part.start]
        torch.mul(slopes, now, out=through)
        through[..., :-1].addcmul_(slopes[..., 1:], older)
        through[..., :-2].addcmul_(slopes[..., 2:], oldest)
        if through is not of_z:
            of_z.copy_(through)

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
        product = signal.conj_physical_().mul_(other)
        return torch.fft.irfft(product.sum(1) if product.shape[1] > 1 else product[:, 0], self.points)
