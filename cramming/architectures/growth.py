"""The weights of a trained model as the first weights of a larger one of its family.

Width: an axis of n features becomes one of N by repeating them. ``tile``: from the edge, feature j is j mod n of the
small one. ``centre``: the small one in the middle, both sides filled by going on around, feature j is
(j - (N - n) // 2) mod n: how ModernBERT-large began as ModernBERT-base (https://arxiv.org/abs/2412.13663, section 2.2,
after Phi-2). Heads, queries, keys, values and the halves of a gate grow each by themselves. Copies would get the same
gradients for ever and never become different features, so entries that repeat others are mixed with a share of the
fresh weights that the large model was made with (cf. https://arxiv.org/abs/1511.05641, section 3).

Depth: from k layers to L. ``stack`` (https://proceedings.mlr.press/v97/gong19a.html): layer i is layer i mod k of the
small one. ``interleave`` (https://arxiv.org/abs/2112.11446, appendix G): it is layer i k // L, each repeated in place.

Positions: tables of n rows get N. ``tile``: they repeat. ``interpolate``: they are stretched, first and last rows kept.
``cut``: the first N of them. What is worked out from the position (rotary, sinusoidal, ALiBi) needs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cramming.architectures.layers.axes import FIXED, POSITIONS, Axes, Axis
from cramming.errors import UserError
from cramming.model import Model
from cramming.suggest import nearest

WIDTHS = ("tile", "centre")
DEPTHS = ("stack", "interleave")
LENGTHS = ("tile", "interpolate", "cut")


@dataclass(frozen=True)
class _Part:
    """One tensor of a model's state."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    formula: Tensor | None
    place: tuple[int | None, str]  # layer and name in it; no layer outside the layers, or where several share it


def fit(
    state: Mapping[str, Tensor],
    source: Model,
    target: Model,
    *,
    width: str | None = None,
    depth: str | None = None,
    positions: str | None = None,
    fresh_share: float = 0.1,
) -> dict[str, Tensor]:
    """A state for ``target`` made of one for ``source``; where nothing is larger, that state itself.

    Args:
        state: trained weights, as ``source.state_dict()`` names them.
        source: a model of the small shape; its own weights are not read (it may live on the device ``meta``).
        target: a model of the large shape with fresh weights.
        width: ``tile`` or ``centre``; None: widths must be equal.
        depth: ``stack`` or ``interleave``; None: numbers of layers must be equal.
        positions: ``tile``, ``interpolate`` or ``cut``; None: position tables must be of equal length.
        fresh_share: what is added to repeated entries of matrices, as a share of the target's fresh weights.

    Returns:
        Every tensor of ``target.state_dict()``, on the devices and in the types of ``state``.

    Raises:
        UserError: an option that does not exist, that is needed and not given, or that has nothing to do here; another
            family, vocabulary or make-up of the layers; a target that is smaller; a state without a tensor it needs.
    """
    for option, value, known in (
        ("init_width", width, WIDTHS),
        ("init_depth", depth, DEPTHS),
        ("init_positions", positions, LENGTHS),
    ):
        if value is not None and value not in known:
            raise UserError(f"{option}={value} is unknown{nearest(value, known)}")
    _check_models(source, target, depth)
    ours, theirs = _anatomy(target), _anatomy(source)
    if positions is not None and not any(axis.kind == POSITIONS for part in ours for axis in part.axes):
        raise UserError(f"init_positions={positions}: {_family(target)} has no table of positions: leave it out")
    origins = {part.place: part for part in theirs}
    fresh = target.state_dict()
    grow = _Growth(width, positions, fresh_share, _stream(source, target))
    grown, used = {}, set()
    for part in ours:
        layer, name = part.place
        origin = layer if layer is None else _layer(layer, len(source.blocks), len(target.blocks), depth)
        small = origins.get((origin, name))
        if small is None:
            grown[part.name] = _unmatched(part, origin, fresh[part.name])
        elif small.name not in state:
            raise UserError(f"the checkpoint lacks {small.name!r}")
        else:
            grown[part.name] = grow(state[small.name], small, part, fresh[part.name])
            used.add(small.name)
    left = sorted({part.name for part in theirs} - used)
    if left:
        raise UserError(f"{left[0]!r} of the checkpoint has no place in the model: only sizes may be others")
    return grown


