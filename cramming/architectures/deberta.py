"""DeBERTa v2 and v3 (https://arxiv.org/abs/2006.03654, https://arxiv.org/abs/2111.09543): transformers' own modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from cramming.architectures.configs.deberta import DebertaConfig
from cramming.architectures.hf import TransformersClassifier, TransformersEncoder, TransformersLanguageModel, made
from cramming.architectures.hf_head import FUSED, Head, decoders
from cramming.architectures.hf_layers import Stack, exchanged

_NONLINEARITIES = {"gelu_tanh": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class _WithConvolution(Stack):
    """DeBERTa's layers. The convolution of v2 belongs to the first that runs: without any it does not run either."""

    @contextmanager
    def _exchanged(self, network: nn.Module, layers: list[nn.Module]) -> Iterator[None]:
        encoder: Any = network.get_submodule("deberta.encoder")
        conv = encoder.conv if layers else None
        with super()._exchanged(network, layers), exchanged(encoder, "conv", conv):
            yield


_STACK = _WithConvolution("deberta.encoder.layer", outputs=2)


class Deberta(TransformersLanguageModel):
    """DeBERTa with the masked-language-model head."""


class DebertaClassifier(TransformersClassifier):
    """DeBERTa with a classification head on its first token."""


def transformers_options(arch: DebertaConfig, vocab_size: int, positions: int) -> dict[str, Any]:
    """The options of transformers' ``DebertaV2Config``."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.intermediate,
        "hidden_act": _NONLINEARITIES.get(arch.nonlin, arch.nonlin),
        "hidden_dropout_prob": arch.dropout,
        "attention_probs_dropout_prob": arch.attention_dropout,
        "pooler_dropout": arch.dropout,
        "cls_dropout": arch.dropout,
        "pooler_hidden_act": "gelu",
        "max_position_embeddings": positions,
        "max_relative_positions": -1,
        "type_vocab_size": arch.token_types,
        "initializer_range": arch.init_std,
        "layer_norm_eps": arch.norm_eps,
        "relative_attention": True,
        "position_buckets": arch.position_buckets or -1,
        "pos_att_type": list(arch.position_terms),
        "share_att_key": arch.share_attention_key,
        "norm_rel_ebd": "layer_norm" if arch.relative_norm else "none",
        "position_biased_input": arch.absolute_positions,
        "conv_kernel_size": arch.conv_kernel,
        "conv_act": _NONLINEARITIES.get(arch.conv_nonlin, arch.conv_nonlin),
        "legacy": arch.legacy_head,
    }


def build(arch: DebertaConfig, vocab_size: int, positions: int, labels: int | None) -> TransformersEncoder:
    """The model with fresh weights; no token is taken for padding, which ``Batch.lengths`` tells."""
    from transformers import DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2ForSequenceClassification

    config = DebertaV2Config(**transformers_options(arch, vocab_size, positions), pad_token_id=None)
    if labels is None:
        network = made(DebertaV2ForMaskedLM, config)
        return Deberta(network, positions, _STACK, Head(FUSED, decoders(network)[0]))
    config.num_labels = labels
    return DebertaClassifier(made(DebertaV2ForSequenceClassification, config), positions, _STACK)
