"""What systems that descend from BERT call the parameters of its encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, zeros

from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.references.plan import MLM, Source, entry

CONFIG = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "token_types",
    "layer_norm_eps": "norm_eps",
    "initializer_range": "init_std",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


@dataclass(frozen=True)
class Dialect:
    """One system's names; those of parts of a layer are what follows ``<model>.encoder.layer.<i>.``.

    Attributes:
        model: of the encoder within a model with a head.
        attention_norm: the norm of the attention.
        feedforward_norm: the norm of the feed-forward part.
        final_norm: what follows ``<model>.``, where there is a norm after the last layer.
        expand: the first matrix of the feed-forward part.
        head: dense layer, norm and bias of the masked-language-model head.
        classifier: dense layer and last layer of the classification head.
    """

    model: str
    attention_norm: str = "attention.output.LayerNorm"
    feedforward_norm: str = "output.LayerNorm"
    final_norm: str = ""
    expand: str = "intermediate.dense"
    head: tuple[str, str, str] = (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
    )
    classifier: tuple[str, str] = ("bert.pooler.dense", "classifier")

    def sources(self, arch: BertConfig, head: str, *, unread: int = 0) -> dict[str, Source]:
        """Where each of our parameters comes from; ``unread``: rows of the position table before our first."""
        inputs = f"{self.model}.embeddings"
        table = Source((f"{inputs}.position_embeddings.weight",), unread=unread)
        sources = {
            "embeddings.word.weight": Source((f"{inputs}.word_embeddings.weight",)),
            "embeddings.position.weight": table,
            "embeddings.token_type.weight": Source((f"{inputs}.token_type_embeddings.weight",)),
        }
        if arch.embedding_norm:
            sources |= linear("embeddings.norm", f"{inputs}.LayerNorm")
        for i in range(arch.layers):
            ours, theirs = f"blocks.{i}", f"{self.model}.encoder.layer.{i}"
            attended = (f"{theirs}.attention.self.{part}" for part in ("query", "key", "value"))
            sources |= linear(f"{ours}.attention.qkv", *attended)
            sources |= linear(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
            sources |= linear(f"{ours}.attention_norm", f"{theirs}.{self.attention_norm}")
            sources |= linear(f"{ours}.feedforward.expand", f"{theirs}.{self.expand}")
            sources |= linear(f"{ours}.feedforward.contract", f"{theirs}.output.dense")
            sources |= linear(f"{ours}.feedforward_norm", f"{theirs}.{self.feedforward_norm}")
        if arch.norm_scheme == "pre":
            sources |= linear("final_norm", f"{self.model}.{self.final_norm}")
        if head != MLM:
            dense, classifier = self.classifier
            return sources | linear("head.pooler", dense) | linear("head.classifier", classifier)
        dense, norm, bias = self.head
        sources |= linear("head.dense", dense) | linear("head.norm", norm)
        if arch.decoder_bias:
            sources["head.bias"] = Source((bias,))
        return sources

    def without_bias(self, arch: BertConfig, vocab_size: int, head: str) -> dict[str, Tensor]:
        """The bias of the logits, zero, where ours have none."""
        return {} if arch.decoder_bias or head != MLM else {self.head[2]: zeros(vocab_size)}

    def tied(self, decoder: str) -> dict[str, str]:
        """What a checkpoint may hold twice; ``decoder``: their vocabulary projection."""
        return {
            f"{decoder}.weight": f"{self.model}.embeddings.word_embeddings.weight",
            f"{decoder}.bias": self.head[2],
        }


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our options by their config.

    Raises:
        UserError: a key that is missing.
    """
    return {ours: entry(config, theirs) for theirs, ours in CONFIG.items()} | {
        "decoder_bias": config.get("decoder_bias", True)  # a key of ours: their classes always have one
    }


def config_of(arch: BertConfig, vocab_size: int, positions: int) -> dict[str, Any]:
    """Their config of our options, but for the name of the model."""
    return {
        **{theirs: getattr(arch, ours) for theirs, ours in CONFIG.items()},
        **{name: accepted[0] for name, accepted in REQUIRED.items()},
        **({} if arch.decoder_bias else {"decoder_bias": False}),
        "vocab_size": arch.rows(vocab_size),
        "max_position_embeddings": positions,
    }


def linear(ours: str, *theirs: str) -> dict[str, Source]:
    """Weight and bias of a layer or a norm of ours, each of theirs joined."""
    return {f"{ours}.{part}": Source(tuple(f"{name}.{part}" for name in theirs)) for part in ("weight", "bias")}
