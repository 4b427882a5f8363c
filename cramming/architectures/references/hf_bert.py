"""BERT of Hugging Face's transformers, and its ``megatron-bert``, which is BERT with norms before the sublayers.

Megatron's has no norm of the embeddings, like 24hBERT; where there is one, ``roberta-prelayernorm`` is the class.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import arange, zeros

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.references import roberta
from cramming.architectures.references.bert_names import REQUIRED, Dialect, config_of, options
from cramming.architectures.references.plan import MLM, Plan, check_values, detector, entry, family, writer
from cramming.errors import UserError

POST = Dialect("bert")
PRE = Dialect("bert", attention_norm="attention.ln", feedforward_norm="ln", final_norm="encoder.ln")


@family("hf_bert")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``BertForMaskedLM`` or ``BertForSequenceClassification``."""
    check_values("hf_bert", config, REQUIRED)
    return _plan(config, head, BertConfig(**options(config)))


@family("megatron_bert")
def prenorm_plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``MegatronBertForMaskedLM`` or ``MegatronBertForSequenceClassification``."""
    check_values("megatron_bert", config, REQUIRED)
    return _plan(config, head, BertConfig(**options(config), norm_scheme="pre", embedding_norm=False))


def _plan(config: Mapping[str, Any], head: str, arch: BertConfig) -> Plan:
    dialect = PRE if arch.norm_scheme == "pre" else POST
    vocab_size = entry(config, "vocab_size")
    return Plan(
        arch=arch,
        vocab_size=vocab_size,
        positions=entry(config, "max_position_embeddings"),
        padding_id=config.get("pad_token_id"),
        sources=dialect.sources(arch, head),
        classifier="classifier.weight",
        tied=dialect.tied("cls.predictions.decoder"),
        constants=dialect.without_bias(arch, vocab_size, head),
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


@detector("megatron_bert")
def is_megatron_bert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is Megatron's: separate queries, and its name for the norms before the sublayers."""
    bare = {name.removeprefix("bert.") for name in names}
    return {"encoder.layer.0.attention.self.query.weight", "encoder.layer.0.attention.ln.weight"} <= bare


@writer("bert")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of ``BertForMaskedLM``, or with norms before the sublayers of a class that has them there.

    Raises:
        UserError: norms after the sublayers and none of the embeddings.
    """
    assert isinstance(arch, BertConfig)
    if arch.norm_scheme == "pre" and arch.embedding_norm:
        return roberta.written(arch, vocab_size, positions)
    if arch.norm_scheme == "post" and not arch.embedding_norm:
        raise UserError(
            "transformers has no BERT with norms after the sublayers and none of the embeddings "
            "(arch.norm_scheme=post with arch.embedding_norm=false)"
        )
    name, word, kind = (
        ("megatron_bert", "MegatronBert", "megatron-bert") if arch.norm_scheme == "pre" else ("hf_bert", "Bert", "bert")
    )
    return name, {
        "architectures": [f"{word}ForMaskedLM"],
        "model_type": kind,
        **config_of(arch, vocab_size, positions),
    }
