"""Filters of long convolutions that small networks generate, those of all layers at once.

Shape legend: N layers, K filters of each, D directions (1 forward, or 2: and backward), C channels, L length of the
filters, R of their taps that are in use, E features of a position, O width of a network, P = N K filters of all layers.

As in Hyena (https://arxiv.org/abs/2302.10866, section 3.3) and M2-BERT, tap j of a channel is a function of its place:

    t = j / (L - 1),  w = 2 pi j / L,  features = [t, cos(f_b w) ..., -sin(f_b w) ...],  f_b from 1e-4 to bands - 1
    tap = (W3 sin(g a2)) exp(-t |delta|),  a_i = W_i sin(g a_{i-1}) + b_i,  a_0 = W_0 features + b_0

with learned features and frequencies g that both directions of a filter share, matrices of each direction's own, and a
fixed decay delta from ln(0.01)/1.5 at the first channel to ln(0.01)/0.3 at the last.

A network is small and there are K D of them in every layer, so they run together: one batched product of P D matrices
where layer by layer there would be N. ``kept_filters.py`` says for how long what they make is kept.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cramming.architectures.layers.axes import FIXED, POSITIONS, Axes, Axis
from cramming.architectures.layers.weights_state import WeightsState
from cramming.kernels.types import as_given

HIDDEN_LAYERS = 3  # of a network
FASTEST_DECAY, SLOWEST_DECAY, TARGET = 0.3, 1.5, 1e-2  # a channel has decayed to the target at this share of L


class Filters(NamedTuple):
    """What a layer convolves with.

    Attributes:
        taps: (K, D, C, R).
        spectra: their transforms with skips, (K, C, F, 2), one for each grid of a layout where they are kept, as
            ``gated_long_conv`` takes them.
    """

    taps: Tensor
    spectra: tuple[Tensor, ...] = ()


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
        self._state = WeightsState()
        self.reset_parameters(0.02)

    @property
    def weights(self) -> list[Tensor]:
        """W_0 .. W_3 of all networks."""
        return [getattr(self, f"weight_{layer}") for layer in range(HIDDEN_LAYERS + 1)]

    @property
    def biases(self) -> list[Tensor]:
        """b_0 .. b_2 of all networks."""
        return [getattr(self, f"bias_{layer}") for layer in range(HIDDEN_LAYERS)]

    @property
    def sources(self) -> list[Tensor]:
        """The weights that taps are made from, in the order of ``Networks.of``."""
        return [self.features, self.frequency, *self.weights, *self.biases]

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
        return generate([self], self.length if rows is None else rows)[0][0]

    def skips(self) -> Tensor:
        """-> (K, C)."""
        return self.skip.view(self.count, self.channels)

    def state(self) -> object:
        """Another object whenever the weights are others than before."""
        return self._state.now([*self.sources, self.skip])

    def window(self, rows: int) -> Tensor:
        """exp(-t |delta|), (C, R)."""
        return (-self.decay[:, None] * self.places[:rows]).exp()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GeneratedFilters":
        self._state = WeightsState()
        moved: GeneratedFilters = super()._apply(lambda tensor: _at_least_float32(fn, tensor), recurse)  # type: ignore[no-untyped-call]
        return moved


class Networks(NamedTuple):
    """The networks of several layers side by side: layer by layer, filter by filter, forward before backward."""

    features: Tensor  # (P, R, E)
    frequency: Tensor  # (P, O)
    weights: list[Tensor]  # (P D, outputs, inputs) each
    biases: list[Tensor]  # (P D, O) each

    @staticmethod
    def of(sources: Sequence[Sequence[Tensor]], directions: int, rows: int) -> "Networks":
        """From ``GeneratedFilters.sources`` of layers of the same sizes, for their first R places."""
        features, frequency, *matrices = zip(*sources, strict=True)
        joined = torch.cat([part[:, :rows] for part in features])
        count = len(joined) * directions
        apart = [torch.cat(parts).unflatten(0, (count, -1)) for parts in matrices]
        return Networks(joined, torch.cat(frequency), apart[: HIDDEN_LAYERS + 1], apart[HIDDEN_LAYERS + 1 :])

    @property
    def directions(self) -> int:
        """D."""
        return len(self.weights[0]) // len(self.features)

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        """Taps but for their decay, (P D, C, R), and what goes into each sine before its frequency, (P D, R, O)."""
        x, frequency = self._shared()
        hidden = []
        for weight, bias in zip(self.weights, self.biases, strict=False):
            hidden.append(torch.baddbmm(bias[:, None], x, weight.mT))
            x = (frequency * hidden[-1]).sin()
        return self.weights[HIDDEN_LAYERS] @ x.mT, hidden

    def backward(self, slope: Tensor, hidden: list[Tensor]) -> "Networks":
        """Gradients of all this from that of ``forward``'s first output, (P D, C, R), and its second one."""
        features, frequency = self._shared()
        of_weights: list[Tensor] = []
        of_biases: list[Tensor] = []
        of_frequency = torch.zeros_like(frequency)
        for layer in range(HIDDEN_LAYERS, -1, -1):
            below = (frequency * hidden[layer - 1]).sin() if layer else features
            if layer == HIDDEN_LAYERS:  # the last matrix gives taps by channel
                of_weights.append(slope @ below)
                slope = slope.mT @ self.weights[layer]
            else:
                of_biases.append(slope.sum(1))
                of_weights.append(slope.mT @ below)
                slope = slope @ self.weights[layer]
            if layer:
                slope = slope * (frequency * hidden[layer - 1]).cos()
                of_frequency += (slope * hidden[layer - 1]).sum(1, keepdim=True)
                slope = slope * frequency
        return Networks(
            slope.unflatten(0, (-1, self.directions)).sum(1),
            of_frequency.unflatten(0, (-1, self.directions)).sum((1, 2)),
            of_weights[::-1],
            of_biases[::-1],
        )

    def _shared(self) -> tuple[Tensor, Tensor]:
        """What both directions of a filter share, for each network: (P D, R, E), (P D, 1, O)."""
        both = self.directions
        return self.features.repeat_interleave(both, 0), self.frequency.repeat_interleave(both, 0)[:, None]


def generate(filters: Sequence[GeneratedFilters], rows: int) -> tuple[Tensor, list[Tensor]]:
    """The first R taps of several layers, (N, K, D, C, R), and the hidden values of ``Networks.forward``.

    Autocast, if it is on, leaves them alone: they are kept, and asked for again without it.
    """
    first = filters[0]
    with as_given(first.features):
        made, hidden = Networks.of([one.sources for one in filters], first.directions, rows).forward()
    apart = made.unflatten(0, (len(filters), first.count, first.directions))
    return apart * first.window(rows), hidden


def positional_features(length: int, features: int) -> Tensor:
    """What a network is first told of each place: (L, E), float32."""
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
