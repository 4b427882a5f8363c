"""``arch=m2``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.errors import UserError
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn


@register("arch", "m2")
@dataclass
class M2Config(ArchConfig):
    """Monarch Mixer BERT (https://arxiv.org/abs/2310.12109): long convolutions for attention, block-diagonal layers.

    The defaults are the 80M model's (https://github.com/HazyResearch/m2).

    Raises:
        UserError: sizes that no model can have; ``build``: sequences longer than the position table.
    """

    FREE: ClassVar[tuple[str, ...]] = (
        *ArchConfig.FREE,
        "filter_frequency",
        "filter_lr",
        "filter_weight_decay",
        "position_lr",
        "identical_layers",
        "pool_all",
        "classifier_dropout",
    )

    kind: str = "m2"
    name: str = "m2"
    batch_size: int = 4096
    vocab_size: int = 30522
    layers: int = 12
    hidden: int = 768
    intermediate: int = 3072  # width of the feed-forward part's gated middle
    blocks: int = 4  # of the feed-forward part's matrices
    # Rows of the position table; None: as many as the data's sequences have.
    max_positions: Optional[int] = None  # noqa: UP045 (OmegaConf reads this form)
    # Length of the filters; None: that of the position table. Shorter sequences use the first taps. In longer ones a
    # token sees so many to either side: what a filter does further away it was never trained for.
    filter_length: Optional[int] = None  # noqa: UP045
    filter_order: int = 128  # width of the networks that generate filters
    filter_features: int = 5  # of a position, which they start from: odd
    filter_frequency: float = 10.0  # of their sines, to begin with
    bidirectional: bool = True  # a filter backward in time beside the one forward
    residual_convolution: bool = True  # a second long convolution, of the mixer's input itself
    training_additions: bool = False  # a norm before the mixer, as the released 80M model has (and no other)
    mask_padding: bool = True  # false: padding is text to the convolutions, as released models were trained
    pool_all: bool = False  # classify by the mean over tokens, not by the first one
    pad_vocab_to: int = 8  # rows of the vocabulary are filled up to a multiple of this, which matrix units like
    token_types: int = 2  # pretraining uses type 0 only
    norm_eps: float = 1e-12
    init_std: float = 0.02
    # Start with the same short convolutions, skips and feed-forward matrices in every layer, as the published code does
    # by copying one layer.
    identical_layers: bool = False
    # Learning rates, at the schedule's factor 1, and a weight decay of their own for the networks that generate filters
    # and for the positions these start from; None: as everything else. Positions and frequencies are decayed where
    # norms are. Published code asks for 1e-3, 0.1 and 1e-5 and loses them before training: released models are without.
    # Here adamw multiplies decay by the rate: 0.1 takes 1e-4 of a weight a step. Their optimizer does not: its 0.1
    # would have taken a tenth of every filter at every step.
    filter_lr: Optional[float] = None  # noqa: UP045
    filter_weight_decay: Optional[float] = None  # noqa: UP045
    position_lr: Optional[float] = None  # noqa: UP045
    # Before a classifier; None: as ``dropout``.
    classifier_dropout: Optional[float] = None  # noqa: UP045

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one(
            "layers", "hidden", "intermediate", "blocks", "max_positions", "filter_length", "filter_order",
            "pad_vocab_to", "token_types",
        )  # fmt: skip
        self._probabilities("classifier_dropout")
        for key in ("hidden", "intermediate"):
            size = getattr(self, key)
            if size % self.blocks:
                fitting = max(self.blocks, size - size % self.blocks)
                raise UserError(f"arch.blocks={self.blocks} does not divide arch.{key}={size}: make it {fitting}, say")
        if self.filter_features < 3 or self.filter_features % 2 == 0:
            raise UserError(
                f"arch.filter_features={self.filter_features} must be odd and at least 3: place, cosines and sines"
            )
        if self.attention_dropout:
            raise UserError(f"arch.attention_dropout={self.attention_dropout}: m2 has no attention; use arch.dropout")
        for key in ("filter_lr", "filter_weight_decay", "position_lr"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"arch.{key}={value} must be a finite number from 0")

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        positions = self._position_rows(seq_length, self.max_positions)
        from cramming.architectures.m2 import M2, M2Classifier

        rows = self._padded(vocab_size, self.pad_vocab_to)
        return M2(self, rows, positions) if labels is None else M2Classifier(self, rows, positions, labels)