def _check_models(source: Model, target: Model, depth: str | None) -> None:
    small, large = _family(source), _family(target)
    if type(source) is not type(target):
        raise UserError(f"the checkpoint holds a {small} and the model is a {large}: choose the arch of the checkpoint")
    if source.vocab_size != target.vocab_size:
        raise UserError(
            f"the checkpoint has {source.vocab_size} words and the model {target.vocab_size}: a vocabulary cannot "
            "grow; use the checkpoint's tokenizer"
        )
    if target.layers < source.layers:
        raise UserError(f"the checkpoint has {source.layers} layers and the model {target.layers}: it cannot shrink")
    if not target.separable_layers:
        if depth is not None:
            raise UserError(
                f"init_depth={depth}: layers of {large} are one and the same, so nothing grows; leave it out, "
                "arch.layers says how often they run"
            )
    elif target.layers > source.layers and depth is None:
        raise UserError(
            f"the checkpoint has {source.layers} layers and the model {target.layers}: give init_depth=stack or "
            "init_depth=interleave"
        )


def _anatomy(model: Model) -> list[_Part]:
    """Every tensor of a model's state."""
    places: dict[int, tuple[int | None, str]] = {}
    for layer, block in enumerate(model.blocks):
        for name, tensor in block.state_dict(keep_vars=True).items():
            places[id(tensor)] = (layer, name) if id(tensor) not in places else (None, name)
    declared: dict[int, Axes] = {}
    formulas: dict[int, Tensor] = {}
    for module in model.modules():
        for table, method in ((declared, "growing_axes"), (formulas, "formulas")):
            said = _said(module, method, dict)
            tensors = module.state_dict(keep_vars=True) if said else {}
            table.update({id(tensors[name]): what for name, what in said.items() if name in tensors})
    parts = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        layer_of, inside = places.get(id(tensor), (None, name))
        place = (layer_of, name if layer_of is None else inside)
        axes = tuple(axis if isinstance(axis, Axis) else Axis(axis) for axis in declared.get(id(tensor), tensor.shape))
        parts.append(_Part(name, tuple(tensor.shape), axes, formulas.get(id(tensor)), place))
    return parts


def _said(module: nn.Module, method: str, nothing: type) -> Any:
    """What a module says of itself; see ``layers/axes.py``."""
    return getattr(module, method, nothing)()


def _stream(source: Model, target: Model) -> tuple[int, int, int]:
    """Features of the residual stream in both, and the blocks of them that some layer keeps apart."""
    (small, blocks), (large, others) = (
        max((_said(module, "stream", tuple) or (0, 1) for module in model.modules()), key=lambda stream: stream[1])
        for model in (source, target)
    )
    return small, large, blocks if blocks == others else 1


def _unmatched(part: _Part, origin: int | None, fresh: Tensor) -> Tensor:
    """What a tensor begins as that its layer of the small model has none of: a norm may stay fresh, the identity."""
    if origin is not None and len(part.shape) < 2:
        return fresh
    where = "the checkpoint" if origin is None else f"layer {origin} of the checkpoint"
    raise UserError(f"{where} has nothing for {part.name!r}: only the sizes of a model may be others")


