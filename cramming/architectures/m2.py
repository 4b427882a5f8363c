"""Monarch Mixer BERT: https://arxiv.org/abs/2310.12109, code https://github.com/HazyResearch/m2.

Shape legend: B sequences apart, S positions, T tokens after unpadding, H hidden, N predicted tokens of the batch.

There is no residual connection around the mixer and no norm after it: what a token is reaches the feed-forward part
through the second long convolution's skip only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cramming.architectures.configs.m2 import M2Config
from cramming.architectures.encoder import Classifier, Encoder, MaskedLanguageModel
from cramming.architectures.initialization import initialize
from cramming.architectures.layers.axes import FIXED, Axes, Axis
from cramming.architectures.layers.block_diagonal import BlockDiagonalGatedFeedForward
from cramming.architectures.layers.embedding import Embeddings
from cramming.architectures.layers.filters import Filters, GeneratedFilters, generate
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.kept_filters import KeptFilters, rows_for
from cramming.architectures.layers.unpadding import Group, Groups, Layout, Queries, groups_of
from cramming.differentiation import twice
from cramming.kernels import backends, gated_feed_forward, gated_long_conv, long_convolution
from cramming.kernels.reference import SHORT
from cramming.kernels.torch_convolution import composed, convolution_flops, transform_size
from cramming.plain import described

CONVOLUTION, FEEDFORWARD = long_convolution.OP, gated_feed_forward.OP
NORM_EPS = 1e-5  # of the norm before the mixer, whatever the model's other norms have


class SequenceMixer(nn.Module):
    """output(gated long convolution of input(x)): see ``kernels/long_convolution.py``.

    Attributes:
        kernels: the backend of the convolution.
    """

    ways = frozenset({"convolution"})
    plain: frozenset[str] = frozenset()

    def __init__(self, config: M2Config, filter_length: int) -> None:
        super().__init__()
        self.kernels = backends.AUTO
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

    def forward(
        self, x: Tensor, layout: Layout, queries: Queries | None = None, filters: Filters | None = None
    ) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: all but the last product runs on every token.

        Args:
            x: tokens.
            layout: theirs.
            queries: where an output is wanted; None: everywhere.
            filters: what to convolve with, its spectra in the order of the layout's grids; None: they are generated.
        """
        if filters is None:
            filters = Filters(self.filters.taps())
        if self.norm is not None:
            x = self.norm(x)
        rows = self._in_groups(x, groups_of(layout), filters) if layout.grouped else self._on_grid(x, layout, filters)
        mixed: Tensor = self.output(rows if queries is None else queries.select(rows))
        return mixed

    def _on_grid(self, x: Tensor, layout: Layout, filters: Filters) -> Tensor:
        """All sequences at once, each channel's positions side by side from the first product on: -> (T, H)."""
        u = _channels(x)
        z = torch.addmm(self.input.bias[:, None], self.input.weight, u)
        return self._convolved(z, u, layout, filters, 0).t()

    def _in_groups(self, x: Tensor, groups: Groups, filters: Filters) -> Tensor:
        """Sequences of similar length at a time: -> (T, H)."""
        mixed = []
        spread = zip(groups.members, groups.spread(self.input(x)), groups.spread(x), strict=True)
        for number, (group, z, u) in enumerate(spread):
            signals = _channels(z.flatten(0, 1)), _channels(u.flatten(0, 1))
            made = self._convolved(*signals, group, filters, number)
            mixed.append(_channels(made).unflatten(0, (group.sequences, group.length)))
        return groups.collect(mixed)

    def _convolved(self, z: Tensor, u: Tensor, grid: Group | Layout, filters: Filters, number: int) -> Tensor:
        """(3H, B S), (H, B S) -> (H, B S), on the grid of this number."""
        shape = grid.sequences, grid.length
        taps, skips = filters.taps.unbind(), self.filters.skips().unbind()
        residual = self.filters.count == 2
        given = (
            z.unflatten(1, shape),
            u.unflatten(1, shape) if residual else None,
            taps[0],
            taps[1] if residual else None,
            skips[0],
            skips[1] if residual else None,
            self.short_weight.flatten(1),
            self.short_bias,
            grid.mask,
        )
        if "convolution" in self.plain:
            return composed(long_convolution.operands(*given)).flatten(1)
        spectra = filters.spectra[number] if filters.spectra else None
        return gated_long_conv(*given, spectra=spectra, backend=self.kernels).flatten(1)


