"""Parity with MosaicBERT on stored cases; what its checkpoints may have, lack and call things."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramming.architectures import dense_outputs, from_reference
from cramming.architectures.configs.mosaic import MosaicConfig
from cramming.architectures.layers.unpadding import Queries
from cramming.architectures.reference import to_reference
from cramming.architectures.references import DETECTORS, FAMILIES, WRITERS
from cramming.errors import UserError
from tests.architectures.golden import Groups, load

CASES = {
    "mosaic_bert_mlm": "mlm",
    "mosaic_bert_mlm_6heads": "mlm",
    "mosaic_bert_cls": "classification",
    "mosaic_bert_reg": "regression",
}
LANGUAGE_MODELS = [case for case, head in CASES.items() if head == "mlm"]


def imported(description: dict[str, Any], tensors: Groups) -> nn.Module:
    """Our model of a stored case."""
    return from_reference("mosaic_bert", description["config"], tensors["state_dict"], CASES[description["case"]])


def gradients(model: nn.Module, description: dict[str, Any]) -> dict[str, Tensor]:
    """Of every parameter, under the reference's names and in its order."""
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for ours, source in FAMILIES["mosaic_bert"](description["config"], CASES[description["case"]]).sources.items():
        found |= source.apart(parameters[ours].grad)
    return found


