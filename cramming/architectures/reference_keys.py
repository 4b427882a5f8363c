"""How released checkpoints name what we name: one ``Family`` each, as data, so that it reads in both directions.

A tensor of ours is the concatenation along its first axis of the reference's tensors listed for it, equal parts of it
where there are several. ``{i}`` stands for the layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, arange, zeros

from cramming.architectures.config import ArchConfig, BertConfig

Names = Mapping[str, tuple[str, ...]]
MLM, CLASSIFICATION, REGRESSION = "mlm", "classification", "regression"
HEADS = (MLM, CLASSIFICATION, REGRESSION)


@dataclass(frozen=True)
class Family:
    """One reference implementation's config keys, tensor names and conventions."""

    arch: type[ArchConfig]
    config: Mapping[str, str]  # their config key -> our field
    vocab_size: str  # their config key for V
    positions: str  # their config key for the length of the position table
    padding_id: str  # their config key for the token whose lookup gives no gradient
    required: Mapping[str, tuple[Any, ...]]  # their key -> the values whose mathematics we have; absent is the first
    encoder: Names
    layer: Names
    heads: Mapping[str, Names]  # the head's tensors by kind of head, regression under classification
    classifier: str  # their tensor whose rows are the labels
    tied: Mapping[str, str] = field(default_factory=dict)  # duplicate -> the tensor it must equal
    buffers: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # derived: what it must equal

    def names(self, layers: int, head: str) -> dict[str, tuple[str, ...]]:
        """Our parameter -> their tensors, for a model of so many layers with this head."""
        everything = dict(self.encoder)
        for i in range(layers):
            everything |= {ours.format(i=i): tuple(t.format(i=i) for t in them) for ours, them in self.layer.items()}
        return everything | dict(self.heads[MLM if head == MLM else CLASSIFICATION])


def _linear(ours: str, *theirs: str) -> Names:
    return {f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")}


_LAYER = "bert.encoder.layer.{i}"

HF_BERT = Family(
    arch=BertConfig,
    config={
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
    },
    vocab_size="vocab_size",
    positions="max_position_embeddings",
    padding_id="pad_token_id",
    required={
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    encoder={
        "embeddings.word.weight": ("bert.embeddings.word_embeddings.weight",),
        "embeddings.position.weight": ("bert.embeddings.position_embeddings.weight",),
        "embeddings.token_type.weight": ("bert.embeddings.token_type_embeddings.weight",),
        **_linear("embeddings.norm", "bert.embeddings.LayerNorm"),
    },
    layer={
        **_linear(
            "blocks.{i}.attention.qkv",
            f"{_LAYER}.attention.self.query",
            f"{_LAYER}.attention.self.key",
            f"{_LAYER}.attention.self.value",
        ),
        **_linear("blocks.{i}.attention.output", f"{_LAYER}.attention.output.dense"),
        **_linear("blocks.{i}.attention_norm", f"{_LAYER}.attention.output.LayerNorm"),
        **_linear("blocks.{i}.feedforward.expand", f"{_LAYER}.intermediate.dense"),
        **_linear("blocks.{i}.feedforward.contract", f"{_LAYER}.output.dense"),
        **_linear("blocks.{i}.feedforward_norm", f"{_LAYER}.output.LayerNorm"),
    },
    heads={
        MLM: {
            "head.bias": ("cls.predictions.bias",),
            **_linear("head.dense", "cls.predictions.transform.dense"),
            **_linear("head.norm", "cls.predictions.transform.LayerNorm"),
        },
        CLASSIFICATION: {
            **_linear("head.pooler", "bert.pooler.dense"),
            **_linear("head.classifier", "classifier"),
        },
    },
    classifier="classifier.weight",
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    buffers={
        "bert.embeddings.position_ids": lambda there: arange(there.shape[-1]).expand(there.shape),
        "bert.embeddings.token_type_ids": lambda there: zeros(there.shape),
    },
)

FAMILIES: dict[str, Family] = {"hf_bert": HF_BERT}
