"""ModernBERT against transformers' own module, computed live; checkpoints in and out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from cramming.architectures import dense_outputs, from_reference
from cramming.architectures.configs.modern import ModernConfig
from cramming.architectures.reference import to_reference
from cramming.architectures.references import DETECTORS, FAMILIES, WRITERS
from cramming.batch import Batch
from cramming.errors import UserError
from cramming.registry import lookup

MakeBatch = Callable[..., Batch]
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "initializer_range": 0.3,
    "local_attention": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "bos_token_id": 2,
    "sep_token_id": 3,
    "eos_token_id": 3,
}
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
# What https://huggingface.co/answerdotai/ModernBERT-base says, in the words before transformers 5.
RELEASED = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "vocab_size": 50368,
}


def reference(
    kind: type = transformers.ModernBertForMaskedLM, attention: str = "sdpa", **settings: Any
) -> transformers.PreTrainedModel:
    """A randomly initialized model of transformers', every part of which matters to its output."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**SIZES | settings)
    config._attn_implementation = attention
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def assert_same_gradients(model: torch.nn.Module, theirs: torch.nn.Module, config: dict[str, Any], head: str) -> None:
    gradients = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}
    sources = FAMILIES["modernbert"](config, head).sources
    for ours, source in sources.items():
        due = torch.cat([gradients[name] for name in source.names])
        due = due if source.order is None else due[source.order]
        torch.testing.assert_close(
            model.get_parameter(ours).grad, due, rtol=1e-3, atol=1e-5, msg=lambda m, n=ours: f"{n}: {m}"
        )
    assert sources.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("length", "attention", "settings"),
    [
        (7, "eager", {}),
        (33, "eager", {}),
        (33, "sdpa", {"global_attn_every_n_layers": 2, "hidden_activation": "silu", "decoder_bias": False}),
        (130, "sdpa", {}),
        (130, "eager", {**BIASES, "tie_word_embeddings": False, "global_attn_every_n_layers": 1}),
        (65, "sdpa", {**BIASES, "classifier_activation": "tanh", "num_hidden_layers": 2, "local_attention": 2}),
        (50, "sdpa", {"global_rope_theta": 500.0, "local_rope_theta": 20.0, "norm_eps": 1e-3}),
    ],
)
def test_states_logits_losses_and_gradients_are_those_of_transformers(
    make_batch: MakeBatch, length: int, attention: str, settings: dict[str, Any], padded: bool
) -> None:
    theirs = reference(attention=attention, **settings)
    config = theirs.config.to_dict()
    model = from_reference("modernbert", config, theirs.state_dict(), "mlm")
    batch = make_batch(3, length, 4, [length, max(4, length // 2), max(4, length - 3)] if padded else None)
    mask = torch.ones(3, length, dtype=torch.bool)
    if padded:
        mask = torch.arange(length) < batch.lengths[:, None]
    logits = theirs(batch.inputs, attention_mask=mask.long()).logits
    hidden = theirs.model(batch.inputs, attention_mask=mask.long()).last_hidden_state
    dense = dense_outputs(model, batch.inputs, mask if padded else None)
    torch.testing.assert_close(dense["hidden"][mask], hidden[mask], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(dense["logits"][mask], logits[mask], rtol=1e-4, atol=5e-5)

    there = logits[torch.arange(3)[:, None], batch.positions]
    expected = torch.nn.functional.cross_entropy(there.transpose(1, 2), batch.labels, reduction="none")
    losses, used = model(batch), batch.weights.bool()
    torch.testing.assert_close(losses[used], expected[used], rtol=1e-4, atol=1e-4)
    ((expected * batch.weights).sum() / batch.normalizer).backward()
    ((losses * batch.weights).sum() / batch.normalizer).backward()
    assert_same_gradients(model, theirs, config, "mlm")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("settings", [{}, {"classifier_bias": True, "classifier_activation": "silu"}])
@pytest.mark.parametrize("labels", [3, 1])
def test_classifiers_are_those_of_transformers(
    make_batch: MakeBatch, pooling: str, settings: dict[str, Any], labels: int
) -> None:
    theirs = reference(
        transformers.ModernBertForSequenceClassification, num_labels=labels, classifier_pooling=pooling, **settings
    )
    config, head = theirs.config.to_dict(), "classification" if labels > 1 else "regression"
    model = from_reference("modernbert", config, theirs.state_dict(), head)
    batch = make_batch(4, 33, 4, [33, 1, 20, 29])
    mask = torch.arange(33) < batch.lengths[:, None]
    targets = torch.tensor([0, 2, 1, 1]) if labels > 1 else torch.tensor([0.1, -1.0, 2.0, 0.0])
    found = dense_outputs(model, batch.inputs, mask, labels=targets)
    expected = theirs(batch.inputs, attention_mask=mask.long(), labels=targets)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=1e-4, atol=1e-5)
    found["loss"].backward()
    expected.loss.backward()
    assert_same_gradients(model, theirs, config, "classification")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": 5, "window": 4, "global_every": 2, "theta": 500.0, "local_theta": 30.0, "head_nonlin": "silu"},
        {"attention_bias": True, "feedforward_bias": True, "norm_bias": True, "head_bias": True, "nonlin": "gelu_tanh"},
        {"tie_weights": False, "decoder_bias": False, "dropout": 0.1, "attention_dropout": 0.2, "head_nonlin": "tanh"},
    ],
)
def test_a_written_folder_is_one_that_transformers_loads(
    make_batch: MakeBatch, tmp_path: Path, settings: dict[str, Any]
) -> None:
    arch = ModernConfig(**{"layers": 4, "hidden": 24, "heads": 3, "intermediate": 20, "init_std": 0.3, **settings})
    torch.manual_seed(0)
    model = arch.build(97, 40).eval()
    family, config = WRITERS["modern"](arch, 97, 40)
    state = to_reference(model, FAMILIES[family](config, "mlm"), copies=False)
    assert [name for name, detect in DETECTORS.items() if detect(config, state)] == [family] == ["modernbert"]
    transformers.ModernBertConfig(**config).save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    batch = make_batch(3, 40, 4, [40, 17, 33])
    mask = torch.arange(40) < batch.lengths[:, None]
    expected = theirs.eval()(batch.inputs, attention_mask=mask.long()).logits
    found = dense_outputs(model, batch.inputs, mask)["logits"]
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)
    again = from_reference(family, theirs.config.to_dict(), theirs.state_dict(), "mlm")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_released_config_is_the_default_and_both_forms_of_it_are_read() -> None:
    plan = FAMILIES["modernbert"](RELEASED, "mlm")
    defaults = lookup("arch", "modern")()
    differing = {key for key in vars(defaults) if getattr(plan.arch, key) != getattr(defaults, key)}
    assert differing == {"embedding_dropout", "attention_output_dropout", "classification_head"}
    assert not plan.arch.drops_out
    assert plan.arch.classification_head.pooler == "avg"
    assert (plan.vocab_size, plan.positions, plan.padding_id) == (50368, 8192, 50283)
    newer = transformers.ModernBertConfig(**RELEASED).to_dict()
    for key in ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"):
        newer.pop(key, None)
    assert newer["layer_types"][:4] == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert FAMILIES["modernbert"](newer, "mlm").arch == plan.arch
    for theta in (None, 500.0):
        config = RELEASED | {"local_rope_theta": theta, "global_rope_theta": 500.0}
        assert FAMILIES["modernbert"](config, "mlm").arch.local_theta == 500.0


