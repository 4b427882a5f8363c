"""Filters of all layers of a model, made once for each state of the weights.

Shape legend: ``filters.py``; U layers whose taps a backward pass has used.

The networks that generate filters see no token, so that within one step of the optimizer every microbatch meets the
same filters: taps, their spectra and the networks' hidden values are kept, and a microbatch's backward starts from
those. One node of autograd's graph stands for all layers: a backward pass runs the networks' own once, for all layers
whose taps it used, and gives the others no gradient, not zeros.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cramming.architectures.layers.filters import Filters, GeneratedFilters, Networks, generate
from cramming.kernels.torch_convolution import circle_of


class KeptFilters:
    """What was made of weights as they are. A copy or a pickle of it starts empty."""

    def __init__(self) -> None:
        # By taps. They are powers of two but for the longest, so all take less than twice as much as that one.
        self._made: dict[int, _Made] = {}

    def of(self, filters: Sequence[GeneratedFilters], length: int, points: Sequence[int] = ()) -> list[Filters]:
        """What each of these layers convolves with; gradients go on to its weights.

        The same values until the weights change, or gradients are wanted where they were not before.

        Args:
            filters: of layers of one model, all of the same sizes.
            length: of the longest sequence.
            points: sizes of transforms whose spectra are wanted.
        """
        train = torch.is_grad_enabled() and any(p.requires_grad for one in filters for p in one.sources)
        states = [one.state() for one in filters]
        made = self._current(dict(zip(states, filters, strict=True)), rows_for(length, filters[0].length), train)
        places = [made.places[state] for state in states]
        if train:
            sources = [part for one in filters for part in one.sources]
            taps = _Together.apply(made, places, length, *sources)  # type: ignore[no-untyped-call]
        else:
            taps = [made.taps[place] for place in places]
        spectra = [made.spectra(size) for size in points]
        return [Filters(one, tuple(part[place] for part in spectra)) for one, place in zip(taps, places, strict=True)]

    def _current(self, wanted: dict[object, GeneratedFilters], rows: int, train: bool) -> "_Made":
        """R taps of these layers, by the states of their weights; those of others that are there are kept up."""
        made = self._made.get(rows)
        if made is None or not wanted.keys() <= made.places.keys() or (train and not made.hidden):
            made = None  # what is stale is let go before there is more
            self._made = {size: other for size, other in self._made.items() if other.fresh()}
            if rows in self._made:
                wanted = {**self._made.pop(rows).filters, **wanted}
            made = self._made[rows] = _Made(wanted, rows, train)
        return made

    def __reduce__(self) -> tuple[type["KeptFilters"], tuple[()]]:
        return KeptFilters, ()


class _Made:
    """R taps of some layers.

    Args:
        filters: the layers, by the states of their weights.
        rows: R.
        train: gradients are wanted, so that hidden values are kept.
    """

    def __init__(self, filters: dict[object, GeneratedFilters], rows: int, train: bool) -> None:
        self.filters = filters
        self.places = {state: place for place, state in enumerate(filters)}
        # Ordinary tensors, also in inference mode: what comes later may need gradients.
        with torch.inference_mode(False), torch.no_grad():
            self.taps, hidden = generate(list(filters.values()), rows)
        self.hidden = hidden if train else []
        self._spectra: dict[int, Tensor] = {}

    def fresh(self) -> bool:
        """Whether the weights are still what they were."""
        return all(one.state() is state for state, one in self.filters.items())

    def spectra(self, points: int) -> Tensor:
        """Transforms of so many points: -> (N, K, C, F, 2)."""
        if points not in self._spectra:
            with torch.inference_mode(False), torch.no_grad():
                each = self.taps.shape[:2] + self.taps.shape[3:4]
                skips = torch.stack([one.skips() for one in self.filters.values()]).flatten()
                circles = circle_of(self.taps.movedim(2, 0).flatten(1, 3), skips, points)
                self._spectra[points] = torch.view_as_real(torch.fft.rfft(circles)).unflatten(0, each)
        return self._spectra[points]

    def hidden_of(self, places: list[int], rows: int) -> list[Tensor]:
        """Hidden values of U layers at the first places: -> (U K D, R, O) each."""
        layers = len(self.places)
        if places == list(range(layers)):
            return [values[:, :rows] for values in self.hidden]
        return [values[:, :rows].unflatten(0, (layers, -1))[places].flatten(0, 1) for values in self.hidden]


class _Together(torch.autograd.Function):
    """Kept taps, as a function of the weights they were made from."""

    @staticmethod
    def forward(ctx: Any, made: _Made, places: list[int], length: int, *sources: Tensor) -> tuple[Tensor, ...]:
        """-> (K, D, C, R) of each layer."""
        ctx.made, ctx.places, ctx.length = made, places, length
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*sources)  # so that autograd refuses weights that changed in between
        return tuple(made.taps[place].detach() for place in places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        """(K, D, C, R) of each layer -> gradients of the weights."""
        made, sources = ctx.made, ctx.saved_tensors
        each = len(sources) // len(slopes)
        layers = [sources[start : start + each] for start in range(0, len(sources), each)]
        used = {number: slope for number, slope in enumerate(slopes) if slope is not None}
        found: list[Tensor | None] = [None] * len(sources)
        if used:
            some = next(iter(made.filters.values()))
            # Lags that no pair of positions has are left out: their gradients are zero.
            rows = min(made.taps.shape[-1], ctx.length)
            slope = torch.stack([part[..., :rows] for part in used.values()]).mul_(some.window(rows)).flatten(0, 2)
            networks = Networks.of([layers[number] for number in used], some.directions, rows)
            hidden = made.hidden_of([ctx.places[number] for number in used], rows)
            gradients = _apart(networks.backward(slope, hidden), len(used), some.length)
            for number, gradient in zip(used, gradients, strict=True):
                found[number * each : (number + 1) * each] = gradient
        needed = ctx.needs_input_grad[3:]
        return None, None, None, *(g if wanted else None for g, wanted in zip(found, needed, strict=True))


def rows_for(length: int, longest: int) -> int:
    """Taps that sequences of ``length`` positions need, rounded up to few different numbers; at most ``longest``."""
    return min(longest, 1 << (length - 1).bit_length())


def _apart(gradients: Networks, layers: int, length: int) -> list[tuple[Tensor, ...]]:
    """Gradients of each layer's sources, zero at places from R on."""
    features = F.pad(gradients.features, (0, 0, 0, length - gradients.features.shape[1]))
    matrices = (part.flatten(0, 1) for part in (*gradients.weights, *gradients.biases))
    parts = (features, gradients.frequency, *matrices)
    return list(zip(*(part.chunk(layers) for part in parts), strict=True))
