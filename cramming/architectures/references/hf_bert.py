"""BERT of Hugging Face's transformers."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import arange, zeros

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.references.plan import MLM, Plan, Source, check_values, detector, entry, family, writer

Names = dict[str, tuple[str, ...]]

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


def _linear(ours: str, *theirs: str) -> Names:
    return {f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")}


ENCODER: Names = {
    "embeddings.word.weight": ("bert.embeddings.word_embeddings.weight",),
    "embeddings.position.weight": ("bert.embeddings.position_embeddings.weight",),
    "embeddings.token_type.weight": ("bert.embeddings.token_type_embeddings.weight",),
    **_linear("embeddings.norm", "bert.embeddings.LayerNorm"),
}
HEAD: Names = {
    "head.bias": ("cls.predictions.bias",),
    **_linear("head.dense", "cls.predictions.transform.dense"),
    **_linear("head.norm", "cls.predictions.transform.LayerNorm"),
}
CLASSIFIER: Names = {
    **_linear("head.pooler", "bert.pooler.dense"),
    **_linear("head.classifier", "classifier"),
}


def _layer(i: int) -> Names:
    ours, theirs = f"blocks.{i}", f"bert.encoder.layer.{i}"
    attended = (f"{theirs}.attention.self.{part}" for part in ("query", "key", "value"))
    return {
        **_linear(f"{ours}.attention.qkv", *attended),
        **_linear(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        **_linear(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        **_linear(f"{ours}.feedforward.expand", f"{theirs}.intermediate.dense"),
        **_linear(f"{ours}.feedforward.contract", f"{theirs}.output.dense"),
        **_linear(f"{ours}.feedforward_norm", f"{theirs}.output.LayerNorm"),
    }


@family("hf_bert")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``BertForMaskedLM`` or ``BertForSequenceClassification``."""
    check_values("hf_bert", config, REQUIRED)
    arch = BertConfig(**{ours: entry(config, theirs) for theirs, ours in CONFIG.items()})
    names = {**ENCODER, **(HEAD if head == MLM else CLASSIFIER)}
    for i in range(arch.layers):
        names |= _layer(i)
    return Plan(
        arch=arch,
        vocab_size=entry(config, "vocab_size"),
        positions=entry(config, "max_position_embeddings"),
        padding_id=config.get("pad_token_id"),
        sources={ours: Source(theirs) for ours, theirs in names.items()},
        classifier="classifier.weight",
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        buffers={
            "bert.embeddings.position_ids": lambda there: arange(there.shape[-1]).expand(there.shape),
            "bert.embeddings.token_type_ids": lambda there: zeros(there.shape),
        },
        other_heads=(r"bert\.pooler\..*", r"cls\.seq_relationship\..*") if head == MLM else (r"cls\..*",),
    )


@detector("hf_bert")
def is_hf_bert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is BERT's: its config's word, separate queries, and norms after the sublayers."""
    bare = {name.removeprefix("bert.") for name in names}
    layer = "encoder.layer.0.attention"
    return (
        config.get("model_type", "bert") == "bert"
        and f"{layer}.self.query.weight" in bare
        and any(f"{layer}.output.LayerNorm.{scale}" in bare for scale in ("weight", "gamma"))
    )


@writer("bert")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of ``BertForMaskedLM``."""
    assert isinstance(arch, BertConfig)
    theirs = {name: getattr(arch, ours) for name, ours in CONFIG.items()}
    return "hf_bert", {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        **theirs,
        **{name: accepted[0] for name, accepted in REQUIRED.items()},
        "vocab_size": vocab_size,
        "max_position_embeddings": positions,
    }