def test_checkpoints_that_do_not_fit_are_refused_by_name() -> None:
    theirs = reference()
    config, state = theirs.config.to_dict(), dict(theirs.state_dict())

    def refuse(message: str, state: dict[str, Tensor] = state, **changed: Any) -> None:
        with pytest.raises(UserError, match=message):
            from_reference("modernbert", config | changed, state, "mlm")

    refuse("hidden_activation='relu6' is not supported", hidden_activation="relu6")
    refuse("local_attention=7 is not supported: it must be even", local_attention=7)
    refuse(r"layer_types=\['sliding_attention'.* only every n-th layer", layer_types=["sliding_attention"] * 5)
    stretched = {"full_attention": {"rope_type": "yarn", "factor": 2.0}}
    refuse(r"rope_parameters.full_attention.rope_type='yarn' is not supported", rope_parameters=stretched)
    refuse("rope_scaling=.* is not supported", rope_scaling={"type": "linear"})
    name = "model.layers.0.attn_norm.weight"
    refuse(f"without a place in the model: '{name}'", state=state | {name: torch.ones(24)})
    refuse(
        "lacks 'model.layers.4.mlp.Wi.weight'", {k: v for k, v in state.items() if k != "model.layers.4.mlp.Wi.weight"}
    )
    incomplete = {key: value for key, value in config.items() if key != "hidden_size"}
    with pytest.raises(UserError, match="lacks 'hidden_size'"):
        from_reference("modernbert", incomplete, state, "mlm")


@pytest.mark.parametrize(("key", "value"), [("norm", "rmsnorm"), ("embedding_norm", False), ("head", "none")])
def test_what_no_other_system_has_is_not_written(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"arch.{key}={value} cannot be exported"):
        WRITERS["modern"](ModernConfig(**{key: value}), 97, 40)
