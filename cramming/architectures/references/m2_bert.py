"""Monarch Mixer BERT (https://github.com/HazyResearch/m2, ``bert/src/bert_layers.py``).

Its released checkpoints come without a config of their own, and the recipes that made them do not say all of it:
whether there is a norm before the mixer, for one. The shapes of the tensors do.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.m2 import M2Config
from cramming.architectures.layers.filters import HIDDEN_LAYERS, decay_rates
from cramming.architectures.references.bert_names import linear
from cramming.architectures.references.mosaic_bert import VOCABULARY_MULTIPLE, outside_layers
from cramming.architectures.references.plan import (
    MLM,
    Plan,
    Shapes,
    Source,
    check_values,
    completer,
    detector,
    entry,
    entry_or,
    family,
    writer,
)
from cramming.errors import UserError

CONFIG = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "intermediate",
    "max_position_embeddings": "max_positions",
    "long_conv_l_max": "filter_length",
    "hyena_emb_dim": "filter_features",
    "hyena_w": "filter_frequency",
}
# Keys that have defaults there.
DEFAULTS = {
    "hyena_filter_order": ("filter_order", 64),
    "monarch_mlp_nblocks": ("blocks", 4),
    "bidirectional": ("bidirectional", True),
    "residual_long_conv": ("residual_convolution", False),
    "hyena_training_additions": ("training_additions", False),
    "pool_all": ("pool_all", False),
    "type_vocab_size": ("token_types", 2),
    "layer_norm_eps": ("norm_eps", 1e-12),
    "initializer_range": ("init_std", 0.02),
    "hidden_dropout_prob": ("dropout", 0.1),
    "classifier_dropout": ("classifier_dropout", None),
    "mask_padding": ("mask_padding", False),  # our word: there padding always leaks
}
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "use_positional_encodings": (True,),
    "monarch_mixer_sequence_mixing": (True,),
    "use_glu_mlp": (True,),
    "use_monarch_mlp": (True,),
    "hyena_w_mod": (1,),
    "use_flash_mm": (False,),  # another function: four taps, other lags
    "expand_positional_embeddings": (False,),
    "use_cls_token": (False,),
    "sequence_token_planting": (False,),
    "attention_pooling": (False,),
    "use_normalized_embeddings": (False,),
}
# What their code reads and has no default for; it then trains without (see M2Config).
TRAINING = {
    "long_conv_kernel_learning_rate": ("filter_lr", 1e-3),
    "hyena_lr_pos_emb": ("position_lr", 1e-5),
    "hyena_wd": ("filter_weight_decay", 0.1),
}
LAYER = "bert.encoder.layer.0"


@family("m2_bert")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for ``BertForMaskedLM`` or ``BertForSequenceClassification`` of its ``bert_layers.py``."""
    check_values("m2_bert", config, REQUIRED)
    arch = M2Config(
        **{ours: entry(config, theirs) for theirs, ours in CONFIG.items()},
        **{ours: entry_or(config, theirs, default) for theirs, (ours, default) in DEFAULTS.items()},
        pad_vocab_to=VOCABULARY_MULTIPLE,
    )
    sources = outside_layers(head)
    sources["embeddings.position.weight"] = Source(("bert.embeddings.position_embeddings.weight",))
    tied = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"} if head == MLM else {}
    constants = {"bert.embeddings.position_ids": torch.arange(entry(config, "max_position_embeddings"))[None]}
    for i in range(arch.layers):
        sources |= _layer(arch, f"blocks.{i}", f"bert.encoder.layer.{i}")
        for filters in _filters(arch, f"bert.encoder.layer.{i}"):
            original, *copies = _frequencies(arch, filters)
            tied |= dict.fromkeys(copies, original)
            constants |= _constants(arch, filters)
    return Plan(
        arch=arch,
        vocab_size=entry(config, "vocab_size"),
        positions=entry(config, "max_position_embeddings"),
        padding_id=config.get("pad_token_id"),
        sources=sources,
        classifier="classifier.weight",
        tied=tied,
        constants=constants,
        ignored=(r".*\.flashfft\..*",),  # tables of a kernel for transforms
        other_heads=(r"bert\.pooler\..*",) if head == MLM else (r"cls\..*",),
    )


def _filters(arch: M2Config, layer: str) -> list[str]:
    names = ("filter_fn", "filter_fn2") if arch.residual_convolution else ("filter_fn",)
    return [f"{layer}.attention.{name}" for name in names]


def _networks(arch: M2Config, filters: str) -> list[str]:
    names = ("implicit_filter", "implicit_filter_rev") if arch.bidirectional else ("implicit_filter",)
    return [f"{filters}.{name}" for name in names]


def _frequencies(arch: M2Config, filters: str) -> list[str]:
    """The names that one tensor has, being one module in many places."""
    return [f"{network}.{place}.freq" for network in _networks(arch, filters) for place in (1, 3, 5)]


def _constants(arch: M2Config, filters: str) -> dict[str, Tensor]:
    assert arch.filter_length is not None
    return {
        f"{filters}.pos_emb.t": torch.linspace(0, 1, arch.filter_length)[None, :, None],
        f"{filters}.modulation.deltas": decay_rates(arch.hidden)[None, None],
    }


