"""``arch=crammed``: its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.errors import UserError
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from torch import nn

POSITIONS = ("scaled_sinusoidal", "sinusoidal", "learned", "none")
NORMS = ("layernorm", "rmsnorm", "scalenorm", "unitnorm")
NORM_SCHEMES = ("pre", "post", "sandwich")
NONLINEARITIES = ("gelu", "gelu_tanh", "relu", "silu", "mish", "elu", "tanh", "sigmoid")
HEADS = ("linear", "transform", "none")
INITS = ("normal", "small", "megatron", "wang", "deepnorm")
POOLERS = ("zero_index", "avg", "max", "lse")


@dataclass
class ClassificationHeadConfig:
    """How a sequence becomes a decision in fine-tuning: pooled, an optional dense layer, one output for each label.

    Raises:
        UserError: a pooler or nonlinearity that does not exist, an impossible size or probability.
    """

    pooler: str = "avg"  # first token, mean, maximum or log-sum-exp over the sequence's tokens
    pool_padding: bool = False  # pool over padding as well, as the earlier systems did
    include_ff_layer: bool = True  # a dense layer between pooling and nonlinearity
    head_dim: int = 1024  # its width
    nonlin: str = "tanh"
    classifier_dropout: float = 0.1  # before the last layer, in training mode

    def __post_init__(self) -> None:
        for key, known in (("pooler", POOLERS), ("nonlin", NONLINEARITIES)):
            value = getattr(self, key)
            if value not in known:
                raise UserError(f"arch.classification_head.{key}={value} is unknown{nearest(value, known)}")
        if self.head_dim < 1:
            raise UserError(f"arch.classification_head.head_dim={self.head_dim} must be at least 1")
        if not 0.0 <= self.classifier_dropout < 1.0:
            raise UserError(
                f"arch.classification_head.classifier_dropout={self.classifier_dropout} is not a probability below 1: "
                f"choose it from [0, 1)"
            )


@register("arch", "crammed")
@dataclass
class CrammedConfig(ArchConfig):
    """The family of "Cramming" (https://arxiv.org/abs/2212.14034), which "No Train No Gain" trained
    (https://arxiv.org/abs/2307.06440). The defaults are the latter's 16-layer encoder, there called bert-c5.

    Raises:
        UserError: an option that does not exist, sizes or combinations that no model can have; ``build``: sequences
            longer than the position table.
    """

    FREE: ClassVar[tuple[str, ...]] = (*ArchConfig.FREE, "init", "classification_head")

    kind: str = "crammed"
    name: str = "crammed"
    batch_size: int = 1536
    vocab_size: int = 32768
    layers: int = 16
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072  # width of the feed-forward part's first matrix; a gate takes half of it
    # Positions: added to the embeddings, and turned into queries and keys.
    position: str = "scaled_sinusoidal"
    # Rows of the position table; None: as many as the data's sequences have.
    max_positions: Optional[int] = None  # noqa: UP045 (OmegaConf reads this form)
    rotary: bool = False  # rotate queries and keys by their position (https://arxiv.org/abs/2104.09864)
    # Width of the embeddings where it is not ``hidden``, which a matrix then leads to (https://arxiv.org/abs/1909.11942).
    embedding_dim: Optional[int] = None  # noqa: UP045
    embedding_norm: bool = True
    embedding_dropout: Optional[float] = None  # noqa: UP045  (None: as ``dropout``)
    norm: str = "layernorm"
    norm_eps: float = 1e-12
    norm_scheme: str = "pre"
    final_norm: bool = True
    deepnorm_scaling: bool = False  # residuals times (2 layers)^(1/4) (https://arxiv.org/abs/2203.00555)
    nonlin: str = "gelu"
    glu: bool = True  # nonlin(second half) * first half (https://arxiv.org/abs/2002.05202)
    ffn_layer_frequency: int = 1  # a feed-forward part in every n-th layer only
    bias: bool = False  # of linear layers other than the next two
    qkv_bias: bool = False
    decoder_bias: bool = False
    head: str = "linear"  # before the vocabulary: linear, transform (as BERT: linear, nonlinearity, norm) or none
    tie_weights: bool = True  # the embedding matrix is the vocabulary projection
    attend_padding: bool = False  # let padding be attended to, as the earlier study's fused attention did
    init: str = "normal"
    init_std: float = 0.02  # of init=normal
    classification_head: ClassificationHeadConfig = field(default_factory=ClassificationHeadConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one(
            "layers", "hidden", "heads", "intermediate", "max_positions", "embedding_dim", "ffn_layer_frequency"
        )
        self._probabilities("embedding_dropout")
        self._one_of("position", POSITIONS)
        self._one_of("norm", NORMS)
        self._one_of("norm_scheme", NORM_SCHEMES)
        self._one_of("nonlin", NONLINEARITIES)
        self._one_of("head", HEADS)
        self._one_of("init", INITS)
        self._heads_divide_hidden(self.heads, self.hidden)
        if self.glu and self.intermediate % 2:
            raise UserError(f"arch.intermediate={self.intermediate} cannot be halved by arch.glu=true: make it even")
        if self.rotary and self.hidden // self.heads % 2:
            raise UserError(
                f"arch.rotary=true turns pairs, but arch.hidden={self.hidden} with arch.heads={self.heads} gives heads "
                f"of odd width {self.hidden // self.heads}: change either"
            )
        if self.position.endswith("sinusoidal") and self.embedding_width % 2:
            raise UserError(
                f"arch.position={self.position} needs an even width of embeddings, not {self.embedding_width}: use "
                f"arch.position=learned or change the width"
            )
        if self.head == "none" and self.embedding_width != self.hidden:
            raise UserError(
                f"arch.head=none with arch.embedding_dim={self.embedding_dim} leaves nothing to lead from arch.hidden="
                f"{self.hidden} back to it: use arch.head=linear"
            )

    @property
    def embedding_width(self) -> int:
        """Width of the embedding and vocabulary matrices."""
        return self.hidden if self.embedding_dim is None else self.embedding_dim

    @property
    def embeddings_drop_out(self) -> float:
        """Dropout probability of the embeddings."""
        return self.dropout if self.embedding_dropout is None else self.embedding_dropout

    @property
    def drops_out(self) -> bool:
        return super().drops_out or self.embeddings_drop_out > 0

    def shortened(self, layers: int) -> ArchConfig:
        if self.deepnorm_scaling:
            raise UserError(
                f"{layers} of {self.layers} layers are no model of their own with arch.deepnorm_scaling=true, which "
                "scales residuals by the number of layers"
            )
        return super().shortened(layers)

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        positions = self._position_rows(seq_length, self.max_positions)
        from cramming.architectures.crammed import Crammed, CrammedClassifier

        if labels is None:
            return Crammed(self, vocab_size, positions)
        return CrammedClassifier(self, vocab_size, positions, labels)
