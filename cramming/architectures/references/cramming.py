"""Cramming (https://github.com/JonasGeiping/cramming), and what all descendants of its first encoder share.

Its config, under ``arch`` in a checkpoint's ``model_config.json``, chooses among many components; those whose
mathematics we have are taken, others refused by name. Where the reference does otherwise than its options say, so does
the model: ``rotary_embedding=True`` turned nothing, fused attention attended to padding, pooling covered padding.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.crammed import ClassificationHeadConfig, CrammedConfig
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

FUSED, PLAIN = "flash-attention-impl", "self-attention"
FIRST = "ScriptableMaskedLM"  # the first encoder; the later one is ScriptableCrammedBERT
REQUIRED: dict[str, tuple[Any, ...]] = {
    "attention.type": (PLAIN, FUSED),
    "attention.causal_attention": (False,),
    "attention.skip_output_projection": (False,),
    "attention.sequence_op": ("torch-softmax",),
    "attention.rotary_embedding": (False, None, True, "sanity"),
    "embedding.pos_embedding": ("scaled-sinusoidal", "sinusoidal", "learned", "none", None),
    "norm_scheme": ("pre", "post", "sandwich"),
    "ffn_layer_frequency": (1,),  # layers without one would pass the output of their norm through in its place
    "layer_macro_type": ("transformer",),
    "recurrent_layers": (None,),
    "loss": ("cross-entropy",),
    "z_loss_factor": (0,),
    "objective_layout": ("MLM",),
}
# The later encoder knows nothing but these; it would ignore other values.
REWRITTEN: dict[str, tuple[Any, ...]] = {
    **REQUIRED,
    "attention.type": (PLAIN,),
    "norm_scheme": ("pre",),
    "tie_weights": (True,),
    "deepnorm_scaling": (False, None),
}
NONLINEARITIES = {
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "Mish": "mish",
    "ELU": "elu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
}
NORMS = {"LayerNorm": "layernorm", "ApexLayerNorm": "layernorm", "ScaleNorm": "scalenorm", "RMSNorm": "rmsnorm"}


@family("cramming")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for the encoder of 2023 (``ScriptableCrammedBERT``) or for the first one (``ScriptableMaskedLM``)."""
    arch = config.get("arch", config)
    rewritten = FIRST not in (entry_or(arch, "architectures", ()) or ())
    check_values("cramming", arch, REWRITTEN if rewritten else REQUIRED)
    return scriptable_plan(config, head, NORMS, skipped_transform="none" if rewritten else "linear")