class M2Block(nn.Module):
    """x = mixer(x); x = norm(x + feedforward(x))."""

    def __init__(self, config: M2Config, filter_length: int) -> None:
        super().__init__()
        self.mixer = SequenceMixer(config, filter_length)
        self.feedforward = BlockDiagonalGatedFeedForward(
            config.hidden, config.intermediate, config.blocks, config.dropout
        )
        self.feedforward_norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)

    def forward(
        self, x: Tensor, layout: Layout, queries: Queries | None = None, filters: Filters | None = None
    ) -> Tensor:
        """(T, H) -> (T, H), or (N, H) at ``queries``: the convolutions read every token, the rest runs on theirs."""
        x = self.mixer(x, layout, queries, filters)
        x = self.feedforward_norm(x + self.feedforward(x))
        return x


class _M2(Encoder):
    """What both heads share."""

    config: M2Config
    drops_tokens = False  # a convolution has no place for tokens that are not neighbours

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._kept = KeptFilters()

    @property
    def ways(self) -> frozenset[str]:  # type: ignore[override]
        return super().ways | {"kept_filters"}

    @property
    def read_apart(self) -> tuple[nn.Module, ...]:
        """Filters of all layers are made together."""
        return tuple(block.mixer.filters for block in self._blocks)

    @property
    def kernel_ops(self) -> tuple[str, ...]:  # type: ignore[override]
        ways = {"convolution": CONVOLUTION, "block_diagonal": FEEDFORWARD}
        there = {*self._blocks[0].mixer.ways, *self._blocks[0].feedforward.ways} - self.plain
        return tuple(op for way, op in ways.items() if way in there)

    @property
    def kernels(self) -> dict[str, str]:
        """The backend of each operation."""
        chosen = {CONVOLUTION: self._blocks[0].mixer.kernels, FEEDFORWARD: self._blocks[0].feedforward.kernels}
        return {op: chosen[op] for op in self.kernel_ops}

    def use_kernels(self, chosen: Mapping[str, str]) -> None:
        for op, backend in chosen.items():
            if op not in self.kernel_ops:
                raise ValueError(f"{op} is no operation of this model: it has {', '.join(self.kernel_ops)}")
            backends.check(backend)
        for block in self._blocks:
            block.mixer.kernels = chosen.get(CONVOLUTION, block.mixer.kernels)
            block.feedforward.kernels = chosen.get(FEEDFORWARD, block.feedforward.kernels)

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        """What was chosen for speed on this device, for sequences of ``length`` tokens (default: the longest)."""
        said = {"attention": "none", **described(self.all_ways, self.plain)}
        for way, op in (("convolution", CONVOLUTION), ("block_diagonal", FEEDFORWARD)):
            if way in said and way not in self.plain:
                said[way] = f"{self._backend(op)}: {said[way]}"
        if self.config.dropout and "block_diagonal" in said and "block_diagonal" not in self.plain:
            said["block_diagonal"] += ", but for training with dropout"
        if "convolution" in self.plain or said["convolution"].startswith("torch:"):
            points = transform_size(length or self.max_positions, self._blocks[0].mixer.filters.length)
            said["convolution"] += f", real transforms of {points} points"
        return said

    def prepared(self, layout: Layout) -> Mapping[int, tuple[Any, ...]]:
        """The filters of every active layer, all made together."""
        blocks = self._blocks
        filters = [blocks[layer].mixer.filters for layer in self.active_layers]
        if not filters:
            return {}
        if torch.compiler.is_exporting():  # a graph for sequences of any length, which keeps nothing
            made = [Filters(taps) for taps in generate(filters, filters[0].length)[0]]
        else:
            made = self._filters(filters, groups_of(layout).members if layout.grouped else (layout,))
        return {layer: (one,) for layer, one in zip(self.active_layers, made, strict=True)}

    @torch.compiler.disable  # what is kept is no part of a graph
    def _filters(self, filters: list[GeneratedFilters], grids: Sequence[Group | Layout]) -> list[Filters]:
        """Of these layers, for grids of different lengths."""
        length, longest = max(grid.length for grid in grids), filters[0].length
        if twice() or "kept_filters" in self.plain:
            return [Filters(taps) for taps in generate(filters, rows_for(length, longest))[0]]
        points = []
        if "convolution" not in self.plain and self._backend(CONVOLUTION) == "torch":
            points = [transform_size(grid.length, longest) for grid in grids]
        return self._kept.of(filters, length, points)

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

    def _backend(self, op: str) -> str:
        """What computes an operation, as far as that is known before it has its operands."""
        asked = self.kernels[op]
        return "torch" if asked == backends.AUTO and next(self.parameters()).device.type != "cuda" else asked

    @property
    def _blocks(self) -> list[M2Block]:
        return list(self.blocks)  # type: ignore[arg-type]

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
        for place, block in enumerate(self._blocks[:layers], start=1):
            filters = block.mixer.filters
            rows = predicted if place == layers else length
            feedforward = 3 * hidden * self.config.intermediate // self.config.blocks
            total += 2 * length * 3 * hidden**2 + 2 * rows * (hidden**2 + feedforward)
            total += filters.count * hidden * convolution_flops(length, filters.length)
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
