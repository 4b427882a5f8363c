"""Parity with Cramming's and No Train No Gain's encoders; their checkpoints that do not fit are refused by name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from cramming import optim
from cramming.architectures import dense_outputs, from_reference
from cramming.architectures.references import FAMILIES
from cramming.batch import Batch
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.method import Method
from cramming.schedule import Cosine, OneCycle, Triangle
from rst.clock import Clock
from rst.costs import StepsCost
from tests.architectures.golden import Groups, load

CASES = {
    "crammed_bert_mlm": ("cramming", "mlm"),
    "crammed_bert_cls": ("cramming", "classification"),
    "ntng_c5_flash_mlm": ("ntng", "mlm"),
    "ntng_c5_flash_cls": ("ntng", "classification"),
    "ntng_c5_selfattn_mlm": ("ntng", "mlm"),
    "ntng_c5_selfattn_avg_cls": ("ntng", "regression"),
}
LANGUAGE_MODELS = [case for case, (_, head) in CASES.items() if head == "mlm"]


def imported(description: dict[str, Any], tensors: Groups) -> nn.Module:
    """Our model of a stored case."""
    family, head = CASES[description["case"]]
    return from_reference(family, description["config"], tensors["state_dict"], head)


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

    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    close(outputs["hidden"][mask], expected["final_hidden"][mask], "expected.final_hidden")
    logits, stored = outputs["logits"], expected["logits"]
    close(*((logits[mask], stored[mask]) if logits.dim() == 3 else (logits, stored)), "expected.logits")
    close(outputs["loss"], expected["loss"], "expected.loss")

    parameters = dict(model.named_parameters())
    gradients = {}
    for ours, source in FAMILIES[CASES[case][0]](description["config"], CASES[case][1]).sources.items():
        (theirs,) = source.names
        gradient = parameters[ours].grad
        if source.order is not None:  # back into their order of rows
            gradient = torch.empty_like(gradient).index_copy(0, source.order, gradient)
        gradients[theirs] = gradient
    for theirs, gradient in tensors["grad"].items():
        close(gradients[theirs], gradient, f"grad.{theirs}")
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert norm == pytest.approx(description["grad_global_l2_norm_fp64"], rel=1e-5)
    assert sum(p.numel() for p in model.parameters()) == description["num_parameters"]


@pytest.mark.parametrize("case", CASES)
def test_stored_loss_in_float64(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    model = imported(description, tensors).double()
    loss = dense_outputs(model, **tensors["input"])["loss"].item()
    # The reference keeps its table of positions, and targets of a regression, in float32.
    assert loss == pytest.approx(description["loss_fp64"], rel=1e-7)


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_stored_intermediates(shared: Path, case: str) -> None:
    description, tensors = load(shared, case)
    model = imported(description, tensors)
    model.final_norm = None
    inputs = {name: tensor for name, tensor in tensors["input"].items() if name != "labels"}
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    for active, key in (((), "embedding_output"), ((0,), "layer0_output")):
        model.active_layers = active
        hidden = dense_outputs(model, **inputs)["hidden"]
        atol = description["tolerances"][f"expected.{key}"]["atol"]
        torch.testing.assert_close(hidden[mask], tensors["expected"][key][mask], rtol=0, atol=atol)


def masked_batch(input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Batch:
    """A stored batch as ours, with as many slots as the sequence with the most predicted tokens needs."""
    predicted = labels != -100
    slots = int(predicted.sum(1).max())
    positions = predicted.int().argsort(dim=1, descending=True, stable=True)[:, :slots]
    weights = predicted.gather(1, positions).float()
    rows = torch.arange(len(input_ids))
    lengths = None if attention_mask is None else attention_mask.sum(1)
    true_ids = labels.gather(1, positions).clamp(min=0)
    return Batch(rows, torch.zeros_like(rows), input_ids, positions, true_ids, weights, lengths, weights.sum())


@pytest.mark.parametrize("case", ["ntng_c5_flash_mlm", "ntng_c5_selfattn_mlm"])
@pytest.mark.parametrize("microbatch_size", [2, 3])
def test_stored_per_sequence_losses_from_the_engine(shared: Path, case: str, microbatch_size: int) -> None:
    description, tensors = load(shared, case)
    model = imported(description, tensors)
    engine = Engine(model, SGD(model.parameters()), Clock({"main": StepsCost()}, 1e9), microbatch_size=microbatch_size)
    losses = engine.losses(masked_batch(**tensors["input"]), "selection")
    atol = description["tolerances"]["expected.per_example_losses"]["atol"]
    torch.testing.assert_close(losses, tensors["expected"]["per_example_losses"], rtol=0, atol=atol)


SCHEDULES = {
    "adamw_onecycle_seconds": OneCycle(),
    "adamw_triangle2_seconds": Triangle(start=0.25, peak=0.75),
    "lion_steps_cosine": Cosine(warmup=3 / 18),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_stored_steps_from_the_engine(shared: Path, name: str) -> None:
    """Accumulation, clipping, schedule and optimizer over the stored steps.

    Two things differ by decision. Weights of norms are decayed there, so ``decay_norms`` is set. There the schedule
    moves with every microbatch, and a step takes the rate that the microbatch before its last one left behind; here it
    takes the rate at its start. The stored progress is therefore handed to our schedule.
    """
    description, tensors = load(shared, "ntng_engine")
    (variant,) = (v for v in description["variants"] if v["name"] == name)
    theirs, size = variant["config_train"], variant["microbatch_size"]
    accumulated = theirs["batch_size"] // size
    initial = {k.removeprefix("state_dict."): v for k, v in tensors["initial"].items()}
    model = from_reference("ntng", description["config"], initial, "mlm")
    engine = Engine(
        model,
        optim.build(
            theirs["optim"]["type"].lower(),
            optim.parameter_groups(model, decay_norms=True),
            **{k: v for k, v in theirs["optim"].items() if k not in ("type", "amsgrad")},
        ),
        Clock({"main": StepsCost()}, 1e9),
        microbatch_size=size,
        clip_norm=theirs["gradient_clipping"],
    )
    tolerance = max(2e-5, 20 * variant["sensitivity"]["loss_fp32_vs_fp64_max_abs"])
    for first in range(0, len(variant["steps"]), accumulated):
        micro = range(first, first + accumulated)
        inputs = [[tensors["input"][f"{i}.{part}"][:size] for part in ("input_ids", "labels")] for i in micro]
        batch = Batch.concatenate([masked_batch(*rows) for rows in inputs])
        for i, part in zip(micro, batch.split(size), strict=True):
            loss = engine.backward(part, Method().objective) * accumulated
            assert loss.item() == pytest.approx(variant["steps"][i]["loss"], abs=tolerance), f"loss of microbatch {i}"
        last = micro[-1]
        seconds = variant["steps"][last - 1]["seconds"] if last else 0.0
        in_steps = theirs["budget"] == "steps"
        factor = SCHEDULES[name](last / theirs["steps"] if in_steps else seconds / (theirs["budget"] * 3600))
        rate = variant["steps"][last]["lr_in_effect_before"] / theirs["optim"]["lr"]
        assert factor == pytest.approx(rate, abs=2e-6), "theirs is cut to one of 2,000,000 steps"
        engine.step(factor)

    parameters, differing, count = dict(model.named_parameters()), 0, 0
    allowed = max(2e-5, 20 * variant["sensitivity"]["param_fp32_vs_fp64_max_abs"])
    for ours, source in FAMILIES["ntng"](description["config"], "mlm").sources.items():
        final = tensors[name][f"final.state_dict.{source.names[0]}"]
        error = (parameters[ours] - (final if source.order is None else final[source.order])).abs()
        assert error.max() < 3 * theirs["optim"]["lr"], ours  # both optimizers magnify the rounding of tiny gradients
        differing, count = differing + int((error > allowed).sum()), count + error.numel()
    assert differing <= 0.002 * count


def test_the_leaks_of_the_reference_are_reproduced_and_can_be_stopped(shared: Path) -> None:
    for case in ("ntng_c5_flash_cls", "ntng_c5_selfattn_avg_cls"):
        description, tensors = load(shared, case)
        model = imported(description, tensors)
        ids, mask = tensors["input"]["input_ids"], tensors["input"]["attention_mask"]
        other = ids.where(mask.bool(), (ids + 7) % 96)
        assert not torch.allclose(model(ids, mask), model(other, mask)), case
        model.attend_padding = model.head.pool_padding = False
        assert torch.equal(model(ids, mask), model(other, mask)), case


@pytest.fixture
def checkpoint(shared: Path) -> Callable[..., nn.Module]:
    """A function that imports a stored NTNG model with its config or state changed."""
    description, tensors = load(shared, "ntng_c5_selfattn_mlm")

    def change(family: str = "ntng", state: dict[str, Tensor] | None = None, **values: Any) -> nn.Module:
        config = copy.deepcopy(description["config"])
        for path, value in values.items():
            *folders, last = path.split("__")
            node = config["arch"]
            for folder in folders:
                node = node[folder]
            node[last] = value
        return from_reference(family, config, tensors["state_dict"] | (state or {}), "mlm")

    return change


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention__type": "fourier"}, "attention.type='fourier' is not supported: only 'self-attention'"),
        ({"attention__rotary_embedding": "v2"}, "attention.rotary_embedding='v2' is not supported"),
        ({"attention__sequence_op": "cumsum"}, "attention.sequence_op='cumsum'"),
        ({"norm": "BatchNorm1d"}, "norm='BatchNorm1d' is not supported: only LayerNorm"),
        ({"nonlin": "Softshrink"}, "nonlin='Softshrink' is not supported"),
        ({"loss": "MSE"}, "loss='MSE' is not supported"),
        ({"recurrent_layers": 2}, "recurrent_layers=2"),
        ({"ffn_layer_frequency": 2}, "ffn_layer_frequency=2"),
        ({"num_transformer_layers": 3}, "lacks 'encoder.layers.2"),
        ({"num_transformer_layers": 1}, "without a place in the model: 'encoder.layers.1.*' and"),
        ({"skip_head_transform": False}, "lacks 'prediction_head.dense.weight', 'prediction_head.norm.bias'"),
        ({"intermed_size": 100}, r"'encoder.layers.0.ffn.dense_in.weight' has shape \(96, 48\), .* \(100, 48\)"),
        ({"state": {"encoder.layers.0.alpha": torch.tensor(2.0)}}, "'encoder.layers.0.alpha' differs"),
        ({"state": {"decoder.weight": torch.zeros(160, 48)}}, "'decoder.weight' differs from 'encoder.embedding"),
        ({"state": {"encoder.p": torch.tensor(0.5)}}, "'encoder.p' differs"),
    ],
)
def test_what_has_no_mathematics_here_is_refused(
    checkpoint: Callable[..., nn.Module], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        checkpoint(**values)


def test_the_rewritten_encoder_is_not_taken_for_what_it_would_ignore(shared: Path) -> None:
    description, tensors = load(shared, "crammed_bert_mlm")
    for key, value in {"norm_scheme": "post", "tie_weights": False, "objective_layout": "SCRIPT"}.items():
        config = {**description["config"], "arch": description["config"]["arch"] | {key: value}}
        with pytest.raises(UserError, match=f"cramming with {key}={value!r} is not supported"):
            from_reference("cramming", config, tensors["state_dict"], "mlm")


def test_rotary_positions_that_turned_nothing_stay_so(checkpoint: Callable[..., nn.Module]) -> None:
    ids = torch.arange(20)[None]
    frequencies = 10000.0 ** -(torch.arange(0, 12, 2) / 12)
    buffers = {f"encoder.layers.{i}.attn.self_attention.rotary_emb.inv_freq": frequencies for i in (0, 1)}
    plain, inert = checkpoint(), checkpoint(attention__rotary_embedding=True, state=buffers)
    turned = checkpoint(attention__rotary_embedding="sanity", state=buffers)
    assert torch.equal(dense_outputs(plain, ids)["hidden"], dense_outputs(inert, ids)["hidden"])
    assert not torch.allclose(dense_outputs(plain, ids)["hidden"], dense_outputs(turned, ids)["hidden"])


def test_their_rms_norm_divides_by_the_norm(checkpoint: Callable[..., nn.Module], shared: Path) -> None:
    """x g / |x| in one system, x g / rms(x) in the other: root H apart."""
    state = load(shared, "ntng_c5_selfattn_mlm")[1]["state_dict"]
    scales = {k.replace("norm", "norm", 1).replace(".weight", ".learnable_scale"): v for k, v in state.items()}
    config = {k for k in state if "norm" in k and k.endswith((".weight", ".bias"))}
    renamed = {k: v for k, v in scales.items() if "norm" in k and k.endswith("learnable_scale")}
    description, _ = load(shared, "ntng_c5_selfattn_mlm")
    arch = {**description["config"]["arch"], "norm": "RMSNorm"}
    whole = {k: v for k, v in state.items() if k not in config} | renamed
    models = {f: from_reference(f, {**description["config"], "arch": arch}, whole, "mlm") for f in ("ntng", "cramming")}
    x = torch.randn(5, 48)
    unit, rms = (models[f].blocks[0].attention.norm(x) for f in ("ntng", "cramming"))
    torch.testing.assert_close(unit * 48**0.5, rms)
    weight = state["encoder.layers.0.norm1.weight"]
    torch.testing.assert_close(unit, x * weight / x.norm(dim=1, keepdim=True))
