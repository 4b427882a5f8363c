"""Filters of long convolutions that a small network generates, worked out once for each state of its weights.

Shape legend: K filters, D directions (1 forward, or 2: and backward), C channels, L length of the filters, R of their
taps that are in use, E features of a position, O width of the network, n points of a transform, F = n/2 + 1.

As in Hyena (https://arxiv.org/abs/2302.10866, section 3.3) and M2-BERT, tap j of a channel is a function of its place:

    t = j / (L - 1),  w = 2 pi j / L,  features = [t, cos(f_b w) ..., -sin(f_b w) ...],  f_b from 1e-4 to bands - 1
    tap = (W3 sin(g a2)) exp(-t |delta|),  a_i = W_i sin(g a_{i-1}) + b_i,  a_0 = W_0 features + b_0

with learned features and frequencies g that both directions of a filter share, matrices of each direction's own, and a
fixed decay delta from ln(0.01)/1.5 at the first channel to ln(0.01)/0.3 at the last.

The network sees no token, so that within one step of the optimizer every microbatch meets the same filters: their
spectra and the network's hidden values are kept, and a microbatch's backward starts from those. It knows that they are
stale from the versions of the weights, from any optimizer having taken a step (fused ones raise no version) and, on a
CPU, where looking is cheap next to a pass, from the values themselves, whoever changed them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from cramming.architectures.layers.axes import FIXED, POSITIONS, Axes, Axis
from cramming.architectures.layers.long_convolution import inverse_weights, scaled, spectra_of

HIDDEN_LAYERS = 3  # of the network
FASTEST_DECAY, SLOWEST_DECAY, TARGET = 0.3, 1.5, 1e-2  # a channel has decayed to the target at this share of L
KEPT_SIZES = 4  # spectra of so many transform sizes; they are powers of two, so all take less than twice the largest


class _Steps:
    """How many steps optimizers of this process have taken."""

    taken = 0

    @classmethod
    def count(cls, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_Steps.count)


class GeneratedFilters(nn.Module):
    """K filters, each with a skip: what a signal is multiplied with besides. At least float32 whatever the model is.

    sin(10 x), where the frequencies start, magnifies rounding, and the filters are a small part of a pass.

    Args:
        channels: C.
        length: L; lags from L on have no tap: the tokens that far away are not seen, whatever the sequence's length.
        filters: K.
        bidirectional: D is 2.
        width: O.
        features: E, odd.
        frequency: of the sines, to begin with.
    """

    places: Tensor
    decay: Tensor

    def __init__(
        self,
        channels: int,
        length: int,
        *,
        filters: int = 1,
        bidirectional: bool = True,
        width: int = 128,
        features: int = 5,
        frequency: float = 10.0,
    ) -> None:
        super().__init__()
        self.channels, self.length, self.start = channels, length, float(frequency)
        self.count, self.directions = filters, 2 if bidirectional else 1
        networks = self.count * self.directions
        self.features = nn.Parameter(positional_features(length, features).repeat(filters, 1, 1))  # (K, L, E)
        self.frequency = nn.Parameter(torch.full((filters, width), self.start))
        self.skip = nn.Parameter(torch.empty(filters * channels))
        # Matrices of all networks one below the other: filter by filter, forward before backward.
        shapes = ((width, features), *[(width, width)] * (HIDDEN_LAYERS - 1), (channels, width))
        for layer, (rows, columns) in enumerate(shapes):
            self.register_parameter(f"weight_{layer}", nn.Parameter(torch.empty(networks * rows, columns)))
        for layer in range(HIDDEN_LAYERS):
            self.register_parameter(f"bias_{layer}", nn.Parameter(torch.empty(networks * width)))
        self.register_buffer("places", torch.linspace(0, 1, length), persistent=False)
        self.register_buffer("decay", decay_rates(channels).abs(), persistent=False)
        self._kept = _Kept()
        self.reset_parameters(0.02)

    @property
    def weights(self) -> list[Tensor]:
        """W_0 .. W_3 of all networks."""
        return [self.get_parameter(f"weight_{layer}") for layer in range(HIDDEN_LAYERS + 1)]

    @property
    def biases(self) -> list[Tensor]:
        """b_0 .. b_2 of all networks."""
        return [self.get_parameter(f"bias_{layer}") for layer in range(HIDDEN_LAYERS)]

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Fresh values: matrices normal with this deviation, biases zero, skips normal with deviation 1."""
        for weight in self.weights:
            nn.init.normal_(weight, std=std)
        for bias in self.biases:
            nn.init.zeros_(bias)
        nn.init.normal_(self.skip)

    def growing_axes(self) -> dict[str, Axes]:
        """Networks stay apart; features of a position are what they are; there are more positions in longer filters."""
        networks = Axis(self.count * self.directions, FIXED)
        rows, features = self.features.shape[1:]
        axes: dict[str, Axes] = {
            "features": (Axis(self.count, FIXED), Axis(rows, POSITIONS), Axis(features, FIXED)),
            "frequency": (Axis(self.count, FIXED), self.frequency.shape[1]),
            "skip": (Axis(self.count, FIXED), self.channels),
        }
        for layer, weight in enumerate(self.weights):
            columns = Axis(features, FIXED) if layer == 0 else weight.shape[1]
            axes[f"weight_{layer}"] = (networks, weight.shape[0] // networks.size, columns)
        return axes | {
            f"bias_{layer}": (networks, len(bias) // networks.size) for layer, bias in enumerate(self.biases)
        }

    def formulas(self) -> dict[str, Tensor]:
        """Features and frequencies as training finds them."""
        features = positional_features(self.length, self.features.shape[2])
        return {
            "features": features.expand_as(self.features),
            "frequency": torch.full(self.frequency.shape, self.start),
        }

    def taps(self, rows: int | None = None) -> Tensor:
        """The first R taps, by autograd as written above: -> (K, D, C, R); None: all L."""
        return self._generate(self.length if rows is None else rows)[0]

    def skips(self) -> Tensor:
        """-> (K, C)."""
        return self.skip.view(self.count, self.channels)

    def spectra(self, points: int, length: int) -> Tensor:
        """The filters' transforms of ``points`` points, (K, C, F) complex, for sequences of ``length`` positions.

        The same tensor's values until the weights change; its gradient goes on to the weights.
        """
        self._kept.fit(self._signature(), self._sources() if self.skip.device.type == "cpu" else [])
        train = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        entry = self._kept.sizes.pop(points, None)
        if entry is None or (train and not entry.hidden):
            # Ordinary tensors, also in inference mode: what comes later may need gradients.
            with torch.inference_mode(False), torch.no_grad():
                taps, hidden = self._generate(min(self.length, points // 2))
                entry = _Entry(spectra_of(taps, self.skips(), points), hidden if train else [])
        self._kept.sizes[points] = entry  # now the latest
        if len(self._kept.sizes) > KEPT_SIZES:
            del self._kept.sizes[next(iter(self._kept.sizes))]
        if not train:
            return entry.spectra
        found: Tensor = _Spectra.apply(self, entry, points, length, *self._sources())  # type: ignore[no-untyped-call]
        return found

    def _generate(self, rows: int) -> tuple[Tensor, list[Tensor]]:
        """The first R taps, (K, D, C, R), and what goes into each sine before its frequency, (K D, R, O) each."""
        x = self.features[:, :rows].repeat_interleave(self.directions, 0)
        frequency = self.frequency.repeat_interleave(self.directions, 0)[:, None]
        hidden = []
        for weight, bias in zip(self.weights, self.biases, strict=False):
            hidden.append(torch.baddbmm(self._each(bias)[:, None], x, self._each(weight).transpose(1, 2)))
            x = (frequency * hidden[-1]).sin()
        taps = self._each(self.weights[HIDDEN_LAYERS]) @ x.transpose(1, 2)
        return taps.unflatten(0, (self.count, self.directions)) * self._window(rows), hidden

    def _window(self, rows: int) -> Tensor:
        """exp(-t |delta|), (C, R)."""
        return (-self.decay[:, None] * self.places[:rows]).exp()

    def _each(self, stacked: Tensor) -> Tensor:
        """What stands one below the other for all networks, apart: (K D x, ...) -> (K D, x, ...)."""
        return stacked.unflatten(0, (self.count * self.directions, -1))

    def _sources(self) -> list[Tensor]:
        """The weights that filters are made from, in the order of ``_gradients``."""
        return [self.features, self.frequency, self.skip, *self.weights, *self.biases]

    def _signature(self) -> tuple[Any, ...]:
        """What changes when weights are written, except in place behind torch's back (``weight.data``)."""
        sources = self._sources()
        versions = [None if p.is_inference() else p._version for p in sources]
        return _Steps.taken, *versions, *(p.data_ptr() for p in sources)

    def _gradients(self, of_circle: Tensor, hidden: list[Tensor], length: int) -> list[Tensor]:
        """Gradients of the weights from those of the filters around the circle, (K, C, n).

        Lags that no pair of positions has are left out, not merely nearly zero: an optimizer that divides by the size
        of gradients would make steps of their rounding.
        """
        points = of_circle.shape[-1]
        rows = min(self.length, length)
        window = self._window(rows)
        slope = of_circle.new_empty(self.count, self.directions, self.channels, rows)
        torch.mul(of_circle[..., :rows], window, out=slope[:, 0])
        if self.directions == 2:
            reach = min(rows, length - 1)
            torch.mul(of_circle[..., points - reach :].flip(-1), window[:, :reach], out=slope[:, 1, :, :reach])
            slope[:, 1, :, reach:] = 0
        slope = slope.flatten(0, 1)
        frequency = self.frequency.repeat_interleave(self.directions, 0)[:, None]
        of_weights: list[Tensor] = []
        of_biases: list[Tensor] = []
        of_frequency = torch.zeros_like(frequency)
        of_taps = True
        for layer in range(HIDDEN_LAYERS, -1, -1):
            weight = self._each(self.weights[layer])
            if layer == 0:
                below = self.features[:, :rows].repeat_interleave(self.directions, 0)
            else:
                before = hidden[layer - 1][:, :rows]
                below = (frequency * before).sin()
            if of_taps:  # the last matrix gives taps by channel
                of_weights.append(slope @ below)
                slope = slope.transpose(1, 2) @ weight
                of_taps = False
            else:
                of_biases.append(slope.sum(1).flatten())
                of_weights.append(slope.transpose(1, 2) @ below)
                slope = slope @ weight
            if layer:
                slope = slope * (frequency * before).cos()
                of_frequency += (slope * before).sum(1, keepdim=True)
                slope = slope * frequency
        of_features = F.pad(slope.unflatten(0, (self.count, -1)).sum(1), (0, 0, 0, self.length - rows))
        shared = of_frequency.unflatten(0, (self.count, -1)).sum((1, 2))
        weights = [weight.flatten(0, 1) for weight in reversed(of_weights)]
        return [of_features, shared, of_circle[..., 0].flatten(), *weights, *reversed(of_biases)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GeneratedFilters":
        self._kept = _Kept()
        moved: GeneratedFilters = super()._apply(lambda tensor: _at_least_float32(fn, tensor), recurse)  # type: ignore[no-untyped-call]
        return moved


class _Entry:
    """What is kept for one size of transform."""

    def __init__(self, spectra: Tensor, hidden: list[Tensor]) -> None:
        self.spectra = spectra
        self.hidden = hidden  # empty: no gradients were wanted


class _Kept:
    """What was worked out from weights, and how they were. A copy or a pickle of it starts empty."""

    def __init__(self) -> None:
        self.signature: tuple[Any, ...] = ()
        self.values: list[Tensor] = []
        self.sizes: dict[int, _Entry] = {}  # by points, the longest unused first

    def fit(self, signature: tuple[Any, ...], values: list[Tensor]) -> None:
        """Forget everything unless the weights are what they were."""
        same = self.signature == signature and len(values) == len(self.values)
        if not (same and all(map(torch.equal, values, self.values))):
            self.signature, self.sizes = signature, {}
            with torch.inference_mode(False):
                self.values = [value.detach().clone() for value in values]

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return _Kept, ()


class _Spectra(torch.autograd.Function):
    """Kept spectra, as a function of the weights they were made from."""

    @staticmethod
    def forward(
        ctx: Any, filters: GeneratedFilters, entry: _Entry, points: int, length: int, *sources: Tensor
    ) -> Tensor:
        """-> (K, C, F) complex."""
        ctx.filters, ctx.hidden, ctx.points, ctx.length = filters, entry.hidden, points, length
        ctx.save_for_backward(*sources)  # so that autograd refuses weights that changed in between
        return entry.spectra.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(K, C, F) -> gradients of the weights."""
        assert ctx.saved_tensors
        once = scaled(gradient, inverse_weights(gradient, ctx.points).reciprocal())
        found = ctx.filters._gradients(torch.fft.irfft(once, ctx.points), ctx.hidden, ctx.length)
        needed = ctx.needs_input_grad[4:]
        return None, None, None, None, *(g if wanted else None for g, wanted in zip(found, needed, strict=True))


def positional_features(length: int, features: int) -> Tensor:
    """What the network is first told of each place: (L, E), float32."""
    bands = (features - 1) // 2
    count = torch.arange(length)[:, None]
    # With the device said: where transformers has built a network in a device's context, torch.linspace forgets it.
    place = torch.linspace(0, 1, length, device=count.device)[:, None]
    angles = (2 * math.pi / length) * count * torch.linspace(1e-4, bands - 1, bands, device=count.device)
    return torch.cat((place, angles.cos(), -angles.sin()), dim=-1)


def decay_rates(channels: int) -> Tensor:
    """delta of each channel, (C,), float32."""
    return torch.linspace(math.log(TARGET) / SLOWEST_DECAY, math.log(TARGET) / FASTEST_DECAY, channels)


def _at_least_float32(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    changed = fn(tensor)
    narrow = changed.is_floating_point() and changed.element_size() < 4
    return tensor.to(changed.device) if narrow and tensor.element_size() >= 4 else changed
