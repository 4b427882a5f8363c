"""DeBERTa v2 and v3, as released and as Hugging Face's transformers writes them.

The released files hold the head that transformers calls new (``lm_predictions``); their configs say nothing of it, and
transformers without being told builds its own older head instead, which those files do not fill. Here a config that
says nothing means the released head.
"""

from collections.abc import Collection, Mapping
from typing import Any

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.deberta import DebertaConfig
from cramming.architectures.deberta import transformers_options
from cramming.architectures.references.plan import MLM, Plan, detector, entry, family, writer
from cramming.architectures.references.transformers_networks import check_unread, network_plan
from cramming.errors import UserError

CONFIG = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "max_position_embeddings": "max_positions",
}
# Keys that a config may leave out, for what transformers then takes (but for ``legacy``, see above).
OPTIONAL: dict[str, tuple[str, Any]] = {
    "type_vocab_size": ("token_types", 0),
    "layer_norm_eps": ("norm_eps", 1e-7),
    "initializer_range": ("init_std", 0.02),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "share_att_key": ("share_attention_key", False),
    "position_biased_input": ("absolute_positions", True),
    "conv_kernel_size": ("conv_kernel", 0),
    "legacy": ("legacy_head", False),
}
NONLINEARITIES = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu", "tanh": "tanh",
}  # fmt: skip
NORMS = {"none": False, "layer_norm": True}  # of the table of distances
REQUIRED: dict[str, tuple[Any, ...]] = {
    "relative_attention": (True,),
    "hidden_act": tuple(NONLINEARITIES),
    "conv_act": ("tanh", *NONLINEARITIES),
    "conv_groups": (1,),
    "norm_rel_ebd": tuple(NORMS),
    "tie_word_embeddings": (True,),
}
_LAYER = "encoder.layer.0.attention.self.query_proj.weight"


@family("deberta")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``DebertaV2ForMaskedLM`` or ``DebertaV2ForSequenceClassification``."""
    check_unread("deberta", {"relative_attention": False, **config}, REQUIRED)
    positions, hidden = entry(config, "max_position_embeddings"), entry(config, "hidden_size")
    same = {"max_relative_positions": (-1, positions), "embedding_size": (hidden,), "pooler_hidden_size": (hidden,)}
    check_unread("deberta", config, same)
    arch = DebertaConfig(
        **{ours: entry(config, theirs) for theirs, ours in CONFIG.items()},
        **{ours: config.get(theirs, default) for theirs, (ours, default) in OPTIONAL.items()},
        nonlin=NONLINEARITIES[config.get("hidden_act", "gelu")],
        conv_nonlin=NONLINEARITIES[config.get("conv_act", "tanh")],
        position_buckets=max(0, config.get("position_buckets", -1)),
        position_terms=_terms(config.get("pos_att_type")),
        relative_norm=NORMS[config.get("norm_rel_ebd", "none")],
    )
    others = (
        r"mask_predictions\..*",
        *(() if arch.absolute_positions else (r"deberta\.embeddings\.position_embeddings\..*",)),
        *((r"pooler\..*", r"classifier\..*") if head == MLM else (r"lm_predictions\..*", r"cls\..*")),
        *((r"lm_predictions\..*",) if arch.legacy_head else (r"cls\..*",)),
    )
    padding_id = config.get("pad_token_id", 0)
    return network_plan(arch, entry(config, "vocab_size"), positions, head, padding_id=padding_id, other_heads=others)


def _terms(said: Any) -> list[str]:
    """``"p2c|c2p"`` or a list of them."""
    terms = said.lower().split("|") if isinstance(said, str) else list(said or ())
    if not set(terms) <= {"c2p", "p2c"}:
        raise UserError(f"deberta with pos_att_type={said!r} is not supported: only 'c2p' and 'p2c' are")
    return terms


@detector("deberta")
def is_deberta(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is the second or third DeBERTa's: its config's word, and its own names of queries."""
    return config.get("model_type", "deberta-v2") == "deberta-v2" and any(name.endswith(_LAYER) for name in names)


@writer("deberta")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of ``DebertaV2ForMaskedLM``."""
    assert isinstance(arch, DebertaConfig)
    return "deberta", {
        "architectures": ["DebertaV2ForMaskedLM"],
        "model_type": "deberta-v2",
        **transformers_options(arch, vocab_size, arch.max_positions),
        "pooler_hidden_size": arch.hidden,
        "tie_word_embeddings": True,
    }