@pytest.mark.parametrize("case", CASES)
def test_stored_outputs_and_every_gradient(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    model = imported(description, tensors)
    inputs, expected = tensors["input"], tensors["expected"]
    outputs = dense_outputs(model, **inputs)
    outputs["loss"].backward()

    def close(ours: Tensor, theirs: Tensor, key: str) -> None:
        atol = description["tolerances"][key]["atol"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda m: f"{key}: {m}")

    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    close(outputs["hidden"][mask], expected["final_hidden"][mask], "expected.final_hidden")
    logits, stored = outputs["logits"], expected["logits"]
    close(*((logits[mask], stored[mask]) if logits.dim() == 3 else (logits, stored)), "expected.logits")
    close(outputs["loss"], expected["loss"], "expected.loss")
    found = gradients(model, description)
    assert tensors["grad"].keys() <= found.keys()
    for theirs, gradient in tensors["grad"].items():
        close(found[theirs], gradient, f"grad.{theirs}")
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm().item()
    assert norm == pytest.approx(description["grad_global_l2_norm_fp64"], rel=1e-5)
    assert sum(p.numel() for p in model.parameters()) == description["num_parameters"]


@pytest.mark.parametrize("case", CASES)
def test_stored_loss_in_float64(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    loss = dense_outputs(imported(description, tensors).double(), **tensors["input"])["loss"].item()
    # Targets of a regression are float32 in the reference too.
    assert loss == pytest.approx(description["loss_fp64"], rel=1e-7 if CASES[case] == "regression" else 1e-9)


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_stored_intermediates(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    model = imported(description, tensors)
    inputs = {name: tensor for name, tensor in tensors["input"].items() if name != "labels"}
    mask = inputs["attention_mask"].bool()
    for active, key in (((), "embedding_output"), ((0,), "layer0_output")):
        model.active_layers = active
        hidden = dense_outputs(model, **inputs)["hidden"]
        atol = description["tolerances"][f"expected.{key}"]["atol"]
        torch.testing.assert_close(hidden[mask], tensors["expected"][key][mask], rtol=0, atol=atol)


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_training_computes_the_stored_loss_and_gradients_at_predicted_positions(shared: Path, case: str) -> None:
    """As runs do it: nothing beyond attention is computed in the last layer where nothing is predicted."""
    description, tensors = load(shared, case)
    given = tensors["input"]
    model = imported(description, tensors)
    predicted = given["labels"] > 0
    rows, columns = predicted.nonzero().unbind(1)
    layout = model.layout(given["input_ids"], lengths=given["attention_mask"].sum(1))
    everywhere = layout.rows_of(torch.arange(predicted.shape[1]).expand(len(predicted), -1))
    queries = Queries(everywhere, rows * predicted.shape[1] + columns)
    x, decoder = model.encode(given["input_ids"], layout, given["token_type_ids"], queries)
    assert x.shape[0] == predicted.sum()
    loss = model.head.losses(x, decoder, given["labels"][predicted]).mean()
    atol = description["tolerances"]["expected.loss"]["atol"]
    torch.testing.assert_close(loss, tensors["expected"]["loss"], rtol=0, atol=atol)
    loss.backward()
    found = gradients(model, description)
    for theirs, gradient in tensors["grad"].items():
        atol = description["tolerances"][f"grad.{theirs}"]["atol"]
        torch.testing.assert_close(found[theirs], gradient, rtol=0, atol=atol, msg=lambda m, n=theirs: f"{n}: {m}")


@pytest.fixture
def config() -> dict[str, Any]:
    """The reference's, of a small model with a vocabulary that is no multiple of 8."""
    return {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "alibi_starting_size": 512,
        "initializer_range": 0.2,
        "classifier_dropout": None,
    }


def state_of(config: dict[str, Any], vocabulary: int) -> dict[str, Tensor]:
    """Random weights under the reference's names, with so many rows of words."""
    torch.manual_seed(0)
    plan = FAMILIES["mosaic_bert"](config, "mlm")
    model = plan.arch.build(plan.vocab_size, plan.positions)
    state = to_reference(model, plan, copies=True)
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"):
        state[name] = state[name][:vocabulary].clone()
    state["cls.predictions.decoder.bias"] = torch.randn(vocabulary)
    return state


def test_a_vocabulary_that_was_not_filled_up_is_and_the_new_words_are_never_predicted(config: dict[str, Any]) -> None:
    state = state_of(config, 61)
    ids = torch.randint(1, 61, (2, 9))
    logits = dense_outputs(from_reference("mosaic_bert", config, state, "mlm"), ids)["logits"]
    assert logits.shape == (2, 9, 64)
    assert not logits.softmax(-1)[..., 61:].any()
    assert not logits.half().softmax(-1)[..., 61:].any()
    full = {
        name: torch.cat((tensor, torch.randn(3, *tensor.shape[1:]))) if tensor.shape[0] == 61 else tensor
        for name, tensor in state.items()
    }
    full["cls.predictions.decoder.weight"] = full["bert.embeddings.word_embeddings.weight"]
    as_stored = dense_outputs(from_reference("mosaic_bert", config | {"vocab_size": 64}, full, "mlm"), ids)["logits"]
    torch.testing.assert_close(as_stored[..., :61], logits[..., :61])
    assert (as_stored[..., 61:] > -100).all(), "and rows that are there are taken as they are"
    with pytest.raises(UserError, match=r"word_embeddings.weight' has shape \(61, 24\), the config says \(72, 24\)"):
        from_reference("mosaic_bert", config | {"vocab_size": 72}, state, "mlm")


def test_a_stored_bias_and_position_buffers_are_dropped_and_the_tied_matrix_may_be_absent(
    config: dict[str, Any],
) -> None:
    state = state_of(config, 64)
    ids = torch.randint(1, 61, (2, 9))
    expected = dense_outputs(from_reference("mosaic_bert", config, state, "mlm"), ids)["logits"]
    older = {name: tensor for name, tensor in state.items() if name != "cls.predictions.decoder.weight"}
    older["bert.encoder.alibi"] = torch.randn(1, 3, 512, 512)
    older["bert.embeddings.position_ids"] = torch.arange(512)[None]
    assert torch.equal(dense_outputs(from_reference("mosaic_bert", config, older, "mlm"), ids)["logits"], expected)
    changed = state | {"cls.predictions.decoder.weight": state["cls.predictions.decoder.weight"] + 1}
    with pytest.raises(UserError, match=r"decoder.weight' differs from 'bert.embeddings.word_embeddings.weight'"):
        from_reference("mosaic_bert", config, changed, "mlm")
    with pytest.raises(UserError, match=r"without a place in the model: 'bert.encoder.layer.2.mlp.wo.bias'"):
        from_reference("mosaic_bert", config, state | {"bert.encoder.layer.2.mlp.wo.bias": torch.zeros(24)}, "mlm")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_act": "relu"}, "mosaic_bert with hidden_act='relu' is not supported"),
        ({"num_attention_heads": 5}, "does not divide"),
        ({"intermediate_size": 21}, r"gated_layers.weight' has shape \(40, 24\), the config says \(42, 24\)"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_reference("mosaic_bert", config | changed, state_of(config, 64), "mlm")
    with pytest.raises(UserError, match="lacks 'intermediate_size'"):
        FAMILIES["mosaic_bert"]({k: v for k, v in config.items() if k != "intermediate_size"}, "mlm")


@pytest.mark.parametrize(
    "options", [{}, {"heads": 6, "dropout": 0.2, "classifier_dropout": 0.3, "norm_eps": 1e-5}, {"token_types": 3}]
)
def test_what_is_written_is_read_back(options: dict[str, Any]) -> None:
    arch = MosaicConfig(layers=2, hidden=24, intermediate=20, **({"heads": 3} | options))
    family, written = WRITERS["mosaic"](arch, 61, arch.build(61, 16).max_positions)
    assert family == "mosaic_bert"
    plan = FAMILIES[family](written, "mlm")
    assert plan.arch == arch
    assert written["vocab_size"] == 64
    torch.manual_seed(0)
    model = arch.build(61, 16).eval()
    state = to_reference(model, plan, copies=True)
    again = from_reference(family, written, state, "mlm")
    ids = torch.randint(1, 61, (2, 9))
    assert torch.equal(dense_outputs(again, ids)["logits"], dense_outputs(model, ids)["logits"])
    assert [name for name, detect in DETECTORS.items() if detect(written, state)] == ["mosaic_bert"]
    assert [name for name, detect in DETECTORS.items() if detect({}, state)] == ["mosaic_bert"]


def test_what_their_checkpoints_cannot_say_is_refused() -> None:
    arch = MosaicConfig(layers=2, hidden=24, heads=3, intermediate=20)
    arch.glu = False
    with pytest.raises(UserError, match=r"arch.glu=false has no place in a MosaicBERT checkpoint"):
        WRITERS["mosaic"](arch, 64, 512)
    arch.glu, arch.pad_vocab_to = True, 1
    with pytest.raises(UserError, match=r"arch.pad_vocab_to=1 gives 61 rows of embeddings"):
        WRITERS["mosaic"](arch, 61, 512)
