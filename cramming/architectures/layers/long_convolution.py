"""Gated convolutions as long as the sequence, channel by channel, in O(S log S).

Shape legend: C channels, B sequences, S positions, R taps of one direction, n points of a transform, F = n/2 + 1
frequencies, K = 1 or 2 long filters (that of the gated signal; that of the input beside it).

Monarch Mixer's sequence mixer (https://arxiv.org/abs/2310.12109, as in its BERT): with x1, x2 and v the three thirds of
a projection of the input u, each passed through a causal convolution of three taps,

    y = x2 * longconv(x1 * v) + longconv'(u)
    longconv(s)[t] = sum_{d >= 0} forward[d] s[t - d] + sum_{d >= 1} backward[d - 1] s[t + d] + skip s[t].

``direct`` writes that out; ``fft`` is what runs: real transforms, one pass over a few channels at a time while they lie
in a core's cache, nothing kept for backward but the projection and the input. ``plain_fft`` has the same transforms
and leaves backward to autograd, which can differentiate it again.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 3  # taps of the short convolution
# float32 values of a signal worked on at a time: see layers/cross_entropy.py.
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


def spectra_of(taps: Tensor, skip: Tensor, points: int) -> Tensor:
    """Transforms of filters laid around a circle: (K, 1 or 2, C, R), (K, C), n -> (K, C, F) complex.

    Lag d of the forward direction lies at d, lag -d, tap d - 1 of the backward one, at n - d.
    """
    sets, directions, channels, rows = taps.shape
    circle = taps.new_zeros(sets, channels, points)
    circle[..., :rows] = taps[:, 0]
    circle[..., 0] += skip
    if directions == 2:
        reach = min(rows, points // 2 - 1)
        circle[..., points - reach :] = taps[:, 1, :, :reach].flip(-1)
    return torch.fft.rfft(circle)


class Signals(NamedTuple):
    """What is convolved.

    Attributes:
        projected: (3C, B, S), the channels of x1, of x2, of v.
        residual: u, (C, B, S), for the second filter; None: there is none.
        mask: (B, S), true where a token is; others do not exist for the long convolutions. None: all are tokens.
    """

    projected: Tensor
    residual: Tensor | None
    mask: Tensor | None


Short = tuple[Tensor, Tensor]  # the short convolution's weight (3C, 1, 3) and bias (3C,)


def direct(signals: Signals, short: Short, taps: Tensor, skip: Tensor) -> Tensor:
    """The definition, in O(S^2) and by autograd: -> (C, B, S).

    Args:
        signals: see there.
        short: see there.
        taps: (K, 1 or 2, C, R): forward, and where there are two backward; lags beyond R have none.
        skip: (K, C).
    """
    return _written_out(signals, short, lambda signal, n: _direct_long(signal, taps[n], skip[n], signals.mask))


def plain_fft(signals: Signals, short: Short, spectra: Tensor) -> Tensor:
    """``fft`` by autograd: -> (C, B, S). ``spectra``: (K, C, F), as ``spectra_of`` gives."""
    points = 2 * (spectra.shape[-1] - 1)

    def long(signal: Tensor, number: int) -> Tensor:
        inside = signal if signals.mask is None else signal * signals.mask[:, None]
        return torch.fft.irfft(torch.fft.rfft(inside, points) * spectra[number], points)[..., : signal.shape[-1]]

    return _written_out(signals, short, long)


def _written_out(signals: Signals, short: Short, long: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The whole of it around the long convolutions, (B, C, S) and which of them -> (B, C, S): -> (C, B, S)."""
    projected, residual, _ = signals
    length, wide = projected.shape[-1], torch.promote_types(projected.dtype, torch.float32)
    weight, bias = (part.to(wide) for part in short)
    thirds = F.conv1d(projected.to(wide).transpose(0, 1), weight, bias, padding=SHORT - 1, groups=weight.shape[0])
    first, second, values = thirds[..., :length].chunk(3, dim=1)
    mixed = second * long(first * values, 0)
    if residual is not None:
        mixed = mixed + long(residual.to(wide).transpose(0, 1), 1)
    return mixed.transpose(0, 1).to(projected.dtype)


def _direct_long(signal: Tensor, taps: Tensor, skip: Tensor, mask: Tensor | None) -> Tensor:
    """(B, C, S), (1 or 2, C, R), (C,), (B, S) -> (B, C, S)."""
    rows = taps.shape[-1]
    signal = signal if mask is None else signal * mask[:, None]
    behind, ahead = taps[0], taps[1] if taps.shape[0] == 2 else taps.new_zeros(taps.shape[1], 0)
    kernel = torch.cat((behind[:, 1:].flip(-1), behind[:, :1] + skip[:, None], ahead), dim=-1)  # lags R - 1 .. -R
    padded = F.pad(signal, (rows - 1, ahead.shape[-1]))
    return F.conv1d(padded, kernel[:, None], groups=kernel.shape[0])


def fft(signals: Signals, short: Short, spectra: Tensor) -> Tensor:
    """``direct`` by transforms: -> (C, B, S). ``spectra``: (K, C, F), as ``spectra_of`` gives."""
    mixed: Tensor = _Gated.apply(*signals, *short, spectra)  # type: ignore[no-untyped-call]
    return mixed


