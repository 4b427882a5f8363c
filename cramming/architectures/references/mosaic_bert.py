"""MosaicBERT (https://github.com/mosaicml/examples, ``examples/benchmarks/bert``)."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import arange, cat

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.mosaic import ANY_LENGTH, MosaicConfig
from cramming.architectures.references.bert_names import linear
from cramming.architectures.references.plan import (
    MLM,
    Plan,
    Source,
    check_values,
    detector,
    entry,
    entry_or,
    family,
    writer,
)
from cramming.errors import UserError

VOCABULARY_MULTIPLE = 8  # it fills the vocabulary up to one
NEVER = -1e4  # the bias of a word that no text has: its probability is 0 in every type of number
CONFIG = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "type_vocab_size": "token_types",
    "layer_norm_eps": "norm_eps",
    "initializer_range": "init_std",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
# Written because the reference reads them: neither bounds the length of a sequence there.
UNUSED = {"max_position_embeddings": 512, "alibi_starting_size": 512}


def outside_layers(head: str) -> dict[str, Source]:
    """Embeddings and head, of this code and of those that descend from it."""
    spare = VOCABULARY_MULTIPLE - 1
    sources = {
        "embeddings.word.weight": Source(("bert.embeddings.word_embeddings.weight",), spare=spare),
        "embeddings.token_type.weight": Source(("bert.embeddings.token_type_embeddings.weight",)),
        **linear("embeddings.norm", "bert.embeddings.LayerNorm"),
    }
    if head == MLM:
        sources |= linear("head.dense", "cls.predictions.transform.dense")
        sources |= linear("head.norm", "cls.predictions.transform.LayerNorm")
        return sources | {"head.bias": Source(("cls.predictions.decoder.bias",), spare=spare, filler=NEVER)}
    return sources | linear("head.pooler", "bert.pooler.dense") | linear("head.classifier", "classifier")


@family("mosaic_bert")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``BertForMaskedLM`` or ``BertForSequenceClassification`` of its ``bert_layers.py``."""
    check_values("mosaic_bert", config, REQUIRED)
    arch = MosaicConfig(
        **{ours: entry(config, theirs) for theirs, ours in CONFIG.items()},
        classifier_dropout=entry_or(config, "classifier_dropout", None),
        pad_vocab_to=VOCABULARY_MULTIPLE,
    )
    sources = outside_layers(head)
    for i in range(arch.layers):
        sources |= _layer(i, arch.intermediate)
    return Plan(
        arch=arch,
        vocab_size=entry(config, "vocab_size"),
        positions=ANY_LENGTH,
        padding_id=config.get("pad_token_id"),
        sources=sources,
        classifier="classifier.weight",
        tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
        # Worked out from the number of heads; kept with the weights until early in 2023.
        ignored=(r"bert\.encoder\.alibi", r"bert\.embeddings\.(position|token_type)_ids"),
        other_heads=(r"bert\.pooler\..*",) if head == MLM else (r"cls\..*",),
    )


def _layer(i: int, intermediate: int) -> dict[str, Source]:
    ours, theirs = f"blocks.{i}", f"bert.encoder.layer.{i}"
    gates_first = cat((arange(intermediate, 2 * intermediate), arange(intermediate)))  # ours are values first
    return {
        **linear(f"{ours}.attention.qkv", f"{theirs}.attention.self.Wqkv"),
        **linear(f"{ours}.attention.output", f"{theirs}.attention.output.dense"),
        **linear(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"),
        f"{ours}.feedforward.expand.weight": Source((f"{theirs}.mlp.gated_layers.weight",), gates_first),
        **linear(f"{ours}.feedforward.contract", f"{theirs}.mlp.wo"),
        **linear(f"{ours}.feedforward_norm", f"{theirs}.mlp.layernorm"),
    }


@detector("mosaic_bert")
def is_mosaic_bert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is MosaicBERT's: a fused projection in attention, gates in what follows."""
    bare = {name.removeprefix("bert.") for name in names}
    layer = "encoder.layer.0"
    return f"{layer}.attention.self.Wqkv.weight" in bare and f"{layer}.mlp.gated_layers.weight" in bare


@writer("mosaic")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of its ``BertConfig``, which transformers has no class for.

    Raises:
        UserError: a feed-forward part without gates, or a vocabulary that it would fill up further.
    """
    assert isinstance(arch, MosaicConfig)
    rows = arch.rows(vocab_size)
    if rows % VOCABULARY_MULTIPLE:
        raise UserError(
            f"arch.pad_vocab_to={arch.pad_vocab_to} gives {rows} rows of embeddings, and MosaicBERT has a multiple of "
            f"{VOCABULARY_MULTIPLE}: nothing that was trained so can be written as one"
        )
    if not arch.glu:
        raise UserError("arch.glu=false has no place in a MosaicBERT checkpoint, whose feed-forward part has gates")
    return "mosaic_bert", {
        **{theirs: getattr(arch, ours) for theirs, ours in CONFIG.items()},
        **{name: accepted[0] for name, accepted in REQUIRED.items()},
        **UNUSED,
        "classifier_dropout": arch.classifier_dropout,
        "pad_token_id": 0,
        "vocab_size": rows,
    }
