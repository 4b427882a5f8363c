"""What an importer needs to know of a checkpoint; a family makes it from the reference's own config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """

    names: tuple[str, ...]
    order: Tensor | None = None


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
    """

    arch: ArchConfig
    vocab_size: int
    positions: int
    padding_id: int | None
    sources: Mapping[str, Source]
    classifier: str
    tied: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


Planner = Callable[[Mapping[str, Any], str], Plan]  # their config, kind of head
FAMILIES: dict[str, Planner] = {}


def family(name: str) -> Callable[[Planner], Planner]:
    """Decorator: make a planner available to ``from_reference`` under ``name``."""

    def register(planner: Planner) -> Planner:
        FAMILIES[name] = planner
        return planner

    return register


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
