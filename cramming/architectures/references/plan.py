"""What an importer or exporter needs to know of a family's checkpoints; the family makes it from its own config.

A family's file registers three functions: ``family`` (their config -> ``Plan``), ``detector`` (is this checkpoint of
that family?) and, for each kind of architecture of ours that it can express, ``writer`` (our options -> their config);
and ``completer`` where its configs leave out what the shapes of tensors tell. An exporter inverts ``Plan.sources``, so
that reading and writing cannot disagree.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.architectures.configs.base import ArchConfig
from cramming.errors import UserError

MLM, CLASSIFICATION, REGRESSION = "mlm", "classification", "regression"
HEADS = (MLM, CLASSIFICATION, REGRESSION)


@dataclass(frozen=True)
class Source:
    """Where a parameter of ours comes from: their tensors joined along the first axis, equal parts of it.

    Attributes:
        names: their tensors.
        order: our row i is row ``order[i]`` of the joined tensor; None: as they are.
        spare: how many of the last rows their tensor may lack, being those of a vocabulary filled up to a round number.
        filler: what such rows are made of.
        unread: how many rows of theirs, before the first of ours, nothing reads.
    """

    names: tuple[str, ...]
    order: Tensor | None = None
    spare: int = 0
    filler: float = 0.0
    unread: int = 0

    def apart(self, ours: Tensor) -> dict[str, Tensor]:
        """Their tensors, each of its own memory, from our parameter: what joins and orders them, inverted."""
        rows = ours
        if self.order is not None:
            rows = torch.empty_like(ours).index_copy_(0, self.order.to(ours.device), ours)
        parts = rows.chunk(len(self.names)) if rows.dim() else [rows]
        if self.unread:
            parts = [torch.cat((part.new_zeros(self.unread, *part.shape[1:]), part)) for part in parts]
        return {name: part.clone().contiguous() for name, part in zip(self.names, parts, strict=True)}


@dataclass(frozen=True)
class Plan:
    """How one checkpoint becomes a model of ours.

    Attributes:
        arch: our options.
        vocab_size: V.
        positions: the longest sequence, in tokens.
        padding_id: the token whose lookup gives no gradient, which no tensor tells; None: there is none.
        sources: our parameter -> where it comes from.
        classifier: their tensor whose rows are the labels.
        tied: duplicate -> the tensor it must equal.
        buffers: derived tensor -> what it must be, given the one there.
        constants: tensor of theirs that nothing of ours stands for -> what it must be, and is written as.
        ignored: regular expressions of tensors that hold no weights and whose values do not matter.
        other_heads: regular expressions of weights that the wanted head has no use for, such as those of next-sentence
            prediction. An importer may leave them out, and says so; ``from_reference`` takes them for left over.
    """

    arch: ArchConfig
    vocab_size: int
    positions: int
    padding_id: int | None
    sources: Mapping[str, Source]
    classifier: str
    tied: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()


Planner = Callable[[Mapping[str, Any], str], Plan]  # their config, kind of head
Detector = Callable[[Mapping[str, Any], Collection[str]], bool]  # their config, names of their tensors
Writer = Callable[[ArchConfig, int, int], tuple[str, dict[str, Any]]]  # our options, V, longest sequence in tokens
Shapes = Mapping[str, tuple[int, ...]]  # of their tensors, by name
Completer = Callable[[Mapping[str, Any], Shapes], dict[str, Any]]
FAMILIES: dict[str, Planner] = {}
DETECTORS: dict[str, Detector] = {}
WRITERS: dict[str, Writer] = {}
COMPLETERS: dict[str, Completer] = {}


def family(name: str) -> Callable[[Planner], Planner]:
    """Decorator: make a planner available to ``from_reference`` under ``name``."""

    def register(planner: Planner) -> Planner:
        FAMILIES[name] = planner
        return planner

    return register


def detector(name: str) -> Callable[[Detector], Detector]:
    """Decorator: ``f(config, names)`` says whether a checkpoint is of the family ``name``.

    ``config`` is its ``config.json``, ``{}`` where it has none; ``names`` are its tensors', without the prefixes of the
    containers they came in. At most one family may say yes to a checkpoint.
    """

    def register(detect: Detector) -> Detector:
        DETECTORS[name] = detect
        return detect

    return register


def writer(kind: str) -> Callable[[Writer], Writer]:
    """Decorator: ``f(arch, vocab_size, positions)`` gives, for an architecture of ours of that ``kind``, the family
    whose planner reads it back and the config that planner reads, which is what goes into ``config.json``.

    Raises, when called:
        UserError: the family cannot express an option.
    """

    def register(write: Writer) -> Writer:
        WRITERS[kind] = write
        return write

    return register


def completer(name: str) -> Callable[[Completer], Completer]:
    """Decorator: ``f(config, shapes)`` gives a config of the family ``name`` with what it lacks and tensors tell."""

    def register(complete: Completer) -> Completer:
        COMPLETERS[name] = complete
        return complete

    return register


def completed(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """A config of the family ``name``, completed from its checkpoint's tensors if the family knows how."""
    if name not in COMPLETERS:
        return config
    return COMPLETERS[name](config, {tensor: tuple(value.shape) for tensor, value in tensors.items()})


def with_padding(name: str, config: Mapping[str, Any], padding_id: int) -> dict[str, Any]:
    """A config of the family ``name`` for a tokenizer with another padding id.

    Where a family counts positions from that id, its table has as many rows more as the id is higher.
    """
    changed = {**config, "pad_token_id": padding_id}
    if any(source.unread for source in FAMILIES[name](config, MLM).sources.values()):
        changed["max_position_embeddings"] += padding_id - config["pad_token_id"]
    return changed


def entry(config: Mapping[str, Any], path: str) -> Any:
    """A config's value at a dotted path.

    Raises:
        UserError: there is none.
    """
    found: Any = config
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            raise UserError(f"the reference's config lacks {path!r}")
        found = found[key]
    return found


def entry_or(config: Mapping[str, Any], path: str, default: Any) -> Any:
    """A config's value at a dotted path, or the default where there is none."""
    try:
        return entry(config, path)
    except UserError:
        return default


def check_values(name: str, config: Mapping[str, Any], required: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse options whose mathematics we do not have.

    Args:
        name: the family, for the message.
        config: the reference's.
        required: dotted path -> accepted values; a missing key means the first.

    Raises:
        UserError: another value.
    """
    for path, accepted in required.items():
        value = entry_or(config, path, accepted[0])
        if value not in accepted:
            raise UserError(f"{name} with {path}={value!r} is not supported: only {accepted[0]!r} is")
