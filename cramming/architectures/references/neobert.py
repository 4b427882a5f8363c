"""NeoBERT as released (https://huggingface.co/chandar-lab/NeoBERT, code https://github.com/chandar-lab/NeoBERT).

Its rotation turns neighbouring features of a head, ours one of each half; its fused matrix is laid out head by head.
Both are orders of the rows of one matrix, so that ours computes the same.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from cramming.architectures.configs.modern import ModernConfig, PooledHeadConfig
from cramming.architectures.references.plan import MLM, Plan, Source, check_values, detector, entry, family
from cramming.errors import UserError

NEOBERT = "neobert"
CONFIG = {"num_hidden_layers": "layers", "hidden_size": "hidden", "num_attention_heads": "heads"}
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("SwiGLU", "swiglu"),
    "rms_norm": (True,),
    "rope": (True,),
    "ngpt": (False,),
}
# What makes the options of ``modern`` those of NeoBERT, whatever its sizes.
FORM: dict[str, Any] = {
    "nonlin": "silu",
    "global_every": 1,
    "theta": 10000.0,
    "norm": "rmsnorm",
    "embedding_norm": False,
    "attention_bias": False,
    "feedforward_bias": False,
    "head": "none",
    "decoder_bias": True,
    "tie_weights": False,
}
MULTIPLE = 8  # of which the width of its feed-forward part is, matrix units liking that


@family(NEOBERT)
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``NeoBERTLMHead`` or ``NeoBERTForSequenceClassification``.

    The latter also drops out before its dense layer, in training.
    """
    check_values(NEOBERT, config, REQUIRED)
    asked = int(2 * entry(config, "intermediate_size") / 3)  # three matrices with as many weights as two had
    arch = ModernConfig(
        name=NEOBERT,
        **{ours: entry(config, theirs) for theirs, ours in CONFIG.items()},
        **FORM,
        intermediate=-(-asked // MULTIPLE) * MULTIPLE,
        norm_eps=config.get("norm_eps", 1e-6),
        dropout=config.get("dropout", 0.0),
        init="uniform",
        init_std=config.get("decoder_init_range", 0.02),
        classification_head=PooledHeadConfig(
            nonlin="tanh", bias=True, norm=False, classifier_dropout=config.get("classifier_dropout", 0.1)
        ),
    )
    names = {"embeddings.word.weight": "model.encoder.weight", "final_norm.weight": "model.layer_norm.weight"}
    for i in range(arch.layers):
        ours, theirs = f"blocks.{i}", f"model.transformer_encoder.{i}"
        names |= {
            f"{ours}.attention_norm.weight": f"{theirs}.attention_norm.weight",
            f"{ours}.attention.qkv.weight": f"{theirs}.qkv.weight",
            f"{ours}.attention.output.weight": f"{theirs}.wo.weight",
            f"{ours}.feedforward_norm.weight": f"{theirs}.ffn_norm.weight",
            f"{ours}.feedforward.expand.weight": f"{theirs}.ffn.w12.weight",
            f"{ours}.feedforward.contract.weight": f"{theirs}.ffn.w3.weight",
        }
    if head == MLM:
        names |= {"head.decoder.weight": "decoder.weight", "head.bias": "decoder.bias"}
    else:
        for part in ("weight", "bias"):
            names |= {f"head.pooler.{part}": f"dense.{part}", f"head.classifier.{part}": f"classifier.{part}"}
    orders = {
        ".attention.qkv.": _rows_of_attention(arch.hidden, arch.heads),
        ".feedforward.expand.": torch.arange(2 * arch.intermediate).roll(arch.intermediate),  # theirs are gates first
    }
    return Plan(
        arch=arch,
        vocab_size=entry(config, "vocab_size"),
        positions=config.get("max_length", config.get("max_position_embeddings", 4096)),
        padding_id=config.get("pad_token_id", 0),
        sources={
            ours: Source((theirs,), next((order for part, order in orders.items() if part in ours), None))
            for ours, theirs in names.items()
        },
        classifier="classifier.weight",
        other_heads=(r"dense\..*", r"classifier\..*") if head == MLM else (r"decoder\..*",),
    )


@detector(NEOBERT)
def is_neobert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is NeoBERT's: its config's word and its names."""
    bare = {name.removeprefix("model.") for name in names}
    layer = "transformer_encoder.0"
    return config.get("model_type", NEOBERT) == NEOBERT and {
        "encoder.weight", f"{layer}.qkv.weight", f"{layer}.ffn.w12.weight"
    } <= bare  # fmt: skip


def neobert_config(arch: ModernConfig, vocab_size: int, positions: int) -> dict[str, Any] | None:
    """The config of ``NeoBERTLMHead``; None where the options are not of its form.

    Raises:
        UserError: of its form, but with a width that it would round up.
    """
    if any(getattr(arch, key) != value for key, value in FORM.items()):
        return None
    if arch.intermediate % MULTIPLE:
        raise UserError(
            f"arch.intermediate={arch.intermediate} cannot be exported: NeoBERT rounds it to a multiple of {MULTIPLE}"
        )
    return {
        "architectures": ["NeoBERTLMHead"],
        "model_type": NEOBERT,
        **{theirs: getattr(arch, ours) for theirs, ours in CONFIG.items()},
        "intermediate_size": arch.intermediate * 3 // 2,
        "hidden_act": "SwiGLU",
        "norm_eps": arch.norm_eps,
        "dropout": arch.dropout,
        "embedding_init_range": arch.init_std,
        "decoder_init_range": arch.init_std,
        "dim_head": arch.hidden // arch.heads,
        "vocab_size": vocab_size,
        "max_length": positions,
        "pad_token_id": 0,
    }


def _rows_of_attention(hidden: int, heads: int) -> Tensor:
    """Their row for each of ours: ours are (part, head, half, pair), theirs (head, part, pair, side of it).

    The values are not turned, and stay in their order within a head.
    """
    width = hidden // heads
    theirs = torch.arange(3 * hidden).view(heads, 3, width).transpose(0, 1)  # (part, head, width)
    turned = theirs[:2].unflatten(2, (width // 2, 2)).transpose(2, 3).flatten()
    return torch.cat((turned, theirs[2].flatten()))
