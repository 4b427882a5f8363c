"""ALBERT of Hugging Face's transformers."""

from collections.abc import Collection, Mapping
from typing import Any

from cramming.architectures.albert import transformers_options
from cramming.architectures.configs.albert import AlbertConfig
from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.references.plan import MLM, Plan, detector, entry, family, writer
from cramming.architectures.references.transformers_networks import check_unread, network_plan

CONFIG = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "embedding_size": "embedding_dim",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "max_position_embeddings": "max_positions",
}
# Keys that a config may leave out, for what transformers then takes.
OPTIONAL: dict[str, tuple[str, Any]] = {
    "num_hidden_groups": ("groups", 1),
    "inner_group_num": ("layers_in_group", 1),
    "type_vocab_size": ("token_types", 2),
    "layer_norm_eps": ("norm_eps", 1e-12),
    "initializer_range": ("init_std", 0.02),
    "hidden_dropout_prob": ("dropout", 0.0),
    "attention_probs_dropout_prob": ("attention_dropout", 0.0),
}
NONLINEARITIES = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu",
    "swish": "silu", "tanh": "tanh",
}  # fmt: skip
WRITTEN = {"gelu_tanh": "gelu_new"}  # as in the released configs
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": tuple(NONLINEARITIES),
    "position_embedding_type": ("absolute", None),
    "tie_word_embeddings": (True,),
}
_LAYER = "encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight"


@family("albert")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``AlbertForMaskedLM`` or ``AlbertForSequenceClassification``."""
    check_unread("albert", config, REQUIRED)
    arch = AlbertConfig(
        **{ours: entry(config, theirs) for theirs, ours in CONFIG.items()},
        **{ours: config.get(theirs, default) for theirs, (ours, default) in OPTIONAL.items()},
        nonlin=NONLINEARITIES[config.get("hidden_act", "gelu_new")],
    )
    others = (r"albert\.pooler\..*", r"sop_classifier\..*") if head == MLM else (r"predictions\..*", r"sop_.*")
    positions = entry(config, "max_position_embeddings")
    padding_id = config.get("pad_token_id", 0)
    return network_plan(arch, entry(config, "vocab_size"), positions, head, padding_id=padding_id, other_heads=others)


@detector("albert")
def is_albert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is ALBERT's: its config's word, and layers in groups."""
    return config.get("model_type", "albert") == "albert" and any(name.endswith(_LAYER) for name in names)


@writer("albert")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of ``AlbertForMaskedLM``."""
    assert isinstance(arch, AlbertConfig)
    return "albert", {
        "architectures": ["AlbertForMaskedLM"],
        "model_type": "albert",
        **transformers_options(arch, vocab_size, arch.max_positions or positions),
        "hidden_act": WRITTEN.get(arch.nonlin, arch.nonlin),
        "tie_word_embeddings": True,
    }
