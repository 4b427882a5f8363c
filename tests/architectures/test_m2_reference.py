"""Parity with Monarch Mixer BERT's stored outputs; its checkpoints in and out; what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cramming.architectures import dense_outputs, from_reference
from cramming.architectures.configs.m2 import M2Config
from cramming.architectures.layers.unpadding import Layout
from cramming.architectures.m2 import SequenceMixer
from cramming.architectures.reference import to_reference
from cramming.architectures.references import DETECTORS, FAMILIES, WRITERS, Source, completed
from cramming.architectures.references.m2_bert import CONFIG, DEFAULTS, REQUIRED
from cramming.errors import UserError
from tests.architectures import golden

MLM_CASES = ("mlm_s32", "mlm_s32_ta", "mlm_s128", "mlm_s128_ta", "mlm_short")
CASES = {**dict.fromkeys(MLM_CASES, "mlm"), "cls": "classification", "cls_poolall": "classification"}
INTERMEDIATES = {
    "filter_fn_k_fwd": (0, 0),
    "filter_fn_k_rev": (0, 1),
    "filter_fn2_k_fwd": (1, 0),
    "filter_fn2_k_rev": (1, 1),
}
LAYER = "bert.encoder.layer.0"
BACKENDS = ("reference", "torch")  # of ``cramming.kernels``, those that a processor runs fast
INTERPRETED = pytest.param("triton", marks=pytest.mark.full)  # by its interpreter, which takes a minute for a model


def load(shared: Path, case: str) -> tuple[dict[str, Any], golden.Groups]:
    """A stored case, its labels as ours are: there those from 1 on count."""
    description, groups = golden.load(shared, f"m2_bert_{case}")
    if case in MLM_CASES:
        labels = groups["input"]["labels"]
        groups["input"]["labels"] = labels.masked_fill(labels <= 0, -100)
    return description, groups


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_stored_outputs_and_gradients(shared: Path, case: str, backend: str) -> None:
    hold_to_what_is_stored(shared, case, backend)


@pytest.mark.parametrize("backend", [INTERPRETED])
def test_stored_outputs_and_gradients_interpreted(shared: Path, backend: str) -> None:
    hold_to_what_is_stored(shared, "mlm_short", backend)


def hold_to_what_is_stored(shared: Path, case: str, backend: str, device: str = "cpu") -> None:
    """Outputs, the loss and every gradient of a model that computes by this backend."""
    description, tensors = load(shared, case)
    config, head = description["config"], CASES[case]
    model = from_reference("m2_bert", config, tensors["state_dict"], head).to(device)
    model.use_kernels(dict.fromkeys(model.kernel_ops, backend))
    given = {name: tensor.to(device) for name, tensor in tensors["input"].items()}
    outputs = dense_outputs(model, **given)
    outputs["loss"].backward()

    def close(ours: Tensor, theirs: Tensor, key: str) -> None:
        atol = description["tolerances"][key]["atol"]
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=atol, msg=lambda m: f"{key}: {m}")

    expected = tensors["expected"]
    close(outputs["hidden"], expected["final_hidden"], "expected.final_hidden")  # padding is computed there
    close(outputs["logits"], expected["logits"], "expected.logits")
    close(outputs["loss"], expected["loss"], "expected.loss")
    if head == "mlm":
        there = outputs["logits"][given["labels"] > 0]
        close(there, expected["logits_at_labels"], "expected.logits_at_labels")

    parameters = dict(model.named_parameters())
    compared = set()
    for ours, source in FAMILIES["m2_bert"](config, head).sources.items():
        for gradient, theirs in zip(parameters[ours].grad.chunk(len(source.names)), source.names, strict=True):
            if theirs in tensors["grad"]:
                compared.add(theirs)
                close(gradient, tensors["grad"][theirs], f"grad.{theirs}")
    assert compared == set(tensors["grad"])
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm().item()
    assert norm == pytest.approx(description["grad_global_l2_norm_fp64"], rel=1e-5)
    assert sum(p.numel() for p in parameters.values()) == description["num_parameters"]


@pytest.mark.parametrize("case", MLM_CASES)
def test_stored_intermediates(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    model = from_reference("m2_bert", description["config"], tensors["state_dict"], "mlm")
    ids, expected = tensors["input"]["input_ids"], tensors["expected"]

    def close(ours: Tensor, key: str) -> None:
        atol = description["tolerances"][f"expected.{key}"]["atol"]
        torch.testing.assert_close(ours, expected[key], rtol=0, atol=atol, msg=lambda m: f"{key}: {m}")

    layout = Layout.of(ids)
    x, _ = model.embeddings(ids, layout, tensors["input"]["token_type_ids"])
    close(layout.pad(x), "embedding_output")
    mixer = model.blocks[0].mixer
    close(layout.pad(mixer(x, layout)), "layer0_mixer_output")
    close(layout.pad(model.blocks[0](x, layout)), "layer0_output")
    taps = mixer.filters.taps(ids.shape[1])
    for key, (number, direction) in INTERMEDIATES.items():
        close(taps[number, direction], key)


@pytest.mark.parametrize("case", CASES)
def test_stored_loss_in_float64(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    model = from_reference("m2_bert", description["config"], tensors["state_dict"], CASES[case]).double()
    loss = dense_outputs(model, **tensors["input"])["loss"].item()
    assert loss == pytest.approx(description["loss_fp64"], rel=1e-9)


@pytest.mark.parametrize("backend", [*BACKENDS, INTERPRETED])
@pytest.mark.parametrize("number", range(5))
def test_stored_mixers(shared: Path, number: int, backend: str) -> None:
    """Every combination of directions, residual convolution and training additions, sequences shorter than filters."""
    described = json.loads((shared / "golden" / "m2_mixer.json").read_text())["variants"][number]
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(shared / "golden" / "m2_mixer.safetensors").items():
        prefix, group, name = key.split(".", maxsplit=2)
        if f"{prefix}." == described["prefix"]:
            groups.setdefault(group, {})[name] = tensor
    config = M2Config(
        hidden=described["d_model"],
        intermediate=described["d_model"],
        filter_length=described["l_max"],
        filter_order=described["hyena_filter_order"],
        filter_features=described["hyena_emb_dim"],
        bidirectional=described["bidirectional"],
        residual_convolution=described["residual_long_conv"],
        training_additions=described["hyena_training_additions"],
    )
    mixer = SequenceMixer(config, described["l_max"])
    mixer.kernels = backend
    sources = _of_mixer(config)
    with torch.no_grad():
        for ours, source in sources.items():
            mixer.get_parameter(ours).copy_(torch.cat([groups["state_dict"][theirs] for theirs in source.names]))
    u = groups["input"]["u"].requires_grad_()
    layout = Layout(*u.shape[:2])
    out = layout.pad(mixer(u.flatten(0, 1), layout))
    tolerance = 20 * described["out_fp32_vs_fp64"]["max_abs"]
    torch.testing.assert_close(out, groups["expected"]["out"], rtol=0, atol=tolerance)
    out.backward(groups["input"]["cotangent"])
    found = {"input.u": u.grad}
    for ours, source in sources.items():
        found |= dict(zip(source.names, mixer.get_parameter(ours).grad.chunk(len(source.names)), strict=True))
    assert found.keys() == groups["grad"].keys()
    for name, gradient in groups["grad"].items():
        allowed = 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}")


def _of_mixer(arch: M2Config) -> dict[str, Source]:
    """The importer's sources of a layer's mixer, under the names a mixer alone has."""
    config = {
        **{theirs: getattr(arch, ours) for theirs, ours in CONFIG.items()},
        **{theirs: getattr(arch, ours) for theirs, (ours, _) in DEFAULTS.items()},
        "num_hidden_layers": 1,
        "max_position_embeddings": arch.filter_length,
        "vocab_size": 8,
    }
    return {
        ours.removeprefix("blocks.0.mixer."): Source(tuple(n.removeprefix(f"{LAYER}.attention.") for n in source.names))
        for ours, source in FAMILIES["m2_bert"](config, "mlm").sources.items()
        if ours.startswith("blocks.0.mixer.")
    }


@pytest.mark.parametrize("case", ["mlm_s32_ta", "mlm_s32", "mlm_short"])
def test_a_config_is_completed_from_the_tensors(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    given = description["config"]
    whole = completed("m2_bert", {}, tensors["state_dict"])
    assert {key: whole[key] for key in whole} == {key: given[key] for key in whole}
    for config in ({}, {k: v for k, v in given.items() if not k.startswith(("hyena", "long_conv", "monarch"))}):
        model = from_reference("m2_bert", config, tensors["state_dict"], "mlm")
        loss = dense_outputs(model, **tensors["input"])["loss"]
        torch.testing.assert_close(loss, tensors["expected"]["loss"], rtol=0, atol=5e-5)
    if case == "mlm_s32_ta":
        with pytest.raises(UserError, match=r"without a place in the model: '.*attention.layernorm.bias'"):
            from_reference("m2_bert", {"hyena_training_additions": False}, tensors["state_dict"], "mlm")


def test_what_checkpoints_carry_besides_weights(shared: Path) -> None:
    description, tensors = load(shared, "mlm_s32")
    config, state = description["config"], dict(tensors["state_dict"])

    def read(**changed: Tensor) -> None:
        from_reference("m2_bert", config, {k: v for k, v in {**state, **changed}.items() if v is not None}, "mlm")

    filters = f"{LAYER}.attention.filter_fn"
    read(**{f"{filters}.flashfft.f_16_fft": torch.zeros(3), f"{filters}.pos_emb.t": None})
    read(**{name: None for name in state if name.endswith((".deltas", ".t", "position_ids"))})
    halves = {name: value.bfloat16() for name, value in state.items() if value.is_floating_point()}
    read(**halves)
    with pytest.raises(UserError, match=r"implicit_filter_rev.5.freq' differs from '.*implicit_filter.1.freq'"):
        read(**{f"{filters}.implicit_filter_rev.5.freq": state[f"{filters}.implicit_filter.1.freq"] + 1})
    with pytest.raises(UserError, match=r"modulation.deltas' differs"):
        read(**{f"{filters}.modulation.deltas": state[f"{filters}.modulation.deltas"] * 1.01})
    with pytest.raises(UserError, match=r"lacks '.*short_filter.bias'"):
        read(**{f"{LAYER}.attention.short_filter.bias": None})
    with pytest.raises(UserError, match=r"'.*pos_emb.z' has shape \(1, 31, 5\), the config says \(1, 32, 5\)"):
        read(**{f"{filters}.pos_emb.z": state[f"{filters}.pos_emb.z"][:, :31]})


def test_options_without_our_mathematics_are_refused(shared: Path) -> None:
    description, tensors = load(shared, "mlm_s32")
    for key in REQUIRED:
        with pytest.raises(UserError, match=rf"m2_bert with {key}='other' is not supported"):
            from_reference("m2_bert", description["config"] | {key: "other"}, tensors["state_dict"], "mlm")
    state = {k: v for k, v in tensors["state_dict"].items() if "word_embeddings" not in k}
    with pytest.raises(UserError, match="the reference's config lacks 'num_hidden_layers'"):
        from_reference("m2_bert", {}, state, "mlm")


@pytest.mark.parametrize(
    ("additions", "head", "keys"),
    [(True, "mlm", 744), (False, "mlm", 720), (True, "classification", 742), (False, "classification", 718)],
)
def test_every_key_of_released_checkpoints_has_its_place(additions: bool, head: str, keys: int) -> None:
    """Counted from the published code: with the tied decoder and every constant."""
    arch = M2Config(hidden=16, intermediate=32, filter_order=4, training_additions=additions)
    _, config = WRITERS["m2"](arch, 32, 8)
    plan = FAMILIES["m2_bert"](config, head)
    model = plan.arch.build(plan.vocab_size, plan.positions, None if head == "mlm" else 3)
    state = to_reference(model, plan, copies=True)
    assert len(state) == keys
    names = set(state)
    assert DETECTORS["m2_bert"]({}, names)
    assert [f for f, detect in DETECTORS.items() if detect({}, names)] == ["m2_bert"]
    torch.manual_seed(1)
    again = from_reference("m2_bert", {}, state, head)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("options", [
    {}, {"training_additions": True, "bidirectional": False}, {"residual_convolution": False, "filter_length": 5},
    {"filter_frequency": 7.0, "filter_features": 7, "blocks": 2, "mask_padding": True, "filter_lr": 1e-2},
])  # fmt: skip
def test_our_options_go_out_and_come_back(options: dict[str, object]) -> None:
    arch = M2Config(layers=1, hidden=16, intermediate=32, filter_order=4, dropout=0.1, **options)
    family, config = WRITERS["m2"](arch, 31, 8)
    back = FAMILIES[family](json.loads(json.dumps(config)), "mlm").arch
    same = {*CONFIG.values(), *(ours for ours, _ in DEFAULTS.values())} - {"filter_length", "max_positions"}
    for option in same:
        assert getattr(back, option) == getattr(arch, option), option
    assert (back.filter_length, back.max_positions) == (options.get("filter_length", 8), 8)
    with pytest.raises(UserError, match=r"arch.pad_vocab_to=1 has no place in an M2-BERT checkpoint"):
        WRITERS["m2"](M2Config(pad_vocab_to=1), 31, 8)