class _Gated(torch.autograd.Function):
    """Everything between the two projections, worked out again in backward, where transforms are cheap."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> Tensor:
        """``Signals``, ``Short``, (K, C, F) -> (C, B, S)."""
        ctx.save_for_backward(*given)
        work = _Work(*given)
        residual = work.signals.residual
        mixed = work.signals.projected.new_empty(work.shape)
        for part in work.parts():
            _, (first, second, values) = work.short(part)
            y = work.back(work.there(first, values).mul_(work.of(0, part))).mul_(second)
            if residual is not None:
                y += work.back(work.there(residual[part]).mul_(work.of(1, part)))
            mixed[part] = y
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(C, B, S) -> gradients of what ``forward`` was given."""
        given = ctx.saved_tensors
        work = _Work(*given)
        residual = work.signals.residual
        of_projected = torch.empty_like(work.signals.projected).unflatten(0, (3, -1))
        of_residual = None if residual is None else torch.empty_like(residual)
        of_weight, of_bias = (torch.empty_like(part, dtype=work.wide) for part in (work.weight, work.bias))
        of_spectra = torch.empty_like(work.spectra)
        for part in work.parts():
            y = gradient[part].to(work.wide).contiguous()
            thirds, (first, second, values) = work.short(part)
            slopes = torch.empty_like(thirds)
            signal = work.there(first, values)
            torch.mul(y, work.back(signal * work.of(0, part)), out=slopes[1])
            incoming = work.there(y, second, masked=False)
            of_spectra[0, part] = work.correlated(signal, incoming)
            gated = work.back(incoming.mul_(work.of(0, part).conj()), masked=True)
            torch.mul(gated, values, out=slopes[0])
            torch.mul(gated, first, out=slopes[2])
            of_projected[:, part] = work.short_back(thirds, slopes, part, of_weight, of_bias)
            if residual is not None and of_residual is not None:
                incoming = work.there(y, masked=False)
                of_spectra[1, part] = work.correlated(work.there(residual[part]), incoming)
                of_residual[part] = work.back(incoming.mul_(work.of(1, part).conj()), masked=True)
        weight, bias = given[3:5]
        short = of_weight.view(weight.shape).to(weight.dtype), of_bias.view(bias.shape).to(bias.dtype)
        return of_projected.flatten(0, 1), of_residual, None, *short, of_spectra


class _Work:
    """The steps of ``_Gated`` on ``part``, a slice of a few channels c, at least in float32."""

    def __init__(self, *given: Tensor | None) -> None:
        self.signals = Signals(*given[:3])  # type: ignore[arg-type]
        projected, mask = self.signals.projected, self.signals.mask
        weight, bias, spectra = given[3:]
        assert weight is not None
        assert bias is not None
        assert spectra is not None
        self.wide = torch.promote_types(projected.dtype, torch.float32)
        self.projected = projected.unflatten(0, (3, -1))
        self.shape = self.projected.shape[1:]  # C, B, S
        self.weight = weight.to(self.wide).view(3, -1, SHORT)
        self.bias = bias.to(self.wide).view(3, -1)
        self.spectra = spectra
        self.mask = None if mask is None else mask.to(self.wide)
        self.points = 2 * (spectra.shape[-1] - 1)
        self.weights = inverse_weights(spectra, self.points)
        _, sequences, length = self.shape
        values = CHUNK_VALUES.get(projected.device.type, CHUNK_VALUES_ELSEWHERE)
        self.channels = min(self.shape[0], max(1, values // (sequences * length)))
        # What a signal is laid out in before its transform; its second part stays zero.
        self.padded = torch.zeros(self.channels, sequences, self.points, dtype=self.wide, device=projected.device)

    def parts(self) -> Iterator[slice]:
        for start in range(0, self.shape[0], self.channels):
            yield slice(start, min(start + self.channels, self.shape[0]))

    def of(self, number: int, part: slice) -> Tensor:
        """A filter's spectrum, (c, 1, F)."""
        return self.spectra[number, part, None]

    def short(self, part: slice) -> tuple[Tensor, Tensor]:
        """The projection before and after the short convolution, 2 x (3, c, B, S)."""
        before = self.projected[:, part].to(self.wide).contiguous()
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
        """Gradient of a filter's spectrum from a signal's and that of what comes back, which the first is used up for.

        2 x (c, B, F) -> (c, F): conj(signal) * other, summed over sequences.
        """
        return scaled(signal.conj_physical_().mul_(other).sum(1), self.weights)


def inverse_weights(spectrum: Tensor, points: int) -> Tensor:
    """How much of each frequency there is in a value of the inverse transform, a signal being real: -> (F,)."""
    weights = torch.full((spectrum.shape[-1],), 2.0 / points, dtype=spectrum.real.dtype, device=spectrum.device)
    weights[0] = weights[-1] = 1.0 / points
    return weights


def scaled(spectrum: Tensor, factors: Tensor) -> Tensor:
    """A spectrum times a real number for each frequency: (..., F) complex, (F,) -> (..., F)."""
    pairs = torch.view_as_real(spectrum).flatten(-2) * factors.repeat_interleave(2)  # side by side, which is fastest
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))