def _layer(arch: M2Config, ours: str, theirs: str) -> dict[str, Source]:
    filters = _filters(arch, theirs)
    networks = [network for name in filters for network in _networks(arch, name)]
    generated = f"{ours}.mixer.filters"
    sources = {
        f"{generated}.features": Source(tuple(f"{name}.pos_emb.z" for name in filters)),
        f"{generated}.frequency": Source(tuple(f"{name}.implicit_filter.1.freq" for name in filters)),
        f"{generated}.skip": Source(tuple(f"{name}.bias" for name in filters)),
        f"{ours}.mixer.short_weight": Source((f"{theirs}.attention.short_filter.weight",)),
        f"{ours}.mixer.short_bias": Source((f"{theirs}.attention.short_filter.bias",)),
        **linear(f"{ours}.mixer.input", f"{theirs}.attention.in_linear"),
        **linear(f"{ours}.mixer.output", f"{theirs}.attention.out_linear"),
        f"{ours}.feedforward.expand.weight": Source((f"{theirs}.mlp.gated_layers.weight",)),
        **linear(f"{ours}.feedforward.contract", f"{theirs}.mlp.wo"),
        **linear(f"{ours}.feedforward_norm", f"{theirs}.mlp.layernorm"),
    }
    for place in range(HIDDEN_LAYERS + 1):
        weights = tuple(f"{name}.{2 * place}.weight" for name in networks)
        sources[f"{generated}.weight_{place}"] = Source(weights)
        if place < HIDDEN_LAYERS:
            sources[f"{generated}.bias_{place}"] = Source(tuple(f"{name}.{2 * place}.bias" for name in networks))
    if arch.training_additions:
        sources |= linear(f"{ours}.mixer.norm", f"{theirs}.attention.layernorm")
    return sources


@detector("m2_bert")
def is_m2_bert(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is M2-BERT's: filters where others attend."""
    bare = {name.removeprefix("bert.") for name in names}
    return "encoder.layer.0.attention.filter_fn.pos_emb.z" in bare


@completer("m2_bert")
def complete(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """A config with what it lacks and shapes tell, which is all that its tensors depend on."""
    names = {"word": "bert.embeddings.word_embeddings.weight", "gates": f"{LAYER}.mlp.gated_layers.weight"}
    names |= {"positions": "bert.embeddings.position_embeddings.weight"}
    names |= {"features": f"{LAYER}.attention.filter_fn.pos_emb.z"}
    names |= {"network": f"{LAYER}.attention.filter_fn.implicit_filter.0.weight"}
    found = {what: shapes[name] for what, name in names.items() if len(shapes.get(name, ())) >= 2}
    if len(found) < len(names):
        return dict(config)  # what is missing will be said
    rows, hidden = found["word"]
    blocks = found["gates"][0]
    layers = [re.match(r"bert\.encoder\.layer\.(\d+)\.", name) for name in shapes]
    told = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "num_hidden_layers": 1 + max(int(layer[1]) for layer in layers if layer),
        "intermediate_size": blocks * found["gates"][1] // 2,
        "monarch_mlp_nblocks": blocks,
        "max_position_embeddings": found["positions"][0],
        "long_conv_l_max": found["features"][1],
        "hyena_emb_dim": found["features"][-1],
        "hyena_filter_order": found["network"][0],
        "hyena_w": 10.0,  # where training begins
        "bidirectional": f"{LAYER}.attention.filter_fn.implicit_filter_rev.0.weight" in shapes,
        "residual_long_conv": f"{LAYER}.attention.filter_fn2.pos_emb.z" in shapes,
        "hyena_training_additions": f"{LAYER}.attention.layernorm.weight" in shapes,
        "pad_token_id": 0,
    }
    return {**told, **config}


@writer("m2")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config of its ``BertConfig``, which transformers has no class for.

    Raises:
        UserError: a vocabulary that its code would fill up further.
    """
    assert isinstance(arch, M2Config)
    if arch.pad_vocab_to % VOCABULARY_MULTIPLE and vocab_size % VOCABULARY_MULTIPLE:
        raise UserError(
            f"arch.pad_vocab_to={arch.pad_vocab_to} has no place in an M2-BERT checkpoint, whose vocabulary is filled "
            f"up to a multiple of {VOCABULARY_MULTIPLE}"
        )
    length = positions if arch.filter_length is None else arch.filter_length
    options = {theirs: getattr(arch, ours) for theirs, ours in CONFIG.items()}
    return "m2_bert", {
        "model_type": "m2_bert",
        "architectures": ["BertForMaskedLM"],
        **options,
        **{theirs: getattr(arch, ours) for theirs, (ours, _) in DEFAULTS.items()},
        **{name: accepted[0] for name, accepted in REQUIRED.items()},
        **{
            theirs: default if getattr(arch, ours) is None else getattr(arch, ours)
            for theirs, (ours, default) in TRAINING.items()
        },
        "max_position_embeddings": positions,
        "long_conv_l_max": length,
        "num_attention_heads": 1,  # read and not used
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "vocab_size": vocab_size,
    }
