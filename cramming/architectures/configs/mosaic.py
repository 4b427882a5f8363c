"""``arch=mosaic``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn

ANY_LENGTH = 2**31 - 1  # tokens: distances are worked out as they come, so nothing bounds a sequence but memory


@register("arch", "mosaic")
@dataclass
class MosaicConfig(ArchConfig):
    """MosaicBERT (https://arxiv.org/abs/2312.17482): post-norm, ALiBi for positions, GeGLU, unpadded throughout.

    Sequences of any length fit, in evaluation also longer ones than it was trained on.

    Raises:
        UserError: sizes that no model can have.
    """

    FREE: ClassVar[tuple[str, ...]] = (*ArchConfig.FREE, "classifier_dropout")

    kind: str = "mosaic"
    name: str = "mosaic"
    batch_size: int = 4096
    vocab_size: int = 30522
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072  # values in the feed-forward part; with glu as many gates beside them
    glu: bool = True  # gelu(gates) * values (https://arxiv.org/abs/2002.05202); false: BERT's feed-forward part
    pad_vocab_to: int = 8  # rows of the vocabulary are filled up to a multiple of this, which matrix units like
    low_precision_norm: bool = True  # norms' weights in the type of the passes; false: in float32 whatever that is
    token_types: int = 2  # pretraining uses type 0 only
    classifier_dropout: Optional[float] = None  # noqa: UP045 (OmegaConf reads this form)  (None: as ``dropout``)
    norm_eps: float = 1e-12
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("layers", "hidden", "heads", "intermediate", "pad_vocab_to", "token_types")
        self._probabilities("classifier_dropout")
        self._heads_divide_hidden(self.heads, self.hidden)

    @property
    def norm(self) -> str:
        """The norms' name in ``layers/norm.py``."""
        return "layernorm" if self.low_precision_norm else "layernorm_float32"

    def rows(self, vocab_size: int) -> int:
        """Rows of the vocabulary's matrices."""
        return self._padded(vocab_size, self.pad_vocab_to)

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        from cramming.architectures.mosaic import Mosaic, MosaicClassifier

        rows = self.rows(vocab_size)
        return Mosaic(self, rows) if labels is None else MosaicClassifier(self, rows, labels)
