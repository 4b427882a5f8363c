"""Monarch Mixer BERT: https://arxiv.org/abs/2310.12109, code https://github.com/HazyResearch/m2.

Shape legend: B sequences apart, S positions, T tokens after unpadding, H hidden, N predicted tokens of the batch.

There is no residual connection around the mixer and no norm after it: what a token is reaches the feed-forward part
through the second long convolution's skip only.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cramming.architectures.configs.m2 import M2Config
from cramming.architectures.encoder import Classifier, Encoder, MaskedLanguageModel
from cramming.architectures.initialization import initialize
from cramming.architectures.layers.axes import FIXED, Axes, Axis
from cramming.architectures.layers.block_diagonal import BlockDiagonalGatedFeedForward
from cramming.architectures.layers.embedding import Embeddings
from cramming.architectures.layers.filters import GeneratedFilters
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.long_convolution import (
    SHORT,
    Signals,
    convolution_flops,
    direct,
    fft,
    plain_fft,
    spectra_of,
    transform_size,
)
from cramming.architectures.layers.unpadding import Groups, Layout, Queries, groups_of
from cramming.differentiation import twice
from cramming.plain import described

FORMS = ("fft", "direct")
NORM_EPS = 1e-5  # of the norm before the mixer, whatever the model's other norms have


class SequenceMixer(nn.Module):
    """output(gated long convolution of input(x)): see ``layers/long_convolution.py``.

    Attributes:
        form: ``fft``, or ``direct``: the definition, which takes O(S^2) and can be exported.
    """

    ways = frozenset({"convolution", "kept_filters"})
    plain: frozenset[str] = frozenset()

    def __init__(self, config: M2Config, filter_length: int) -> None:
        super().__init__()
        self.form = "fft"
        self.norm = nn.LayerNorm(config.hidden, eps=NORM_EPS) if config.training_additions else None
        self.input = nn.Linear(config.hidden, 3 * config.hidden)
        self.short_weight = nn.Parameter(torch.empty(3 * config.hidden, 1, SHORT))
        self.short_bias = nn.Parameter(torch.empty(3 * config.hidden))
        self.filters = GeneratedFilters(
            config.hidden,
            filter_length,
            filters=2 if config.residual_convolution else 1,
            bidirectional=config.bidirectional,
            width=config.filter_order,
            features=config.filter_features,
            frequency=config.filter_frequency,
        )
        self.output = nn.Linear(config.hidden, config.hidden)
        self.reset_parameters(config.init_std)

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Fresh values of what is no linear layer; those of a convolution of 3 taps are torch's."""
        for parameter in (self.short_weight, self.short_bias):
            nn.init.uniform_(parameter, -1 / math.sqrt(SHORT), 1 / math.sqrt(SHORT))
        self.filters.reset_parameters(std)

    def growing_axes(self) -> dict[str, Axes]:
        """The two gates and the values grow each by themselves."""
        thirds, hidden = Axis(3, FIXED), self.output.in_features
        return {
            "input.weight": (thirds, hidden, hidden),
            "input.bias": (thirds, hidden),
            "short_weight": (thirds, hidden, Axis(1, FIXED), Axis(SHORT, FIXED)),
            "short_bias": (thirds, hidden),
        }

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: all but the last product runs on every token."""
        if self.norm is not None:
            x = self.norm(x)
        rows = self._in_groups(x, groups_of(layout)) if layout.grouped else self._on_grid(x, layout)
        mixed: Tensor = self.output(rows if queries is None else queries.select(rows))
        return mixed

    def _on_grid(self, x: Tensor, layout: Layout) -> Tensor:
        """All sequences at once, each channel's positions side by side from the first product on: -> (T, H)."""
        channels = _channels(x)
        projected = torch.addmm(self.input.bias[:, None], self.input.weight, channels)
        return self._convolved(projected, channels, (layout.sequences, layout.length), layout.mask).t()

    def _in_groups(self, x: Tensor, groups: Groups) -> Tensor:
        """Sequences of similar length at a time: -> (T, H)."""
        mixed = []
        for group, p, u in zip(groups.members, groups.spread(self.input(x)), groups.spread(x), strict=True):
            shape = group.sequences, group.length
            signals = _channels(p.flatten(0, 1)), _channels(u.flatten(0, 1))
            mixed.append(_channels(self._convolved(*signals, shape, group.mask)).unflatten(0, shape))
        return groups.collect(mixed)

    @torch.compiler.disable  # complex numbers, and filters that are kept between calls
    def _convolved(self, projected: Tensor, x: Tensor, shape: tuple[int, int], mask: Tensor | None) -> Tensor:
        """(3H, B S), (H, B S), (B, S), (B, S) bool -> (H, B S)."""
        filters, length = self.filters, shape[1]
        residual = x.unflatten(1, shape) if filters.count == 2 else None
        signals = Signals(projected.unflatten(1, shape), residual, mask)
        short = self.short_weight, self.short_bias
        if self.form == "direct" or projected.device.type == "meta":
            return direct(signals, short, filters.taps(), filters.skips()).flatten(1)
        points = transform_size(length, filters.length)
        if twice() or "kept_filters" in self.plain:
            spectra = spectra_of(filters.taps(min(filters.length, points // 2)), filters.skips(), points)
        else:
            spectra = filters.spectra(points, length)
        convolve = plain_fft if twice() or "convolution" in self.plain else fft
        return convolve(signals, short, spectra).flatten(1)


class M2Block(nn.Module):
    """x = mixer(x); x = norm(x + feedforward(x))."""

    def __init__(self, config: M2Config, filter_length: int) -> None:
        super().__init__()
        self.mixer = SequenceMixer(config, filter_length)
        self.feedforward = BlockDiagonalGatedFeedForward(
            config.hidden, config.intermediate, config.blocks, config.dropout
        )
        self.feedforward_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(self, x: Tensor, layout: Layout, queries: Queries | None = None) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: the convolutions read every token, the rest runs on theirs."""
        x = self.mixer(x, layout, queries)
        x = self.feedforward_norm(x + self.feedforward(x))
        return x


class _M2(Encoder):
    """What both heads share."""

    config: M2Config
    drops_tokens = False  # a convolution has no place for tokens that are not neighbours

    @property
    def convolution(self) -> str:
        """How long convolutions are computed: ``fft`` or ``direct``; setting it sets it in every layer."""
        return self._mixers[0].form

    @convolution.setter
    def convolution(self, form: str) -> None:
        if form not in FORMS:
            raise ValueError(f"convolution={form!r} is not one of {', '.join(FORMS)}")
        for mixer in self._mixers:
            mixer.form = form

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        """What was chosen for speed on this device, for sequences of ``length`` tokens (default: the longest)."""
        points = transform_size(length or self.max_positions, self._mixers[0].filters.length)
        said = described(self.all_ways, self.plain)
        by_fft = f"real transforms of {points} points, {said['convolution']}"
        return {**said, "attention": "none", "convolution": by_fft if self.convolution == "fft" else "direct"}

    def parameter_options(self) -> Mapping[str, Mapping[str, float]]:
        """Rates and decay of filters and of positions, see ``M2Config``."""
        network = {"lr": self.config.filter_lr, "weight_decay": self.config.filter_weight_decay}
        own = {"features": {"lr": self.config.position_lr, "norm": True}, "frequency": {**network, "norm": True}}
        found = {}
        for name, _ in self.named_parameters():
            _, inside, part = name.partition(".mixer.filters.")
            if inside and part != "skip":
                said = own.get(part, network)
                found[name] = {option: value for option, value in said.items() if value is not None}
        return {name: options for name, options in found.items() if options}

    @property
    def _mixers(self) -> list[SequenceMixer]:
        return [block.mixer for block in self.blocks]  # type: ignore[misc]

    def _initialize(self) -> None:
        initialize(self, self.config.init_std)
        if self.config.identical_layers:
            _copy_first(self.blocks)


class M2(_M2, MaskedLanguageModel):
    """M2-BERT with the masked-language-model head."""

    def __init__(self, config: M2Config, vocab_size: int, max_positions: int) -> None:
        super().__init__(**_parts(config, vocab_size, max_positions))
        self.config = config
        self.head = MaskedLanguageHead(config.hidden, vocab_size, norm_eps=config.norm_eps)
        self._initialize()

    def flops(self, length: int, predicted: int, layers: int) -> float:
        """Floating-point operations of one sequence forward: products, 2 a multiply-add, and transforms.

        Generating filters is not in it: that is done once for a step, not for a sequence.

        Args:
            length: tokens of the sequence.
            predicted: predicted positions among them.
            layers: active blocks, the first ones; the last works out its output at predicted positions only.
        """
        hidden, total = self.config.hidden, 0.0
        for place, mixer in enumerate(self._mixers[:layers], start=1):
            rows = predicted if place == layers else length
            feedforward = 3 * hidden * self.config.intermediate // self.config.blocks
            total += 2 * length * 3 * hidden**2 + 2 * rows * (hidden**2 + feedforward)
            total += mixer.filters.count * hidden * convolution_flops(length, mixer.filters.length)
        return total + 2 * predicted * (hidden**2 + self.embeddings.word.weight.numel())  # type: ignore[union-attr,operator]


class M2Classifier(_M2, Classifier):
    """M2-BERT with a classification head on its first token, or on their mean."""

    def __init__(self, config: M2Config, vocab_size: int, max_positions: int, labels: int) -> None:
        super().__init__(**_parts(config, vocab_size, max_positions))
        self.config = config
        dropout = config.dropout if config.classifier_dropout is None else config.classifier_dropout
        self.head = ClassificationHead(
            config.hidden, labels, dropout, pooler="avg" if config.pool_all else "zero_index"
        )
        self._initialize()


def _channels(rows: Tensor) -> Tensor:
    """(x, y) -> (y, x) in memory, at once: turned a few channels at a time it takes as long as a transform."""
    return rows.t().contiguous()


def _parts(config: M2Config, vocab_size: int, max_positions: int) -> dict[str, Any]:
    """What the encoder is made of."""
    embeddings = Embeddings(
        vocab_size,
        max_positions,
        config.hidden,
        position="learned",
        token_types=config.token_types,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )
    filter_length = max_positions if config.filter_length is None else config.filter_length
    return {
        "embeddings": embeddings,
        "blocks": [M2Block(config, filter_length) for _ in range(config.layers)],
        "vocab_size": vocab_size,
        "max_positions": max_positions,
        "attend_padding": not config.mask_padding,
    }


@torch.no_grad()
def _copy_first(blocks: nn.ModuleList) -> None:
    """The first layer's values for what the published code does not draw for each layer."""
    shared = (".short_weight", ".short_bias", ".skip", "feedforward.expand.weight", "contract.weight", "contract.bias")
    first = dict(blocks[0].named_parameters())
    for block in blocks[1:]:
        for name, parameter in block.named_parameters():
            if name.endswith(shared):
                parameter.copy_(first[name])
