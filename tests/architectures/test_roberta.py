"""RoBERTa and its relatives against transformers' own modules, computed live; checkpoints in and out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cramming.architectures import dense_outputs, from_reference
from cramming.architectures.configs.roberta import RobertaConfig
from cramming.architectures.reference import to_reference
from cramming.architectures.references import DETECTORS, FAMILIES, WRITERS, with_padding
from cramming.batch import Batch
from cramming.cli import compose
from cramming.errors import UserError
from cramming.model import Model

MakeBatch = Callable[..., Batch]
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 22,
    "type_vocab_size": 1,
    "initializer_range": 0.2,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
KINDS = {
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, "roberta"),
    "camembert": (transformers.CamembertConfig, transformers.CamembertForMaskedLM, "roberta"),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaForMaskedLM, "roberta"),
    "prelayernorm": (
        transformers.RobertaPreLayerNormConfig,
        transformers.RobertaPreLayerNormForMaskedLM,
        "roberta_prelayernorm",
    ),
}
LENGTHS = [17, 1, 9, 12]


def reference(kind: str, **settings: Any) -> tuple[transformers.PreTrainedModel, str]:
    """A randomly initialized model of transformers', every part of which matters to its output, and our family."""
    configure, build, family = KINDS[kind]
    torch.manual_seed(0)
    model = build(configure(**SIZES | settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "position_embeddings" in name:  # the padding's row is zero there
                parameter[: model.config.pad_token_id] = 5.0  # nothing reads these
    return model, family


def batch_without(padding_id: int, make_batch: MakeBatch, lengths: list[int] | None, length: int = 17) -> Batch:
    """A random batch in which the padding's id stands at padding and nowhere else."""
    batch = make_batch(4, length, min(4, length), lengths)
    inputs = batch.inputs.where(batch.inputs != padding_id, 5)
    if lengths is not None:
        inputs = inputs.where(torch.arange(length) < batch.lengths[:, None], padding_id)
    object.__setattr__(batch, "inputs", inputs)
    return batch


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("roberta", {}),
        ("roberta", {"num_attention_heads": 8, "hidden_size": 40, "num_hidden_layers": 1, "type_vocab_size": 2}),
        ("roberta", {"pad_token_id": 4, "layer_norm_eps": 1e-3}),
        ("camembert", {}),
        ("xlm-roberta", {}),
        ("prelayernorm", {}),
        ("prelayernorm", {"pad_token_id": 0, "type_vocab_size": 2}),
    ],
)
def test_losses_and_gradients_are_those_of_transformers(
    make_batch: MakeBatch, kind: str, settings: dict[str, int], lengths: list[int] | None
) -> None:
    theirs, family = reference(kind, **settings)
    config, state = theirs.config.to_dict(), theirs.state_dict()
    model = from_reference(family, config, state, "mlm")
    batch = batch_without(config["pad_token_id"], make_batch, lengths)
    mask = None if lengths is None else torch.arange(17) < batch.lengths[:, None]
    logits = theirs(batch.inputs, attention_mask=mask).logits
    there = logits[torch.arange(4)[:, None], batch.positions]
    expected = torch.nn.functional.cross_entropy(there.transpose(1, 2), batch.labels, reduction="none")
    losses, used = model(batch), batch.weights.bool()
    torch.testing.assert_close(losses[used], expected[used], rtol=1e-5, atol=1e-5)

    ((expected * batch.weights).sum() / batch.normalizer).backward()
    ((losses * batch.weights).sum() / batch.normalizer).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}
    parameters = dict(model.named_parameters())
    compared = 0
    for ours, source in FAMILIES[family](config, "mlm").sources.items():
        due = torch.cat([gradients[name] for name in source.names])
        assert not due[: source.unread].any()  # what nothing reads has no gradient there either
        torch.testing.assert_close(parameters[ours].grad, due[source.unread :], rtol=1e-4, atol=2e-6)
        compared += 1
    assert compared == len(parameters)


def test_positions_are_counted_in_tokens_wherever_padding_stands() -> None:
    theirs, family = reference("roberta")
    model = from_reference(family, theirs.config.to_dict(), theirs.state_dict(), "mlm")
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 97, (4, 11), generator=generator)
    mask = torch.ones(4, 11, dtype=torch.int64)
    mask[0, :4] = 0  # on the left
    mask[1, 8:] = 0
    mask[2, [0, 3, 4, 9]] = 0  # here and there
    ids = ids.where(mask.bool(), 1)
    expected = theirs(ids, attention_mask=mask).logits
    found = dense_outputs(model, ids, mask)["logits"]
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    shifted = dense_outputs(model, ids.roll(-4, 1), mask.roll(-4, 1))["logits"].roll(4, 1)
    torch.testing.assert_close(found[0, 4:], shifted[0, 4:], rtol=1e-4, atol=1e-5)


