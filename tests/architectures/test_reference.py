"""Parity with the reference system, stored and live; checkpoints that do not fit are refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from cramming.architectures import BertConfig, dense_outputs, from_reference
from cramming.architectures.references import FAMILIES
from cramming.batch import Batch
from cramming.errors import UserError
from tests.architectures.golden import load

CASES = {"mlm": "mlm", "cls": "classification", "reg": "regression"}
SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture
def hf_bert() -> Callable[..., transformers.PreTrainedModel]:
    """A function that makes a randomly initialized reference model."""

    def make(kind: type = transformers.BertForMaskedLM, **settings: object) -> transformers.PreTrainedModel:
        torch.manual_seed(0)
        return kind(transformers.BertConfig(**(SIZES | settings))).eval()

    return make


@pytest.mark.parametrize("case", CASES)
def test_stored_outputs_and_gradients(shared: Path, case: str) -> None:
    description, tensors = load(shared, f"hf_bert_{case}")
    model = from_reference("hf_bert", description["config"], tensors["state_dict"], CASES[case])
    outputs = dense_outputs(model, **tensors["input"])
    outputs["loss"].backward()
    mask = tensors["input"]["attention_mask"].bool()

    def close(ours: Tensor, theirs: Tensor, key: str) -> None:
        atol = description["tolerances"][key]["atol"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda m: f"{key}: {m}")

    expected = tensors["expected"]
    close(outputs["hidden"][mask], expected["final_hidden"][mask], "expected.final_hidden")
    logits, stored = outputs["logits"], expected["logits"]
    close(*((logits[mask], stored[mask]) if case == "mlm" else (logits, stored)), "expected.logits")
    close(outputs["loss"], expected["loss"], "expected.loss")

    parameters = dict(model.named_parameters())
    compared = set()
    for ours, source in FAMILIES["hf_bert"](description["config"], CASES[case]).sources.items():
        for gradient, theirs in zip(parameters[ours].grad.chunk(len(source.names)), source.names, strict=True):
            if theirs in tensors["grad"]:
                compared.add(theirs)
                close(gradient, tensors["grad"][theirs], f"grad.{theirs}")
    assert compared == set(tensors["grad"])
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm().item()
    assert norm == pytest.approx(description["grad_global_l2_norm_fp64"], rel=1e-5)


def test_stored_intermediates(shared: Path) -> None:
    description, tensors = load(shared, "hf_bert_mlm")
    model = from_reference("hf_bert", description["config"], tensors["state_dict"], "mlm")
    mask = tensors["input"]["attention_mask"].bool()
    for active, key in (((), "embedding_output"), ((0,), "layer0_output")):
        model.active_layers = active
        hidden = dense_outputs(model, **tensors["input"])["hidden"]
        atol = description["tolerances"][f"expected.{key}"]["atol"]
        torch.testing.assert_close(hidden[mask], tensors["expected"][key][mask], rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_stored_loss_in_float64(shared: Path, case: str) -> None:
    description, tensors = load(shared, f"hf_bert_{case}")
    model = from_reference("hf_bert", description["config"], tensors["state_dict"], CASES[case]).double()
    loss = dense_outputs(model, **tensors["input"])["loss"].item()
    if case == "reg":  # its targets are float32 in the reference too
        assert loss == pytest.approx(description["loss_fp64"], rel=1e-7)
    else:
        assert loss == pytest.approx(description["loss_fp64"], rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({}, 17),
        ({"num_attention_heads": 8, "hidden_size": 40}, 20),
        ({"num_hidden_layers": 1, "type_vocab_size": 3}, 1),
    ],
)
def test_losses_and_gradients_of_a_live_reference(
    hf_bert: Callable[..., transformers.PreTrainedModel],
    make_batch: Callable[..., Batch],
    settings: dict[str, int],
    length: int,
) -> None:
    reference = hf_bert(**settings)
    model = from_reference("hf_bert", reference.config.to_dict(), reference.state_dict(), "mlm")
    lengths = [length, max(1, length // 2), max(1, length - 3)]
    batch = make_batch(3, length, min(4, length), lengths)
    mask = torch.arange(length) < batch.lengths[:, None]
    logits = reference(batch.inputs, attention_mask=mask.long()).logits
    there = logits[torch.arange(3)[:, None], batch.positions]
    losses = torch.nn.functional.cross_entropy(there.transpose(1, 2), batch.labels, reduction="none")
    used = batch.weights.bool()
    torch.testing.assert_close(model(batch)[used], losses[used], rtol=1e-5, atol=1e-5)

    ((losses * batch.weights).sum() / batch.normalizer).backward()
    ((model(batch) * batch.weights).sum() / batch.normalizer).backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    parameters = dict(model.named_parameters())
    for ours, source in FAMILIES["hf_bert"](reference.config.to_dict(), "mlm").sources.items():
        expected = torch.cat([gradients[theirs] for theirs in source.names])
        torch.testing.assert_close(parameters[ours].grad, expected, rtol=1e-4, atol=1e-6)


def test_padding_ids_that_are_attended_to_give_no_gradient_to_the_lookup(
    hf_bert: Callable[..., transformers.PreTrainedModel],
) -> None:
    reference = hf_bert(transformers.BertForSequenceClassification, num_labels=3)
    with torch.no_grad():  # its initialization zeroes the row
        reference.bert.embeddings.word_embeddings.weight[0] = 1.0
    model = from_reference("hf_bert", reference.config.to_dict(), reference.state_dict(), "classification")
    ids, labels = torch.tensor([[2, 7, 0, 0], [2, 9, 11, 0]]), torch.tensor([1, 2])
    outputs = dense_outputs(model, ids, labels=labels)
    expected = reference(ids, labels=labels)
    torch.testing.assert_close(outputs["logits"], expected.logits)
    outputs["loss"].backward()
    expected.loss.backward()
    gradient = model.embeddings.word.weight.grad
    torch.testing.assert_close(gradient, reference.bert.embeddings.word_embeddings.weight.grad)
    assert not gradient[0].any()
    assert gradient[7].any()


@pytest.mark.parametrize(("layers", "hidden", "heads", "intermediate"), [(12, 768, 12, 3072), (24, 1024, 16, 4096)])
def test_parameter_counts_are_the_references(layers: int, hidden: int, heads: int, intermediate: int) -> None:
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }
    with torch.device("meta"):
        ours = BertConfig(layers=layers, hidden=hidden, heads=heads, intermediate=intermediate).build(30522, 512)
        theirs = transformers.BertForMaskedLM(transformers.BertConfig(**sizes))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_inputs_are_not_changed_and_not_shared(hf_bert: Callable[..., transformers.PreTrainedModel]) -> None:
    reference = hf_bert()
    state, config = reference.state_dict(), reference.config.to_dict()
    before, keys = {name: tensor.clone() for name, tensor in state.items()}, dict(config)
    model = from_reference("hf_bert", config, state, "mlm")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    assert config == keys
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_derived_buffers_are_accepted_when_they_are_what_they_must_be(
    hf_bert: Callable[..., transformers.PreTrainedModel],
) -> None:
    reference = hf_bert()
    config, state = reference.config.to_dict(), dict(reference.state_dict())
    del state["cls.predictions.decoder.weight"], state["cls.predictions.decoder.bias"]
    state["bert.embeddings.position_ids"] = torch.arange(20)[None]
    state["bert.embeddings.token_type_ids"] = torch.zeros(1, 20, dtype=torch.int64)
    from_reference("hf_bert", config, state, "mlm")
    state["bert.embeddings.position_ids"] = torch.arange(20)[None] + 2
    with pytest.raises(UserError, match=r"position_ids' differs from"):
        from_reference("hf_bert", config, state, "mlm")


def test_checkpoints_that_do_not_fit_are_refused_by_name(hf_bert: Callable[..., transformers.PreTrainedModel]) -> None:
    reference = hf_bert()
    config, state = reference.config.to_dict(), dict(reference.state_dict())
    weight = "bert.encoder.layer.1.output.dense.weight"

    def refuse(message: str, family: str = "hf_bert", head: str = "mlm", **changed: dict) -> None:
        with pytest.raises(UserError, match=message):
            from_reference(family, changed.get("config", config), changed.get("state", state), head)

    refuse(f"lacks '{weight}'", state={k: v for k, v in state.items() if k != weight})
    refuse("without a place in the model: 'bert.pooler.bias'", state=state | {"bert.pooler.bias": torch.zeros(24)})
    refuse("'bert.encoder.layer.2.x'", state=state | {"bert.encoder.layer.2.x": torch.zeros(1)})
    refuse(f"'{weight}' has shape", state=state | {weight: torch.zeros(24, 41)})
    differing = state["cls.predictions.decoder.weight"] + 1
    refuse("decoder.weight' differs", state=state | {"cls.predictions.decoder.weight": differing})
    refuse("needs 'classifier.weight'", head="classification")
    refuse("no head 'mml'; did you mean 'mlm'", head="mml")
    refuse("no importer for family 'hf_brt'; did you mean 'hf_bert'", family="hf_brt")
    refuse("hidden_act='relu' is not supported", config=config | {"hidden_act": "relu"})
    refuse("lacks 'hidden_size'", config={k: v for k, v in config.items() if k != "hidden_size"})
    refuse("does not divide", config=config | {"num_attention_heads": 5})


def test_regression_has_one_label(hf_bert: Callable[..., transformers.PreTrainedModel]) -> None:
    reference = hf_bert(transformers.BertForSequenceClassification, num_labels=2)
    with pytest.raises(UserError, match=r"head=regression needs one label, 'classifier.weight' has 2"):
        from_reference("hf_bert", reference.config.to_dict(), reference.state_dict(), "regression")
