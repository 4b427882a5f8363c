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

# Values of a signal worked on at a time. On a CPU with 2 MB of second-level cache half as many and twice as many were
# no faster on the whole, a quarter slower: calls have a cost of their own, and transforms slow down beyond the cache.
# Tried there and not worth it: products with Toeplitz or Fourier matrices at 128 positions (as long, or three times as
# long), two real sequences in a complex transform (a tenth less at 128 positions, nothing from 2,048), torch's own
# convolution for the short one (twice as long), results of transforms in given memory (no gain).
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


def filter_of(given: Convolution | ConvolutionGradients, number: int) -> tuple[Tensor, Tensor]:
    """Taps and bias of a filter, or their gradients."""
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
            _mix(work, part, mixed[part])
    return mixed


def _mix(work: "_Work", part: slice, mixed: Tensor) -> None:
    """Write some channels. A function, so that nothing of them is held while the next ones look for room in cache."""
    _, (first, second, values) = work.short(part)
    y = work.back(work.there(first, values).mul_(work.spectrum(0, part)))
    if work.given.u is None:
        torch.mul(y, second, out=mixed)
    else:
        beside = work.back(work.there(work.given.u[part]).mul_(work.spectrum(1, part)))
        torch.addcmul(beside, y, second, out=mixed)


def convolve_back(given: Convolution, gradient: Tensor) -> ConvolutionGradients:
    """(C, B, S) -> gradients of what ``convolve`` was given."""
    work = _Work(given)
    found = ConvolutionGradients(
        *(None if part is None else torch.empty_like(part, memory_format=torch.contiguous_format) for part in given[:8])  # type: ignore[arg-type]
    )
    with as_given(given.z):
        for part in work.parts():
            y = gradient[part].to(work.wide)
            _main_back(work, part, y, found)
            if given.u is not None:
                _residual_back(work, part, y, found)
    return found


def _main_back(work: "_Work", part: slice, y: Tensor, found: ConvolutionGradients) -> None:
    """Write the gradients of all that the gated signal passes: y is that of the output."""
    before, (first, second, values) = work.short(part)
    slopes = work.slopes(part)
    signal = work.there(first, values)
    filters = work.spectrum(0, part)
    torch.mul(y, work.back(signal * filters), out=slopes[1])
    incoming = work.there(y, second, masked=False)
    work.taps_back(0, part, signal, incoming, found)
    del signal
    gated = work.signal_back(incoming, filters)
    torch.mul(gated, values, out=slopes[0])
    torch.mul(gated, first, out=slopes[2])
    del gated, incoming, filters
    work.short_back(before, slopes, part, found)


def _residual_back(work: "_Work", part: slice, y: Tensor, found: ConvolutionGradients) -> None:
    """Write the gradients of all that u passes."""
    assert work.given.u is not None
    assert found.u is not None
    incoming = work.there(y, masked=False)
    work.taps_back(1, part, work.there(work.given.u[part]), incoming, found)
    found.u[part] = work.signal_back(incoming, work.spectrum(1, part))


class _Work:
    """The steps of both passes on ``part``, a slice of a few channels c, in the wide type."""

    def __init__(self, given: Convolution) -> None:
        self.given, self.wide = given, given.taps.dtype
        self.z = given.z.unflatten(0, (3, -1))
        self.shape = self.z.shape[1:]  # C, B, S
        self.weight = given.short_weight.view(3, -1, SHORT)
        self.bias = given.short_bias.view(3, -1)
        self.points = points_of(given)
        spectra, expected = given.spectra, (1 if given.u is None else 2, self.shape[0], self.points // 2 + 1, 2)
        if spectra is not None and tuple(spectra.shape) != expected:
            raise ValueError(
                f"spectra has the shape {tuple(spectra.shape)}: beside z {tuple(given.z.shape)} and taps "
                f"{tuple(given.taps.shape)} it must be {expected}"
            )
        self.mask = None if given.mask is None else given.mask.to(self.wide)
        channels, sequences, length = self.shape
        values = CHUNK_VALUES.get(given.z.device.type, CHUNK_VALUES_ELSEWHERE)
        self.channels = min(channels, max(1, values // (sequences * length)))
        # What a signal is laid out in before its transform; its second part stays zero.
        self.padded = torch.zeros(self.channels, sequences, self.points, dtype=self.wide, device=given.z.device)
        self._circles: dict[tuple[int, int], Tensor] = {}
        self._thirds = self.padded.new_empty(2, 3, self.channels, sequences, length)

    def parts(self) -> Iterator[slice]:
        for start in range(0, self.shape[0], self.channels):
            yield slice(start, min(start + self.channels, self.shape[0]))

    def spectrum(self, number: int, part: slice) -> Tensor:
        """A filter's, (c, 1, F)."""
        if self.given.spectra is not None:
            return torch.view_as_complex(self.given.spectra[number, part])[:, None]
        taps, bias = filter_of(self.given, number)
        kind = taps.shape[0], taps.shape[2]
        if kind not in self._circles:
            self._circles[kind] = taps.new_zeros(self.channels, self.points)
        room = self._circles[kind][: part.stop - part.start]
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

    def short_back(self, before: Tensor, slopes: Tensor, part: slice, found: ConvolutionGradients) -> None:
        """Write gradients of z, of the short convolution's weight and of its bias, from those of what it gave."""
        of_z = found.z.unflatten(0, (3, -1))[:, part]
        of_weight = found.short_weight.unflatten(0, (3, -1))[:, part]
        for tap, lag in enumerate(range(SHORT - 1, -1, -1)):
            reached = max(0, before.shape[-1] - lag)
            of_weight[..., tap] = (slopes[..., lag:] * before[..., :reached]).sum((-2, -1))
        found.short_bias.unflatten(0, (3, -1))[:, part] = slopes.sum((-2, -1))
        oldest, older, now = self.weight[:, part, None, None].unbind(-1)
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

    def back(self, spectrum: Tensor) -> Tensor:
        """The signal of a spectrum: (c, B, F) -> (c, B, S)."""
        return torch.fft.irfft(spectrum, self.points)[..., : self.shape[-1]]

    def signal_back(self, incoming: Tensor, filters: Tensor) -> Tensor:
        """Gradient of a filter's signal from the spectrum of that of its result, (c, B, F), used up: -> (c, B, S)."""
        signal = self.back(incoming.mul_(filters.conj_physical()))
        return signal if self.mask is None else signal.mul_(self.mask)

    def taps_back(
        self, number: int, part: slice, signal: Tensor, incoming: Tensor, found: ConvolutionGradients
    ) -> None:
        """Write gradients of a filter's taps and bias from a signal's spectrum, which is used up, and what came back.

        That of its circle is conj(signal) * incoming, 2 x (c, B, F), summed over sequences.
        """
        product = signal.conj_physical_().mul_(incoming)
        circle = torch.fft.irfft(product.sum(1) if product.shape[1] > 1 else product[:, 0], self.points)
        of_taps, of_bias = filter_of(found, number)
        taps_back(circle, self.shape[2], of_taps[:, part], of_bias[part])