def test_classifier_is_that_of_transformers(make_batch: MakeBatch) -> None:
    torch.manual_seed(0)
    theirs = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZES, num_labels=3)).eval()
    config, state = theirs.config.to_dict(), theirs.state_dict()
    model = from_reference("roberta", config, state, "classification")
    inputs, labels = batch_without(1, make_batch, LENGTHS).inputs, torch.tensor([0, 2, 1, 1])
    mask = (inputs != 1).long()
    outputs, expected = dense_outputs(model, inputs, mask, labels=labels), theirs(inputs, mask, labels=labels)
    torch.testing.assert_close(outputs["logits"], expected.logits)
    outputs["loss"].backward()
    expected.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}
    for ours, source in FAMILIES["roberta"](config, "classification").sources.items():
        due = torch.cat([gradients[name] for name in source.names])[source.unread :]
        torch.testing.assert_close(model.get_parameter(ours).grad, due, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("padding_id", [0, 1, 6])
@pytest.mark.parametrize("scheme", ["post", "pre"])
def test_written_checkpoints_are_what_transformers_reads(make_batch: MakeBatch, scheme: str, padding_id: int) -> None:
    arch = RobertaConfig(layers=2, hidden=24, heads=3, intermediate=40, max_positions=20, norm_scheme=scheme)
    model = randomized(arch.build(97, 20))
    family, config = WRITERS["roberta"](arch, 97, 20)
    config = with_padding(family, config, padding_id)
    state = to_reference(model, FAMILIES[family](config, "mlm"), copies=False)
    kind = "roberta" if scheme == "post" else "prelayernorm"
    configure, build, _ = KINDS[kind]
    theirs = build(configure(**config)).eval()
    report = theirs.load_state_dict(state, strict=False)
    assert report.unexpected_keys == []
    assert {name.rsplit(".", 2)[-2] for name in report.missing_keys} == {"decoder"}  # tied
    theirs.tie_weights()
    assert [name for name, detect in DETECTORS.items() if detect(config, state)] == [family]
    batch = batch_without(padding_id, make_batch, LENGTHS)
    mask = torch.arange(17) < batch.lengths[:, None]
    found = dense_outputs(model, batch.inputs, mask)["logits"]
    expected = theirs(batch.inputs, attention_mask=mask).logits
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)
    again = from_reference(family, theirs.config.to_dict(), state, "mlm")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def randomized(model: torch.nn.Module) -> Model:
    """The model with weights large enough that every part of it matters to the output."""
    assert isinstance(model, Model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_the_recipe_has_the_published_rates() -> None:
    """https://arxiv.org/abs/1907.11692, appendix A, table 9."""
    config = compose(["experiment=roberta_base"])
    train, optim, arch = config.train, config.train.optim, config.arch
    assert (arch.layers, arch.hidden, arch.heads, arch.dropout, arch.attention_dropout) == (12, 768, 12, 0.1, 0.1)
    assert (config.data.seq_length, train.batch_size, train.mask_rate, train.clip_norm) == (512, 8192, 0.15, None)
    assert (optim.kind, optim.lr, optim.betas, optim.eps, optim.weight_decay) == (
        "adamw",
        6e-4,
        [0.9, 0.98],
        1e-6,
        0.01,
    )
    assert (train.schedule.kind, train.schedule.warmup) == ("linear", 24 / 500)
    assert (config.data.tokenizer_kind, config.data.normalize) == ("bpe", None)


def test_checkpoints_that_do_not_fit_are_refused_by_name() -> None:
    theirs, family = reference("roberta")
    config, state = theirs.config.to_dict(), dict(theirs.state_dict())

    def refuse(message: str, config: dict = config, state: dict[str, Tensor] = state) -> None:
        with pytest.raises(UserError, match=message):
            from_reference(family, config, state, "mlm")

    table = "roberta.embeddings.position_embeddings.weight"
    refuse(rf"'{table}' has shape \(21, 24\), the config says \(22, 24\)", state=state | {table: state[table][1:]})
    refuse("leaves none beyond pad_token_id=30", config=config | {"pad_token_id": 30})
    refuse("hidden_act='relu' is not supported", config=config | {"hidden_act": "relu"})
    with pytest.raises(UserError, match="embedding_norm=false"):
        WRITERS["roberta"](RobertaConfig(embedding_norm=False), 97, 20)
