"""24hBERT (https://github.com/IntelLabs/academic-budget-bert) and ExtremeBERT, its descendant.

Their config.json says ``bert`` for the model's type. A norm of the embeddings is an option that is off; the norms'
epsilon is 1e-12 whatever ``layer_norm_eps`` says; with sparse prediction, their default, nothing adds the bias of the
logits, which is kept all the same.
"""

from collections.abc import Collection, Mapping
from typing import Any

from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.references.bert_names import REQUIRED, Dialect, options
from cramming.architectures.references.plan import MLM, Plan, check_values, detector, entry, entry_or, family

SCHEMES = {"pre-ln": "pre", "post-ln": "post"}
OWN: dict[str, tuple[Any, ...]] = {
    "useLN": (True,),
    "layer_norm_type": ("apex", "pytorch"),
    "encoder_ln_mode": tuple(SCHEMES),
    "fused_linear_layer": (True, False),
    "sparse_mask_prediction": (True, False),
    "layernorm_embedding": (False, True),
}


@family("extremebert")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for their ``BertLMHeadModel`` or ``BertForSequenceClassification``."""
    check_values("extremebert", config, REQUIRED | OWN)
    sparse = entry_or(config, "sparse_mask_prediction", True)
    theirs = options(config) | {"norm_eps": 1e-12, "decoder_bias": not sparse}
    arch = BertConfig(
        **theirs,
        norm_scheme=SCHEMES[entry(config, "encoder_ln_mode")],
        embedding_norm=entry_or(config, "layernorm_embedding", False),
    )
    dense = "dense_act" if entry_or(config, "fused_linear_layer", True) else "dense_act.dense"
    dialect = Dialect(
        "bert",
        attention_norm="PreAttentionLayerNorm",
        feedforward_norm="PostAttentionLayerNorm",
        final_norm="encoder.FinalLayerNorm",
        expand=f"intermediate.{dense}",
        head=(f"cls.predictions.transform.{dense}", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
        classifier=(f"bert.pooler.{dense}", "classifier"),
    )
    tied = dialect.tied("cls.predictions.decoder")
    if sparse:
        tied.pop("cls.predictions.decoder.bias")
    unused = [r"cls\.predictions\.bias"] if sparse else []
    if arch.norm_scheme == "post":
        unused.append(r"bert\.encoder\.FinalLayerNorm\.(weight|bias)")
    return Plan(
        arch=arch,
        vocab_size=entry(config, "vocab_size"),
        positions=entry(config, "max_position_embeddings"),
        padding_id=None,
        sources=dialect.sources(arch, head),
        classifier="classifier.weight",
        tied=tied,
        ignored=tuple(unused),
        other_heads=(r"bert\.pooler\..*", r"cls\.seq_relationship\..*") if head == MLM else (r"cls\..*",),
    )


@detector("extremebert")
def is_extremebert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is theirs: separate queries, and their names for a layer's norms."""
    bare = {name.removeprefix("bert.") for name in names}
    wanted = ("attention.self.query", "PreAttentionLayerNorm", "PostAttentionLayerNorm")
    return {f"encoder.layer.0.{name}.weight" for name in wanted} <= bare
