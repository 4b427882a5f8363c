"""BERT with norms before its sublayers, 24hBERT: against a plain definition, and against transformers' classes.

The definition is from https://arxiv.org/abs/2104.07705 and https://arxiv.org/abs/2002.04745 (figure 1b), under the
names that the reference's checkpoints have.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cramming.architectures import BertConfig, dense_outputs, from_reference
from cramming.architectures.reference import to_reference
from cramming.architectures.references import DETECTORS, FAMILIES, WRITERS
from cramming.batch import Batch
from cramming.cli import compose
from cramming.errors import UserError
from cramming.model import Model

MakeBatch = Callable[..., Batch]
LENGTHS = [17, 1, 9, 12]
VOCABULARY, ROWS = 97, 20
EXTREMEBERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": ROWS,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 0.3,  # which the reference does not read
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "encoder_ln_mode": "pre-ln",
    "layernorm_embedding": False,
    "fused_linear_layer": True,
    "sparse_mask_prediction": True,
    "layer_norm_type": "apex",
    "useLN": True,
}


def layer_norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, state[f"{name}.weight"]) + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def definition(config: Mapping[str, Any], state: Mapping[str, Tensor], ids: Tensor, length: int) -> Tensor:
    """Logits of one sequence without its padding: (S,) of which ``length`` are tokens -> (length, V)."""
    ids, heads = ids[:length], config["num_attention_heads"]
    act = "dense_act" if config["fused_linear_layer"] else "dense_act.dense"
    tables = "bert.embeddings"
    x = state[f"{tables}.word_embeddings.weight"][ids] + state[f"{tables}.position_embeddings.weight"][:length]
    x = x + state[f"{tables}.token_type_embeddings.weight"][0]
    if config["layernorm_embedding"]:
        x = layer_norm(state, f"{tables}.LayerNorm", x)
    pre = config["encoder_ln_mode"] == "pre-ln"
    for i in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}"
        y = layer_norm(state, f"{layer}.PreAttentionLayerNorm", x) if pre else x
        q, k, v = (linear(state, f"{layer}.attention.self.{part}", y) for part in ("query", "key", "value"))
        read = []
        for one in range(heads):
            part = slice(one * q.shape[1] // heads, (one + 1) * q.shape[1] // heads)
            scores = q[:, part] @ k[:, part].T / math.sqrt(q.shape[1] // heads)
            read.append(torch.softmax(scores, 1) @ v[:, part])
        x = x + linear(state, f"{layer}.attention.output.dense", torch.cat(read, 1))
        x = x if pre else layer_norm(state, f"{layer}.PreAttentionLayerNorm", x)
        y = layer_norm(state, f"{layer}.PostAttentionLayerNorm", x) if pre else x
        x = x + linear(state, f"{layer}.output.dense", gelu(linear(state, f"{layer}.intermediate.{act}", y)))
        x = x if pre else layer_norm(state, f"{layer}.PostAttentionLayerNorm", x)
    if pre:
        x = layer_norm(state, "bert.encoder.FinalLayerNorm", x)
    x = layer_norm(
        state, "cls.predictions.transform.LayerNorm", gelu(linear(state, f"cls.predictions.transform.{act}", x))
    )
    logits = x @ state[f"{tables}.word_embeddings.weight"].T
    return logits if config["sparse_mask_prediction"] else logits + state["cls.predictions.bias"]


def checkpoint(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Random tensors under the reference's names, all that it keeps."""
    hidden, wide, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    act = "dense_act" if config["fused_linear_layer"] else "dense_act.dense"
    generator = torch.Generator().manual_seed(5)
    state = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        state[name] = around + 0.2 * torch.randn(shape, generator=generator)

    def add_linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def add_norm(name: str) -> None:
        add(f"{name}.weight", hidden, around=1.0)
        add(f"{name}.bias", hidden)

    for table, size in (("word", rows), ("position", config["max_position_embeddings"]), ("token_type", 2)):
        add(f"bert.embeddings.{table}_embeddings.weight", size, hidden)
    if config["layernorm_embedding"]:
        add_norm("bert.embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            add_linear(f"{layer}.attention.{part}", hidden, hidden)
        add_linear(f"{layer}.intermediate.{act}", wide, hidden)
        add_linear(f"{layer}.output.dense", hidden, wide)
        add_norm(f"{layer}.PreAttentionLayerNorm")
        add_norm(f"{layer}.PostAttentionLayerNorm")
    add_norm("bert.encoder.FinalLayerNorm")
    add_linear(f"cls.predictions.transform.{act}", hidden, hidden)
    add_norm("cls.predictions.transform.LayerNorm")
    add("cls.predictions.bias", rows)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    return state


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layernorm_embedding": True, "num_attention_heads": 4, "fused_linear_layer": False},
        {"encoder_ln_mode": "post-ln", "layernorm_embedding": True, "sparse_mask_prediction": False},
        {"encoder_ln_mode": "post-ln", "num_hidden_layers": 1},
    ],
)
def test_losses_and_gradients_are_the_definitions(
    make_batch: MakeBatch, settings: dict[str, Any], lengths: list[int] | None
) -> None:
    config = EXTREMEBERT | settings
    state = checkpoint(config)
    model = from_reference("extremebert", config, state, "mlm")
    batch = make_batch(lengths=lengths)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    expected = torch.zeros_like(batch.weights)
    for row, ids in enumerate(batch.inputs):
        logits = definition(config, leaves, ids, 17 if lengths is None else lengths[row])
        used = batch.weights[row].bool()
        at = logits[batch.positions[row][used]].log_softmax(1)
        expected[row, used] = -at.gather(1, batch.labels[row][used][:, None])[:, 0]
    losses = model(batch)
    torch.testing.assert_close(losses * batch.weights, expected, rtol=1e-5, atol=1e-5)

    (expected.sum() / batch.normalizer).backward()
    ((losses * batch.weights).sum() / batch.normalizer).backward()
    for ours, source in FAMILIES["extremebert"](config, "mlm").sources.items():
        due = torch.cat([leaves[name].grad for name in source.names])
        torch.testing.assert_close(
            model.get_parameter(ours).grad, due, rtol=1e-4, atol=2e-6, msg=lambda m, n=ours: f"{n}: {m}"
        )
    assert [name for name, detect in DETECTORS.items() if detect(config, state)] == ["extremebert"]