@detector("cramming")
def is_cramming(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is of this descent and its config has an option that only this project's have."""
    arch = config.get("arch", config)
    first = FIRST in (entry_or(arch, "architectures", ()) or ())
    return is_scriptable(names) and (not first or "objective_layout" in arch)


def is_scriptable(names: Collection[str]) -> bool:
    """Whether tensors are named as in this descent."""
    return {"encoder.embedding.word_embedding.weight", "encoder.layers.0.attn.dense.weight"} <= set(names)


@writer("crammed")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of the encoder of 2023 where it has all options in use; else of the first one, in the later study's
    form unless a norm is one that only this project has.
    """
    assert isinstance(arch, CrammedConfig)
    if arch.ffn_layer_frequency != 1:
        raise UserError(
            f"arch.ffn_layer_frequency={arch.ffn_layer_frequency} cannot be exported: the reference's layers without a "
            "feed-forward part compute something else"
        )
    if arch.attend_padding and arch.rotary:
        raise UserError("arch.rotary with arch.attend_padding cannot be exported: the reference's fused attention "
                        "turns nothing")  # fmt: skip
    rewritten = (
        arch.norm_scheme == "pre"
        and arch.tie_weights
        and not arch.deepnorm_scaling
        and not arch.attend_padding
        and arch.norm != "unitnorm"
        and arch.head != "linear"
    )
    if not rewritten and arch.head == "none":
        raise UserError("arch.head=none with these options cannot be exported: the reference's encoder that has them "
                        "has a linear layer there")  # fmt: skip
    ours_alone = arch.norm == "rmsnorm" and not rewritten  # the later study's norm of that name is another
    norms = {ours: theirs for theirs, ours in reversed(NORMS.items())} | {"unitnorm": "RMSNorm"}
    theirs = _their_options(arch, norms[arch.norm])
    theirs["architectures"] = ["ScriptableCrammedBERT" if rewritten else FIRST]
    theirs["embedding"] |= {"vocab_size": vocab_size, "max_seq_length": positions}
    if rewritten or ours_alone:
        theirs["objective_layout"] = "MLM"
    family_name = "cramming" if rewritten or ours_alone else "ntng"
    return family_name, {"arch": theirs, "vocab_size": vocab_size}


def _their_options(arch: CrammedConfig, norm: str) -> dict[str, Any]:
    """Our options in their words; what no option of ours says is as every checkpoint of theirs has it."""
    nonlinearities = {ours: theirs for theirs, ours in NONLINEARITIES.items()}
    if arch.nonlin not in nonlinearities:
        raise UserError(f"arch.nonlin={arch.nonlin} cannot be exported: the reference has {', '.join(nonlinearities)}")
    head = arch.classification_head
    return {
        "num_transformer_layers": arch.layers,
        "hidden_size": arch.hidden,
        "intermed_size": arch.intermediate,
        "hidden_dropout_prob": arch.dropout,
        "norm": norm,
        "norm_eps": arch.norm_eps,
        "norm_scheme": arch.norm_scheme,
        "nonlin": nonlinearities[arch.nonlin] + ("glu" if arch.glu else ""),
        "tie_weights": arch.tie_weights,
        "decoder_bias": arch.decoder_bias,
        "sparse_prediction": True,
        "loss": "cross-entropy",
        "z_loss_factor": 0,
        "gradient_checkpointing": False,
        "layer_fusion": True,
        "layer_drop": {"enabled": False, "max_theta": 0.5, "gamma_factor": 100},
        "embedding": {
            "pos_embedding": arch.position.replace("_", "-"),
            "dropout_prob": arch.embeddings_drop_out,
            "pad_token_id": 0,
            "embedding_dim": arch.embedding_width,
            "normalization": arch.embedding_norm,
            "stable_low_precision": False,
        },
        "attention": {
            "type": FUSED if arch.attend_padding else PLAIN,
            "causal_attention": False,
            "num_attention_heads": arch.heads,
            "dropout_prob": arch.attention_dropout,
            "skip_output_projection": False,
            "qkv_bias": arch.qkv_bias,
            "rotary_embedding": "sanity" if arch.rotary else False,
            "seq_op_in_fp32": False,
            "sequence_op": "torch-softmax",
            "high_level_fusion": False,
            "low_level_fusion": True,
        },
        "init": {"type": arch.init, "std": arch.init_std},
        "ffn_layer_frequency": 1,
        "deepnorm_scaling": arch.deepnorm_scaling,
        "skip_head_transform": arch.head != "transform",
        "use_bias": arch.bias,
        "final_norm": arch.final_norm,
        "recurrent_layers": None,
        "layer_macro_type": "transformer",
        "num_labels": None,
        "classification_head": {
            "pooler": head.pooler,
            "include_ff_layer": head.include_ff_layer,
            "head_dim": head.head_dim,
            "nonlin": nonlinearities[head.nonlin],
            "classifier_dropout": head.classifier_dropout,
        },
    }


def scriptable_plan(config: Mapping[str, Any], head: str, norms: Mapping[str, str], *, skipped_transform: str) -> Plan:
    """The plan for a model of this descent.

    Args:
        config: the reference's, with the architecture under ``arch`` or by itself.
        head: kind of head.
        norms: their norm -> ours.
        skipped_transform: what ``skip_head_transform`` leaves before the vocabulary.

    Raises:
        UserError: an option that is missing or that we have no mathematics for.
    """
    theirs = config.get("arch", config)
    arch = _options(theirs, norms, skipped_transform)
    vocab_size = config.get("vocab_size") or entry(theirs, "embedding.vocab_size")
    if vocab_size is None:
        raise UserError("the reference's config lacks 'vocab_size'")
    return Plan(
        arch=arch,
        vocab_size=vocab_size,
        positions=entry(theirs, "embedding.max_seq_length"),
        padding_id=entry_or(theirs, "embedding.pad_token_id", None),
        sources=_sources(arch, head),
        classifier="head.weight",
        tied={"decoder.weight": "encoder.embedding.word_embedding.weight"} if arch.tie_weights and head == MLM else {},
        buffers=_buffers(arch),
        constants=_constants(arch, FIRST not in (entry_or(theirs, "architectures", ()) or ())),
    )


def _options(theirs: Mapping[str, Any], norms: Mapping[str, str], skipped_transform: str) -> CrammedConfig:
    hidden, embedding_dim = entry(theirs, "hidden_size"), entry(theirs, "embedding.embedding_dim")
    gated = "glu" in entry(theirs, "nonlin").lower()
    fused = entry(theirs, "attention.type") == FUSED
    position = entry(theirs, "embedding.pos_embedding")
    return CrammedConfig(
        layers=entry(theirs, "num_transformer_layers"),
        hidden=hidden,
        heads=entry(theirs, "attention.num_attention_heads"),
        intermediate=entry(theirs, "intermed_size"),
        position="none" if position is None else position.replace("-", "_"),
        max_positions=entry(theirs, "embedding.max_seq_length"),
        rotary=entry_or(theirs, "attention.rotary_embedding", False) == "sanity" and not fused,
        embedding_dim=None if embedding_dim == hidden else embedding_dim,
        embedding_norm=entry(theirs, "embedding.normalization"),
        embedding_dropout=entry(theirs, "embedding.dropout_prob"),
        dropout=entry(theirs, "hidden_dropout_prob"),
        attention_dropout=entry(theirs, "attention.dropout_prob"),
        norm=_known("norm", entry(theirs, "norm"), norms),
        norm_eps=entry(theirs, "norm_eps"),
        norm_scheme=entry(theirs, "norm_scheme"),
        final_norm=entry(theirs, "final_norm"),
        deepnorm_scaling=bool(entry_or(theirs, "deepnorm_scaling", False)),
        nonlin=_known("nonlin", entry(theirs, "nonlin").split("glu")[0], NONLINEARITIES),
        glu=gated,
        bias=entry(theirs, "use_bias"),
        qkv_bias=entry(theirs, "attention.qkv_bias"),
        decoder_bias=entry(theirs, "decoder_bias"),
        head=skipped_transform if entry(theirs, "skip_head_transform") else "transform",
        tie_weights=entry(theirs, "tie_weights"),
        attend_padding=fused,
        init_std=entry_or(theirs, "init.std", 0.02),
        classification_head=_classification_head(entry_or(theirs, "classification_head", {})),
    )


def _classification_head(theirs: Mapping[str, Any]) -> ClassificationHeadConfig:
    ours = ClassificationHeadConfig()
    pooler = theirs.get("pooler", ours.pooler)
    return ClassificationHeadConfig(
        pooler=pooler,
        pool_padding=pooler != "zero_index",
        include_ff_layer=theirs.get("include_ff_layer", ours.include_ff_layer),
        head_dim=theirs.get("head_dim", ours.head_dim),
        nonlin=_known("classification_head.nonlin", theirs.get("nonlin", "Tanh"), NONLINEARITIES),
        classifier_dropout=theirs.get("classifier_dropout", ours.classifier_dropout),
    )


def _known(key: str, value: str, known: Mapping[str, str]) -> str:
    if value not in known:
        raise UserError(f"the reference's {key}={value!r} is not supported: only {', '.join(known)}")
    return known[value]


def _sources(arch: CrammedConfig, head: str) -> dict[str, Source]:
    names: dict[str, str] = {"embeddings.word.weight": "encoder.embedding.word_embedding.weight"}

    def linear(ours: str, theirs: str, bias: bool) -> None:
        for part in ("weight", "bias") if bias else ("weight",):
            names[f"{ours}.{part}"] = f"{theirs}.{part}"

    def norm(ours: str, theirs: str) -> None:
        if arch.norm == "layernorm":
            linear(ours, theirs, bias=True)
        else:
            names[f"{ours}.weight"] = f"{theirs}.learnable_scale"

    if arch.position == "learned":
        names["embeddings.position.weight"] = "encoder.embedding.pos_embedding.embedding.weight"
    elif arch.position == "scaled_sinusoidal":
        names["embeddings.position.scale"] = "encoder.embedding.pos_embedding.scale_factor"
    if arch.embedding_norm:
        norm("embeddings.norm", "encoder.embedding.norm")
    if arch.embedding_width != arch.hidden:
        linear("embeddings.projection", "encoder.input_projection", arch.bias)
    fused = arch.attend_padding
    projection = "self_attention.flash_mha.Wqkv" if fused else "self_attention.query_key_value"
    for i in range(arch.layers):
        block, layer = f"blocks.{i}", f"encoder.layers.{i}"
        linear(f"{block}.attention.function.qkv", f"{layer}.attn.{projection}", arch.qkv_bias)
        linear(f"{block}.attention.function.output", f"{layer}.attn.dense", arch.bias)
        norm(f"{block}.attention.norm", f"{layer}.norm1")
        linear(f"{block}.feedforward.function.expand", f"{layer}.ffn.dense_in", arch.bias)
        linear(f"{block}.feedforward.function.contract", f"{layer}.ffn.dense_out", arch.bias)
        norm(f"{block}.feedforward.norm", f"{layer}.norm2")
        if arch.norm_scheme == "sandwich":
            norm(f"{block}.attention.output_norm", f"{layer}.norm3")
            norm(f"{block}.feedforward.output_norm", f"{layer}.norm4")
    if arch.final_norm:
        norm("final_norm", "encoder.final_norm")
    if head == MLM:
        if arch.head == "transform":
            linear("head.dense", "prediction_head.dense", arch.bias)
            norm("head.norm", "prediction_head.norm")
        elif arch.head == "linear":
            linear("head.dense", "prediction_head", arch.bias)
        if arch.decoder_bias:
            names["head.bias"] = "decoder.bias"
        if not arch.tie_weights:
            names["head.decoder.weight"] = "decoder.weight"
    else:
        if arch.classification_head.include_ff_layer:
            linear("head.pooler", "pooler.dense", bias=True)
        linear("head.classifier", "head", bias=True)
    by_head = None if fused else _parts_first(arch.hidden, arch.heads)
    return {ours: Source((theirs,), by_head if ".qkv." in ours else None) for ours, theirs in names.items()}


def _parts_first(hidden: int, heads: int) -> Tensor:
    """Rows laid out (head, part, width of a head) in our order, (part, head, width): queries, keys, values."""
    return torch.arange(3 * hidden).view(heads, 3, hidden // heads).transpose(0, 1).flatten()


def _buffers(arch: CrammedConfig) -> dict[str, Callable[[Tensor], Tensor]]:
    """Constants that the reference keeps with the weights where it has a use for them."""
    frequencies = 10000.0 ** (torch.arange(0, arch.hidden // arch.heads, 2) / -(arch.hidden // arch.heads))
    derived: dict[str, Callable[[Tensor], Tensor]] = {
        f"encoder.layers.{i}.attn.self_attention.rotary_emb.inv_freq": lambda _: frequencies for i in range(arch.layers)
    }
    derived["encoder.embedding.pos_embedding.position_ids"] = lambda there: torch.arange(there.shape[-1]).expand(
        there.shape
    )
    return derived


def _constants(arch: CrammedConfig, rewritten: bool) -> dict[str, Tensor]:
    """Constants that the reference always keeps with the weights."""
    constants = {}
    for i in range(arch.layers):
        if not arch.attend_padding:  # fused attention scales by itself
            factor = torch.tensor((arch.hidden // arch.heads) ** -0.5)
            constants[f"encoder.layers.{i}.attn.self_attention.norm_factor"] = factor
        if not rewritten:
            scale = (2 * arch.layers) ** 0.25 if arch.deepnorm_scaling else 1.0
            constants[f"encoder.layers.{i}.alpha"] = torch.tensor(scale)
    if not rewritten:
        constants["encoder.p"] = torch.tensor(1.0)  # the layers' scale, which only layer dropping changes
    return constants
