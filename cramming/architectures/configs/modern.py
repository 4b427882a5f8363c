"""``arch=modern`` and ``arch=neobert``: their options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.errors import UserError
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from torch import nn

NORMS = ("layernorm", "rmsnorm")
NONLINEARITIES = ("gelu", "gelu_tanh", "relu", "silu")
HEAD_NONLINEARITIES = (*NONLINEARITIES, "tanh")
HEADS = ("transform", "none")
INITS = ("full_megatron", "mitchell", "fan_in", "normal", "uniform")
POOLERS = ("zero_index", "avg", "max")


@dataclass
class PooledHeadConfig:
    """How a sequence becomes a decision in fine-tuning: pooled, dense, nonlinearity, norm, one output for each label.

    Raises:
        UserError: a pooler or nonlinearity that does not exist, an impossible probability.
    """

    pooler: str = "zero_index"  # first token, mean or maximum over the sequence's tokens
    nonlin: str = "gelu"
    bias: bool = False  # of the dense layer
    norm: bool = True  # of the kind, and with or without a bias, as the encoder's
    classifier_dropout: float = 0.0  # before the last layer, in training mode

    def __post_init__(self) -> None:
        for key, known in (("pooler", POOLERS), ("nonlin", HEAD_NONLINEARITIES)):
            value = getattr(self, key)
            if value not in known:
                raise UserError(f"arch.classification_head.{key}={value} is unknown{nearest(value, known)}")
        if not 0.0 <= self.classifier_dropout < 1.0:
            raise UserError(
                f"arch.classification_head.classifier_dropout={self.classifier_dropout} is not a probability below 1: "
                f"choose it from [0, 1)"
            )


@register("arch", "modern")
@dataclass
class ModernConfig(ArchConfig):
    """ModernBERT (https://arxiv.org/abs/2412.13663): pre-norm, rotary positions, gates, most layers see a window only.

    The defaults are its base size. NeoBERT (https://arxiv.org/abs/2502.19587) is a configuration of it. Sequences of
    any length fit, in evaluation also longer ones than it was trained on.

    Raises:
        UserError: an option that does not exist, sizes that no model can have.
    """

    FREE: ClassVar[tuple[str, ...]] = (
        *ArchConfig.FREE, "init", "init_cutoff", "theta", "local_theta", "classification_head"
    )  # fmt: skip

    kind: str = "modern"
    name: str = "modern"
    batch_size: int = 4608
    vocab_size: int = 50368
    separate_documents: bool = True
    layers: int = 22
    hidden: int = 768
    heads: int = 12
    intermediate: int = 1152  # values in the feed-forward part; as many gates are beside them
    nonlin: str = "gelu"  # of the gates
    # Which keys a token sees: in every n-th layer, the first included, all of them; in the others its neighbours.
    global_every: int = 3
    window: int = 64  # neighbours on each side; the published 128 counts both sides
    theta: float = 160000.0  # base of the rotation by position where all keys are seen
    local_theta: float = 10000.0  # the same where neighbours are
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    embedding_norm: bool = True  # then the first layer's attention has none of its own
    attention_bias: bool = False
    feedforward_bias: bool = False
    head: str = "transform"  # before the vocabulary: dense, nonlinearity, norm; or none
    head_nonlin: str = "gelu"
    head_bias: bool = False
    decoder_bias: bool = True
    tie_weights: bool = True  # the embedding matrix is the vocabulary projection
    # Dropout beside ``dropout`` (of embeddings and of both sublayers' outputs) and ``attention_dropout``.
    embedding_dropout: Optional[float] = None  # noqa: UP045 (OmegaConf reads this form)  (None: as ``dropout``)
    attention_output_dropout: Optional[float] = None  # noqa: UP045  (None: as ``dropout``)
    feedforward_dropout: float = 0.0  # between the gates and the second matrix
    init: str = "full_megatron"
    init_std: float = 0.02  # of full_megatron and normal; for uniform the bound
    init_cutoff: float = 2.0  # full_megatron draws again what is further out, in standard deviations
    classification_head: PooledHeadConfig = field(default_factory=PooledHeadConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("layers", "hidden", "heads", "intermediate", "global_every", "window")
        self._probabilities("embedding_dropout", "attention_output_dropout", "feedforward_dropout")
        self._one_of("nonlin", NONLINEARITIES)
        self._one_of("norm", NORMS)
        self._one_of("head", HEADS)
        self._one_of("head_nonlin", HEAD_NONLINEARITIES)
        self._one_of("init", INITS)
        self._heads_divide_hidden(self.heads, self.hidden)
        if self.hidden // self.heads % 2:
            raise UserError(
                f"arch.hidden={self.hidden} with arch.heads={self.heads} gives heads of odd width "
                f"{self.hidden // self.heads}, but rotation turns pairs: change either"
            )
        for key in ("theta", "local_theta", "init_cutoff"):
            if not getattr(self, key) > 0:
                raise UserError(f"arch.{key}={getattr(self, key)} must be above 0")

    def sees_all(self, layer: int) -> bool:
        """Whether a layer attends to the whole sequence."""
        return layer % self.global_every == 0

    @property
    def embeddings_drop_out(self) -> float:
        """Dropout probability of the embeddings."""
        return self.dropout if self.embedding_dropout is None else self.embedding_dropout

    @property
    def attention_outputs_drop_out(self) -> float:
        """Dropout probability of what attention adds to a token."""
        return self.dropout if self.attention_output_dropout is None else self.attention_output_dropout

    @property
    def drops_out(self) -> bool:
        others = (self.embeddings_drop_out, self.attention_outputs_drop_out, self.feedforward_dropout)
        return super().drops_out or any(others)

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        from cramming.architectures.modern import Modern, ModernClassifier

        if labels is None:
            return Modern(self, vocab_size, seq_length)
        return ModernClassifier(self, vocab_size, seq_length, labels)
