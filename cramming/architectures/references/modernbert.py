"""ModernBERT of Hugging Face's transformers, whose module it has been since its release.

Its configs come in two forms: as released (``global_rope_theta``, ``global_attn_every_n_layers``, ...), and as
transformers 5 writes them (``rope_parameters``, ``layer_types``). Both are read; the second is written.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import arange

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.modern import ModernConfig, PooledHeadConfig
from cramming.architectures.references.neobert import NEOBERT, neobert_config
from cramming.architectures.references.plan import (
    MLM,
    Plan,
    Source,
    check_values,
    detector,
    entry,
    family,
    writer,
)
from cramming.errors import UserError

GLOBAL, LOCAL = "full_attention", "sliding_attention"
CONFIG = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
}
# Keys that a config may leave out, for what transformers then takes.
OPTIONAL: dict[str, tuple[str, Any]] = {
    "norm_eps": ("norm_eps", 1e-5),
    "norm_bias": ("norm_bias", False),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("feedforward_bias", False),
    "classifier_bias": ("head_bias", False),
    "decoder_bias": ("decoder_bias", True),
    "tie_word_embeddings": ("tie_weights", True),
    "embedding_dropout": ("embedding_dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.0),
    "mlp_dropout": ("feedforward_dropout", 0.0),
    "initializer_range": ("init_std", 0.02),
    "initializer_cutoff_factor": ("init_cutoff", 2.0),
}
NONLINEARITIES = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu",
                  "silu": "silu", "swish": "silu"}  # fmt: skip
POOLERS = {"cls": "zero_index", "mean": "avg"}
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": tuple(NONLINEARITIES),
    "classifier_activation": (*NONLINEARITIES, "tanh"),
    "classifier_pooling": tuple(POOLERS),
    "rope_scaling": (None,),
}


@family("modernbert")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``ModernBertForMaskedLM`` or ``ModernBertForSequenceClassification``."""
    check_values("modernbert", config, REQUIRED)
    arch = _options(config)
    names = _encoder(arch)
    if head == MLM:
        names |= _linear("head.dense", "head.dense", arch.head_bias) | _norm("head.norm", "head.norm", arch)
        if arch.decoder_bias:
            names["head.bias"] = "decoder.bias"
        if not arch.tie_weights:
            names["head.decoder.weight"] = "decoder.weight"
    else:
        names |= _linear("head.pooler", "head.dense", arch.head_bias) | _norm("head.norm", "head.norm", arch)
        names |= _linear("head.classifier", "classifier", bias=True)
    halves = arange(2 * arch.intermediate).roll(arch.intermediate)  # theirs are gates, then values
    sources = {
        ours: Source((theirs,), halves if ".feedforward.expand." in ours else None) for ours, theirs in names.items()
    }
    return Plan(
        arch=arch,
        vocab_size=entry(config, "vocab_size"),
        positions=config.get("max_position_embeddings", 8192),
        padding_id=config.get("pad_token_id", 50283),
        sources=sources,
        classifier="classifier.weight",
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"} if arch.tie_weights else {},
        other_heads=(r"classifier\..*",) if head == MLM else (r"decoder\..*",),
    )


