"""``arch=deberta``: its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cramming.architectures.configs.base import ArchConfig
from cramming.errors import UserError
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from torch import nn

TERMS = ("c2p", "p2c")
NONLINEARITIES = ("gelu", "gelu_tanh", "relu", "silu", "tanh")


@register("arch", "deberta")
@dataclass
class DebertaConfig(ArchConfig):
    """DeBERTa's second and third version (https://arxiv.org/abs/2006.03654, https://arxiv.org/abs/2111.09543).

    Attention between content and content, content and distance, distance and content; no positions are added to the
    embeddings. The defaults are v3-base. It is trained here by predicting masked tokens, as v2 was; v3's weights come
    from replaced-token detection, which is another objective. The enhanced mask decoder of the first paper, which adds
    absolute positions before the last layers, is not part of transformers' model and so not of this one.

    Raises:
        UserError: sizes that no model can have; ``build``: sequences longer than ``max_positions``.
    """

    kind: str = "deberta"
    name: str = "deberta"
    batch_size: int = 8192
    vocab_size: int = 128100
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    nonlin: str = "gelu"
    max_positions: int = 512  # also the distance at which the last bucket ends
    position_buckets: int = 256  # distances told apart on each side: exact up to half of it, then in powers; 0: all
    position_terms: list[str] = field(default_factory=lambda: ["p2c", "c2p"])  # besides content to content
    share_attention_key: bool = True  # distances go through the projections of the content
    relative_norm: bool = True  # a norm over the table of distances
    absolute_positions: bool = False  # added to the embeddings as well
    conv_kernel: int = 0  # v2-xlarge: a convolution of this width beside the first layer; 0: none
    conv_nonlin: str = "gelu"
    token_types: int = 0
    legacy_head: bool = False  # transformers' own earlier head, which the released weights do not fill
    norm_eps: float = 1e-7
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("layers", "hidden", "heads", "intermediate", "max_positions")
        self._heads_divide_hidden(self.heads, self.hidden)
        self._one_of("nonlin", NONLINEARITIES)
        self._one_of("conv_nonlin", NONLINEARITIES)
        for term in self.position_terms:
            if term not in TERMS:
                raise UserError(f"arch.position_terms has {term!r}, which is unknown{nearest(term, TERMS)}")
        for key in ("position_buckets", "conv_kernel", "token_types"):
            if getattr(self, key) < 0:
                raise UserError(f"arch.{key}={getattr(self, key)} is too small: it must be at least 0")
        if self.conv_kernel and self.conv_kernel % 2 == 0:
            raise UserError(f"arch.conv_kernel={self.conv_kernel} has no middle: make it odd")
        if 0 < self.position_buckets < 4:
            raise UserError(f"arch.position_buckets={self.position_buckets} is too small: give 4 or more, or 0")
        if self.position_buckets // 2 >= self.max_positions - 1:
            raise UserError(
                f"arch.position_buckets={self.position_buckets} leaves no distances to put together below "
                f"arch.max_positions={self.max_positions}: give less, or 0"
            )

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        positions = self._position_rows(seq_length, self.max_positions)
        from cramming.architectures.deberta import build

        return build(self, vocab_size, positions, labels)
