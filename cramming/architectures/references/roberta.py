"""RoBERTa of Hugging Face's transformers, and what is RoBERTa under another name there: CamemBERT and XLM-RoBERTa.

``roberta-prelayernorm`` is RoBERTa with norms before the sublayers.

The reference counts positions from its padding's id + 1: the rows of its table before that one are never read. A token
with the padding's id has the row of that id, which stays zero; here such tokens must be told as padding.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import arange, zeros

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.configs.roberta import RobertaConfig
from cramming.architectures.references.bert_names import REQUIRED, Dialect, config_of, options
from cramming.architectures.references.plan import MLM, Plan, check_values, detector, entry, entry_or, family, writer
from cramming.errors import UserError

HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
CLASSIFIER = ("classifier.dense", "classifier.out_proj")
POST = Dialect("roberta", head=HEAD, classifier=CLASSIFIER)
PRE = Dialect(
    "roberta_prelayernorm",
    attention_norm="attention.LayerNorm",
    feedforward_norm="intermediate.LayerNorm",
    final_norm="LayerNorm",
    head=HEAD,
    classifier=CLASSIFIER,
)
SAME = ("roberta", "camembert", "xlm-roberta")
PADDING_ID = 1  # where a config does not say


@family("roberta")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``RobertaForMaskedLM`` or ``RobertaForSequenceClassification``."""
    return _plan(config, head, "post")


@family("roberta_prelayernorm")
def prenorm_plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``RobertaPreLayerNormForMaskedLM`` or its ``...ForSequenceClassification``."""
    return _plan(config, head, "pre")


def _plan(config: Mapping[str, Any], head: str, norm_scheme: str) -> Plan:
    dialect = PRE if norm_scheme == "pre" else POST
    check_values(dialect.model, config, REQUIRED)
    padding_id = entry_or(config, "pad_token_id", PADDING_ID)
    rows, vocab_size = entry(config, "max_position_embeddings"), entry(config, "vocab_size")
    positions = rows - padding_id - 1
    if positions < 1:
        raise UserError(f"max_position_embeddings={rows} leaves none beyond pad_token_id={padding_id}")
    arch = RobertaConfig(**options(config) | {"max_positions": positions}, norm_scheme=norm_scheme)
    return Plan(
        arch=arch,
        vocab_size=vocab_size,
        positions=positions,
        padding_id=padding_id,
        sources=dialect.sources(arch, head, unread=padding_id + 1),
        classifier="classifier.out_proj.weight",
        tied=dialect.tied("lm_head.decoder"),
        constants=dialect.without_bias(arch, vocab_size, head),
        buffers={
            f"{dialect.model}.embeddings.position_ids": lambda there: arange(there.shape[-1]).expand(there.shape),
            f"{dialect.model}.embeddings.token_type_ids": lambda there: zeros(there.shape),
        },
        other_heads=(rf"{dialect.model}\.pooler\..*",) if head == MLM else (r"lm_head\..*",),
    )


@detector("roberta")
def is_roberta(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is RoBERTa's: separate queries, norms after the sublayers, its name or its config's word."""
    layer = "encoder.layer.0.attention"
    wanted = (f"{layer}.self.query.weight", f"{layer}.output.LayerNorm.weight")
    if "model_type" in config:
        return config["model_type"] in SAME and set(wanted) <= {name.removeprefix("roberta.") for name in names}
    return {f"roberta.{name}" for name in wanted} <= set(names)


@detector("roberta_prelayernorm")
def is_roberta_prelayernorm(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is its relative's: separate queries, and its names for the norms before the sublayers."""
    bare = {name.removeprefix("roberta_prelayernorm.") for name in names}
    layer = "encoder.layer.0"
    wanted = ("attention.self.query", "attention.LayerNorm", "intermediate.LayerNorm")
    return {f"{layer}.{name}.weight" for name in wanted} <= bare


@writer("roberta")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of ``RobertaForMaskedLM``, or of ``RobertaPreLayerNormForMaskedLM``.

    Raises:
        UserError: no norm of the embeddings, which both have.
    """
    assert isinstance(arch, RobertaConfig)
    return written(arch, vocab_size, positions)


def written(arch: BertConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The same of any BERT: what sets a RoBERTa apart shows where padding stands between tokens only.

    Raises:
        UserError: no norm of the embeddings.
    """
    if not arch.embedding_norm:
        raise UserError("transformers' RoBERTa normalizes the embeddings: it has no arch.embedding_norm=false")
    pre = arch.norm_scheme == "pre"
    padding_id = 0  # of the tokenizers trained here
    return PRE.model if pre else POST.model, {
        "architectures": [f"{'RobertaPreLayerNorm' if pre else 'Roberta'}ForMaskedLM"],
        "model_type": "roberta-prelayernorm" if pre else "roberta",
        **config_of(arch, vocab_size, positions + padding_id + 1),
        "pad_token_id": padding_id,
    }