def test_the_option_is_the_published_encoder() -> None:
    arch = compose(["arch=24hbert"]).arch
    assert (arch.layers, arch.hidden, arch.heads, arch.intermediate) == (24, 1024, 16, 4096)
    config = EXTREMEBERT | {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "vocab_size": 30522,
    }
    with torch.device("meta"):
        ours, published = (
            a.build(30522, 512).state_dict() for a in (arch, FAMILIES["extremebert"](config, "mlm").arch)
        )
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in published.items()}
    assert sum(tensor.numel() for tensor in ours.values()) == 335_143_936


def test_the_recipe_is_the_published_one() -> None:
    """The command that the reference's README gives for its best model."""
    config = compose(["experiment=24hbert_large"])
    train, optim, arch = config.train, config.train.optim, config.arch
    assert (arch.name, arch.dropout, arch.attention_dropout, config.budget_s) == ("24hbert", 0.1, 0.1, 24 * 3600)
    assert (config.data.seq_length, train.batch_size, train.mask_rate, train.clip_norm) == (128, 4096, 0.15, None)
    assert (optim.kind, optim.lr, optim.betas, optim.eps, optim.weight_decay) == (
        "adamw",
        1e-3,
        [0.9, 0.98],
        1e-6,
        0.01,
    )
    assert (train.schedule.kind, train.schedule.warmup, train.schedule.end) == ("linear", 0.06, 0.0)
    assert optim.decay_norms is False


def test_a_norm_scheme_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"arch\.norm_scheme=Pre is unknown; did you mean 'pre'"):
        BertConfig(norm_scheme="Pre")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type='rms_norm' is not supported"),
        ({"encoder_ln_mode": "sandwich"}, "encoder_ln_mode='sandwich' is not supported"),
        ({"encoder_ln_mode": None}, "lacks 'encoder_ln_mode'"),
    ],
)
def test_what_the_reference_can_do_and_we_cannot_is_refused(settings: dict[str, Any], message: str) -> None:
    config = {name: value for name, value in (EXTREMEBERT | settings).items() if value is not None}
    with pytest.raises(UserError, match=message):
        from_reference("extremebert", config, checkpoint(EXTREMEBERT), "mlm")


