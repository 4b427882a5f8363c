"""``arch=albert``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.errors import UserError
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn

NONLINEARITIES = ("gelu", "gelu_tanh", "relu", "silu", "tanh")


@register("arch", "albert")
@dataclass
class AlbertConfig(ArchConfig):
    """ALBERT as published (https://arxiv.org/abs/1909.11942): BERT with one layer applied over and over, and narrow
    embeddings. The defaults are the second release's base model.

    Depth is the number of applications: ``active_layers`` of n entries apply the layer n times, so growing and dropping
    save time as elsewhere, but all depths train the same weights. With several groups, application i is of group
    i G // L.

    Raises:
        UserError: sizes that no model can have; ``build``: sequences longer than the position table.
    """

    kind: str = "albert"
    name: str = "albert"
    batch_size: int = 4096
    vocab_size: int = 30000
    layers: int = 12  # applications
    groups: int = 1  # of weights: the first L / G applications share the first group's, and so on
    layers_in_group: int = 1  # different layers that one application goes through
    embedding_dim: int = 128
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    nonlin: str = "gelu_tanh"
    # Rows of the position table; None: as many as the data's sequences have.
    max_positions: Optional[int] = None  # noqa: UP045 (OmegaConf reads this form)
    token_types: int = 2  # pretraining uses type 0 only
    norm_eps: float = 1e-12
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one(
            "layers", "groups", "layers_in_group", "embedding_dim", "hidden", "heads", "intermediate", "max_positions",
            "token_types",
        )  # fmt: skip
        self._heads_divide_hidden(self.heads, self.hidden)
        self._one_of("nonlin", NONLINEARITIES)
        if self.groups > self.layers:
            raise UserError(f"arch.groups={self.groups} leaves groups that are never applied: give at most arch.layers")

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        positions = self._position_rows(seq_length, self.max_positions)
        from cramming.architectures.albert import build

        return build(self, vocab_size, positions, labels)
