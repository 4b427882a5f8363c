"""Architectures: their configs (registered by importing this package, without torch), models and importers."""

from typing import TYPE_CHECKING, Any

from cramming.architectures.configs import ArchConfig, BertConfig, CrammedConfig

if TYPE_CHECKING:
    from cramming.architectures.reference import dense_outputs, from_reference

__all__ = ["ArchConfig", "BertConfig", "CrammedConfig", "dense_outputs", "from_reference"]


def __getattr__(name: str) -> Any:
    """``from_reference`` and ``dense_outputs`` on first use: they need torch, which ``--help`` must not import."""
    if name in ("dense_outputs", "from_reference"):
        from cramming.architectures import reference

        return getattr(reference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