@detector("modernbert")
def is_modernbert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is ModernBERT's: its config's word, and its names for embeddings and for fused matrices."""
    bare = {name.removeprefix("model.") for name in names}
    return (
        config.get("model_type", "modernbert") == "modernbert"
        and {
            "embeddings.tok_embeddings.weight",
            "layers.0.attn.Wqkv.weight",
            "layers.0.mlp.Wi.weight",
        }
        <= bare
    )


@writer("modern")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of ``ModernBertForMaskedLM``, or NeoBERT's where the options are of its form.

    Dropout after the second matrix of a feed-forward part, and another one of attention's output than of its
    probabilities, have no words there. They act in training only, and are left out.
    """
    assert isinstance(arch, ModernConfig)
    as_neobert = neobert_config(arch, vocab_size, positions)
    if as_neobert is not None:
        return NEOBERT, as_neobert
    for key, value in {"norm": "layernorm", "embedding_norm": True, "head": "transform"}.items():
        if getattr(arch, key) != value:
            raise UserError(
                f"arch.{key}={getattr(arch, key)} cannot be exported with the other options: ModernBERT has {value}, "
                f"and NeoBERT is arch=neobert with nothing but its sizes changed"
            )
    head = arch.classification_head
    poolers = {ours: theirs for theirs, ours in POOLERS.items()}
    if not head.norm or head.pooler not in poolers or (head.nonlin, head.bias) != (arch.head_nonlin, arch.head_bias):
        head = PooledHeadConfig(nonlin=arch.head_nonlin, bias=arch.head_bias)
    activations = {ours: theirs for theirs, ours in reversed(NONLINEARITIES.items())} | {"tanh": "tanh"}
    options = {theirs: getattr(arch, ours) for theirs, ours in CONFIG.items()}
    options |= {theirs: getattr(arch, ours) for theirs, (ours, _) in OPTIONAL.items()}
    return "modernbert", {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        **options,
        "vocab_size": vocab_size,
        "max_position_embeddings": positions,
        # Of the tokenizers trained here; the defaults lie beyond their vocabularies.
        **{"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3},
        "hidden_activation": activations[arch.nonlin],
        "classifier_activation": activations[arch.head_nonlin],
        "classifier_pooling": poolers[head.pooler],
        "classifier_dropout": head.classifier_dropout,
        "embedding_dropout": arch.embeddings_drop_out,
        "local_attention": 2 * arch.window,
        "layer_types": [GLOBAL if arch.sees_all(layer) else LOCAL for layer in range(arch.layers)],
        "global_attn_every_n_layers": arch.global_every,
        "rope_parameters": {
            GLOBAL: {"rope_type": "default", "rope_theta": arch.theta},
            LOCAL: {"rope_type": "default", "rope_theta": arch.local_theta},
        },
    }


def _options(config: Mapping[str, Any]) -> ModernConfig:
    """Our options from their config of either form."""
    options = {ours: entry(config, theirs) for theirs, ours in CONFIG.items()}
    for theirs, (ours, default) in OPTIONAL.items():
        options[ours] = config.get(theirs, default)
    both_sides = config.get("local_attention", 128)
    if both_sides % 2 or both_sides < 2:
        raise UserError(f"modernbert with local_attention={both_sides} is not supported: it must be even and above 0")
    theta, local_theta = _thetas(config)
    nonlin = NONLINEARITIES[config.get("hidden_activation", "gelu")]
    words = {**NONLINEARITIES, "tanh": "tanh"}
    head_nonlin = words[config.get("classifier_activation", "gelu")]
    return ModernConfig(
        **options,
        attention_output_dropout=options["attention_dropout"],
        nonlin=nonlin,
        head_nonlin=head_nonlin,
        window=both_sides // 2,
        global_every=_global_every(config, options["layers"]),
        theta=theta,
        local_theta=local_theta,
        classification_head=PooledHeadConfig(
            pooler=POOLERS[config.get("classifier_pooling", "cls")],
            nonlin=head_nonlin,
            bias=options["head_bias"],
            classifier_dropout=config.get("classifier_dropout", 0.0),
        ),
    )


def _thetas(config: Mapping[str, Any]) -> tuple[float, float]:
    """Bases of the rotation, of layers that see everything and of the others.

    Raises:
        UserError: a stretched rotation.
    """
    everywhere, near = config.get("global_rope_theta", 160000.0), config.get("local_rope_theta", 10000.0)
    found = {GLOBAL: everywhere, LOCAL: everywhere if near is None else near}
    for kind, parameters in (config.get("rope_parameters") or {}).items():
        if parameters is None or kind not in found:
            continue
        check_values("modernbert", {"rope_parameters": {kind: parameters}},
                     {f"rope_parameters.{kind}.rope_type": ("default",)})  # fmt: skip
        found[kind] = parameters.get("rope_theta", found[kind])
    return float(found[GLOBAL]), float(found[LOCAL])


def _global_every(config: Mapping[str, Any], layers: int) -> int:
    """n, where every n-th layer sees everything.

    Raises:
        UserError: layers in another order.
    """
    kinds = config.get("layer_types")
    stated = config.get("global_attn_every_n_layers", 3)
    if kinds is None:
        return int(stated)
    for n in (stated, *range(1, layers + 1)):
        if list(kinds) == [LOCAL if i % n else GLOBAL for i in range(layers)]:
            return int(n)
    raise UserError(
        f"modernbert with layer_types={list(kinds)!r} is not supported: only every n-th layer, from the first, may see "
        f"the whole sequence"
    )


def _linear(ours: str, theirs: str, bias: bool) -> dict[str, str]:
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in parts}


def _norm(ours: str, theirs: str, arch: ModernConfig) -> dict[str, str]:
    return _linear(ours, theirs, arch.norm_bias)


def _encoder(arch: ModernConfig) -> dict[str, str]:
    """Our names -> theirs, but for the head."""
    names = {"embeddings.word.weight": "model.embeddings.tok_embeddings.weight"}
    names |= _norm("embeddings.norm", "model.embeddings.norm", arch) | _norm("final_norm", "model.final_norm", arch)
    for i in range(arch.layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        names |= _linear(f"{ours}.attention.qkv", f"{theirs}.attn.Wqkv", arch.attention_bias)
        names |= _linear(f"{ours}.attention.output", f"{theirs}.attn.Wo", arch.attention_bias)
        names |= _linear(f"{ours}.feedforward.expand", f"{theirs}.mlp.Wi", arch.feedforward_bias)
        names |= _linear(f"{ours}.feedforward.contract", f"{theirs}.mlp.Wo", arch.feedforward_bias)
        names |= _norm(f"{ours}.feedforward_norm", f"{theirs}.mlp_norm", arch)
        if i:
            names |= _norm(f"{ours}.attention_norm", f"{theirs}.attn_norm", arch)
    return names
