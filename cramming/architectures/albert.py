"""ALBERT (https://arxiv.org/abs/1909.11942): transformers' own modules."""

from typing import Any

from cramming.architectures.configs.albert import AlbertConfig
from cramming.architectures.hf import TransformersClassifier, TransformersEncoder, TransformersLanguageModel, made
from cramming.architectures.hf_head import FUSED, Decoder, Head
from cramming.architectures.hf_layers import SharedStack

# Ours is computed in one pass over the values; the published config's name for the same formula is in eight.
_NONLINEARITIES = {"gelu_tanh": "gelu_pytorch_tanh"}
_STACK = SharedStack("albert.encoder.albert_layer_groups")
_HEAD = Head(FUSED, Decoder("predictions.decoder", "predictions.decoder.weight", "predictions.decoder.bias"))


class Albert(TransformersLanguageModel):
    """ALBERT with the masked-language-model head."""


class AlbertClassifier(TransformersClassifier):
    """ALBERT with a classification head on its first token."""


def transformers_options(arch: AlbertConfig, vocab_size: int, positions: int) -> dict[str, Any]:
    """The options of transformers' ``AlbertConfig``."""
    return {
        "vocab_size": vocab_size,
        "embedding_size": arch.embedding_dim,
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_hidden_groups": arch.groups,
        "inner_group_num": arch.layers_in_group,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.intermediate,
        "hidden_act": _NONLINEARITIES.get(arch.nonlin, arch.nonlin),
        "hidden_dropout_prob": arch.dropout,
        "attention_probs_dropout_prob": arch.attention_dropout,
        "classifier_dropout_prob": arch.dropout,
        "max_position_embeddings": positions,
        "type_vocab_size": arch.token_types,
        "initializer_range": arch.init_std,
        "layer_norm_eps": arch.norm_eps,
    }


def build(arch: AlbertConfig, vocab_size: int, positions: int, labels: int | None) -> TransformersEncoder:
    """The model with fresh weights; no token is taken for padding, which ``Batch.lengths`` tells."""
    from transformers import AlbertConfig as Config
    from transformers import AlbertForMaskedLM, AlbertForSequenceClassification

    config = Config(**transformers_options(arch, vocab_size, positions), pad_token_id=None)
    if labels is None:
        return Albert(made(AlbertForMaskedLM, config), positions, _STACK, _HEAD)
    config.num_labels = labels
    return AlbertClassifier(made(AlbertForSequenceClassification, config), positions, _STACK)