@dataclass(frozen=True)
class _Growth:
    """How tensors grow."""

    width: str | None
    positions: str | None
    fresh_share: float
    stream: tuple[int, int, int]  # features of the residual stream in the small and the large model, and their blocks

    def __call__(self, value: Tensor, small: _Part, large: _Part, fresh: Tensor) -> Tensor:
        """The tensor ``large`` from ``value``, that of the place ``small``."""
        if tuple(value.shape) != small.shape:
            raise UserError(
                f"{small.name!r} of the checkpoint has shape {tuple(value.shape)}, its config says {small.shape}"
            )
        if small.shape == large.shape and small.axes == large.axes:
            return value
        if [axis.kind for axis in small.axes] != [axis.kind for axis in large.axes]:
            raise UserError(f"{large.name!r} is made up in another way in the checkpoint: only sizes may be others")
        learned = value if small.formula is None else value - small.formula.to(value)
        learned = learned.reshape([axis.size for axis in small.axes])
        repeats = torch.zeros([1] * learned.dim(), dtype=torch.bool, device=value.device)
        for dim, (old, new) in enumerate(zip(small.axes, large.axes, strict=True)):
            if old.size == new.size:
                continue
            along = [-1 if other == dim else 1 for other in range(learned.dim())]
            if new.kind == POSITIONS:
                stretch = self._stretches(large, old.size, new.size)
                learned = _stretched(learned, dim, new.size) if stretch else _repeated(learned, dim, new.size)
                continue
            index, repeated = self._widened(small, large, old, new)
            learned = learned.index_select(dim, index.to(value.device))
            repeats = repeats | repeated.to(value.device).view(along)
        if large.formula is not None:
            learned = learned + large.formula.to(value).reshape(learned.shape)
        elif len(large.shape) > 1:
            learned = learned + self.fresh_share * fresh.to(value).reshape(learned.shape) * repeats
        return learned.reshape(large.shape)

    def _widened(self, small: _Part, large: _Part, old: Axis, new: Axis) -> tuple[Tensor, Tensor]:
        """Which feature of the small model each of the large one begins as, and whether that one is there already."""
        shapes = f"{large.name!r} is {small.shape} in the checkpoint and {large.shape} in the model"
        if new.kind == FIXED or new.size < old.size:
            raise UserError(
                f"{shapes}: {'how it would grow is not known' if new.kind == FIXED else 'it cannot shrink'}"
            )
        if self.width is None:
            raise UserError(f"{shapes}: give init_width=tile or init_width=centre")
        blocks = self.stream[2] if (old.size, new.size) == self.stream[:2] else 1
        there, wanted = old.size // blocks, new.size // blocks
        place = torch.arange(wanted) - (0 if self.width == "tile" else (wanted - there) // 2)
        index = place % there + there * torch.arange(blocks)[:, None]
        return index.flatten(), ((place < 0) | (place >= there)).repeat(blocks)

    def _stretches(self, large: _Part, old: int, new: int) -> bool:
        """Whether a table of positions is stretched; else it repeats, or is cut."""
        if self.positions is None or (self.positions == "cut") != (new < old):
            ways = "init_positions=cut" if new < old else "init_positions=tile or init_positions=interpolate"
            raise UserError(f"{large.name!r} has {old} positions in the checkpoint and {new} in the model: give {ways}")
        return self.positions == "interpolate" or large.formula is not None  # a change to a curve is a curve


def _stretched(table: Tensor, dim: int, rows: int) -> Tensor:
    """Linear interpolation along an axis, to which its two ends stay ends."""
    there = table.shape[dim]
    at = torch.linspace(0, there - 1, rows, dtype=torch.float64, device=table.device)
    low = at.floor().long()
    share = (at - low).to(table.dtype).view([-1 if other == dim else 1 for other in range(table.dim())])
    return torch.lerp(table.index_select(dim, low), table.index_select(dim, (low + 1).clamp(max=there - 1)), share)


def _repeated(table: Tensor, dim: int, rows: int) -> Tensor:
    """Entry i along an axis is entry i mod n; the first ones where there are fewer."""
    return table.index_select(dim, torch.arange(rows, device=table.device) % table.shape[dim])


def _layer(layer: int, small: int, large: int, depth: str | None) -> int:
    """The layer of the small model that a layer of the large one begins as."""
    return layer % small if depth == "stack" else layer * small // large


def _family(model: Model) -> str:
    return type(model).__name__