CLASSES = {
    "hf_bert": (transformers.BertConfig, transformers.BertForMaskedLM),
    "megatron_bert": (transformers.MegatronBertConfig, transformers.MegatronBertForMaskedLM),
    "roberta_prelayernorm": (transformers.RobertaPreLayerNormConfig, transformers.RobertaPreLayerNormForMaskedLM),
}


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({"norm_scheme": "pre", "embedding_norm": False, "decoder_bias": False}, "megatron_bert"),  # 24hBERT
        ({"norm_scheme": "pre", "embedding_norm": False}, "megatron_bert"),
        ({"norm_scheme": "pre"}, "roberta_prelayernorm"),
        ({"norm_scheme": "pre", "decoder_bias": False}, "roberta_prelayernorm"),
        ({"decoder_bias": False}, "hf_bert"),
        ({}, "hf_bert"),
    ],
)
def test_written_checkpoints_are_what_transformers_reads(
    make_batch: MakeBatch, options: dict[str, Any], family: str
) -> None:
    arch = BertConfig(layers=3, hidden=24, heads=3, intermediate=40, max_positions=ROWS, **options)
    model = arch.build(VOCABULARY, ROWS).eval()
    assert isinstance(model, Model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    written_by, config = WRITERS["bert"](arch, VOCABULARY, ROWS)
    assert written_by == family
    state = to_reference(model, FAMILIES[family](config, "mlm"), copies=True)
    assert [name for name, detect in DETECTORS.items() if detect(config, state)] == [family]
    configure, build = CLASSES[family]
    theirs = build(configure(**config)).eval()
    theirs.load_state_dict(state)
    batch = make_batch(lengths=LENGTHS)
    mask = torch.arange(17) < batch.lengths[:, None]
    found = dense_outputs(model, batch.inputs, mask)["logits"]
    expected = theirs(batch.inputs, attention_mask=mask).logits
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)
    again = from_reference(family, theirs.config.to_dict(), theirs.state_dict(), "mlm")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_megatrons_classifier_is_that_of_transformers(make_batch: MakeBatch) -> None:
    torch.manual_seed(0)
    arch = BertConfig(layers=2, hidden=24, heads=3, intermediate=40, norm_scheme="pre", embedding_norm=False)
    config = WRITERS["bert"](arch, VOCABULARY, ROWS)[1]
    sizes = transformers.MegatronBertConfig(**config | {"initializer_range": 0.2}, num_labels=3)
    theirs = transformers.MegatronBertForSequenceClassification(sizes).eval()
    model = from_reference("megatron_bert", theirs.config.to_dict(), theirs.state_dict(), "classification")
    inputs = make_batch(lengths=LENGTHS).inputs
    mask, types = (inputs != 0).long(), (inputs % 2)
    found = dense_outputs(model, inputs, mask, types)["logits"]
    torch.testing.assert_close(found, theirs(inputs, mask, types).logits)


def test_what_no_class_of_transformers_is_cannot_be_written() -> None:
    with pytest.raises(UserError, match=r"norm_scheme=post with arch\.embedding_norm=false"):
        WRITERS["bert"](BertConfig(embedding_norm=False), VOCABULARY, ROWS)


def test_a_bias_that_the_model_lacks_must_be_zero() -> None:
    arch = BertConfig(layers=1, hidden=24, heads=3, intermediate=40, decoder_bias=False)
    family, config = WRITERS["bert"](arch, VOCABULARY, ROWS)
    state = to_reference(arch.build(VOCABULARY, ROWS), FAMILIES[family](config, "mlm"), copies=False)
    assert not state["cls.predictions.bias"].any()
    from_reference(family, config, state, "mlm")
    state["cls.predictions.bias"][3] = 1.0
    with pytest.raises(UserError, match=r"'cls.predictions.bias' differs"):
        from_reference(family, config, state, "mlm")
