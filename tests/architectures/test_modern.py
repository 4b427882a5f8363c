"""Laws of the encoders of ModernBERT's form: what may and may not change their outputs."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cramming.architectures import dense_outputs
from cramming.architectures.configs.modern import ModernConfig, PooledHeadConfig
from cramming.architectures.modern import Modern
from cramming.batch import Batch
from cramming.errors import UserError

MakeBatch = Callable[..., Batch]
LENGTHS = [37, 1, 9, 30]
NEOBERT: dict[str, Any] = {
    "nonlin": "silu",
    "global_every": 1,
    "theta": 10000.0,
    "norm": "rmsnorm",
    "embedding_norm": False,
    "head": "none",
    "tie_weights": False,
}
FORMS = {"modern": {}, "ends_local": {"global_every": 3}, "neobert": NEOBERT}


def build(form: str, seq_length: int = 37, **settings: Any) -> Modern:
    """A model whose weights are large enough that every part of it matters to the output."""
    sizes = {
        "layers": 3,
        "hidden": 24,
        "heads": 3,
        "intermediate": 20,
        "global_every": 2,
        "window": 3,
        "init": "normal",
    }
    torch.manual_seed(0)
    model = ModernConfig(**{**sizes, **FORMS[form], **settings}).build(97, seq_length)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def gradients(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """Gradient of the batch's mean loss by parameter."""
    model.zero_grad(set_to_none=True)
    ((model(batch) * batch.weights).sum() / batch.normalizer).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_those_of_the_dense_computation(
    make_batch: MakeBatch, form: str, lengths: list[int] | None
) -> None:
    model, batch = build(form), make_batch(length=37, lengths=lengths)
    mask = None if lengths is None else torch.arange(37) < batch.lengths[:, None]
    labels = torch.full(batch.inputs.shape, -100)
    used = batch.weights.bool()
    rows = torch.arange(4)[:, None].expand_as(used)
    labels[rows[used], batch.positions[used]] = batch.labels[used]
    fast = gradients(model, batch)
    model.zero_grad(set_to_none=True)
    dense = dense_outputs(model, batch.inputs, mask, labels=labels)
    torch.testing.assert_close((model(batch) * batch.weights).sum() / batch.normalizer, dense["loss"])
    there = dense["logits"][torch.arange(4)[:, None], batch.positions]
    torch.testing.assert_close(model(batch, logits=True)[used], there[used])
    dense["loss"].backward()
    assert_same_gradients(fast, {name: p.grad for name, p in model.named_parameters()})


@pytest.mark.parametrize("form", FORMS)
def test_padding_never_leaks(make_batch: MakeBatch, form: str) -> None:
    model, batch = build(form), make_batch(length=37, lengths=LENGTHS)
    padding = torch.arange(37) >= batch.lengths[:, None]
    other = replace(batch, inputs=batch.inputs.where(~padding, torch.randint(1, 97, batch.inputs.shape)))
    assert torch.equal(model(batch), model(other))
    assert torch.equal(model.hidden(batch), model.hidden(other))
    assert not model.hidden(batch)[padding].any()
    one, two = gradients(model, batch), gradients(model, other)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attention", ["math", "blocks", "sdpa"])
def test_documents_in_a_row_are_what_each_is_alone(make_batch: MakeBatch, form: str, attention: str) -> None:
    """Packed or padded, a document's states, losses and gradients are the same, longer than the window or not."""
    model = build(form)
    model.attention = attention
    batch = make_batch(sequences=2, length=37)
    cuts = [[0, 5, 6, 25, 37], [0, 20, 37]]
    starts = torch.zeros(2, 37, dtype=torch.bool)
    for row, bounds in enumerate(cuts):
        starts[row, bounds[:-1]] = True
    packed = replace(batch, starts=starts)
    together = model.hidden(packed)
    pieces = [(row, a, b) for row, bounds in enumerate(cuts) for a, b in pairwise(bounds)]
    for row, a, b in pieces:
        alone = dense_outputs(model, batch.inputs[row : row + 1, a:b])["hidden"]
        torch.testing.assert_close(together[row : row + 1, a:b], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, model.hidden(batch), atol=1e-3)

    losses = model(packed)
    apart = torch.zeros(())
    for row, a, b in pieces:
        inside = (batch.positions[row] >= a) & (batch.positions[row] < b)
        logits = dense_outputs(model, batch.inputs[row : row + 1, a:b])["logits"][0]
        expected = F.cross_entropy(
            logits[batch.positions[row, inside] - a], batch.labels[row, inside], reduction="none"
        )
        torch.testing.assert_close(losses[row, inside], expected, rtol=1e-4, atol=1e-5)
        apart = apart + expected.sum() / batch.normalizer
    found = gradients(model, packed)
    model.zero_grad(set_to_none=True)
    apart.backward()
    assert_same_gradients(found, {name: p.grad for name, p in model.named_parameters()})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("active", [(), (1,), (0, 2), (1, 2)])
def test_active_layers_are_a_model_of_those_layers(make_batch: MakeBatch, form: str, active: tuple[int, ...]) -> None:
    model, batch = build(form), make_batch(length=37, lengths=LENGTHS)
    full = copy.deepcopy(model)
    full.blocks = torch.nn.ModuleList(copy.deepcopy(model.blocks[i]) for i in active)
    full.active_layers = range(len(active))
    model.active_layers = active
    assert torch.equal(model(batch), full(batch))
    found = gradients(model, batch)
    for name, gradient in found.items():
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
        assert (gradient is not None) == (layer is None or layer in active), name


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_checkpointing_changes_no_gradient(
    make_batch: MakeBatch, form: str, lengths: list[int] | None
) -> None:
    model, batch = build(form), make_batch(length=37, lengths=lengths)
    plain = gradients(model, batch)
    model.gradient_checkpointing = True
    again = gradients(model, batch)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("form", FORMS)
def test_low_precision_copies_follow_the_float32_model(
    make_batch: MakeBatch, form: str, lengths: list[int] | None
) -> None:
    model, batch = build(form), make_batch(length=37, lengths=lengths)
    low = copy.deepcopy(model).to(torch.bfloat16)
    for attention in ("math", "blocks"):
        low.attention = attention
        used = batch.weights.bool()
        losses = low(batch)
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses[used], model(batch)[used], rtol=0.05, atol=0.05)
        exact, rounded = gradients(model, batch), gradients(low, batch)
        for name, gradient in exact.items():
            assert F.cosine_similarity(gradient.flatten(), rounded[name].float().flatten(), dim=0) > 0.98, name


def test_only_some_layers_see_far(make_batch: MakeBatch) -> None:
    """Layer 0 sees everything, the next ones 3 tokens on each side; one window after the other reaches further."""
    model, batch = build("modern", layers=6, global_every=6), make_batch(sequences=1, length=37)
    changed = batch.inputs.clone()
    changed[0, 18] = (changed[0, 18] + 1) % 97
    other = replace(batch, inputs=changed)

    def reached() -> list[int]:
        differ = (model.hidden(batch) != model.hidden(other)).any(-1)[0]
        return differ.nonzero().flatten().tolist()

    model.active_layers = (1,)
    assert reached() == list(range(15, 22))
    model.active_layers = (1, 2, 3)
    assert reached() == list(range(9, 28))
    model.active_layers = (0,)
    assert reached() == list(range(37))


@pytest.mark.parametrize("form", FORMS)
def test_longer_sequences_than_it_was_built_for_run(make_batch: MakeBatch, form: str) -> None:
    short, long = build(form, seq_length=16), build(form, seq_length=37)
    assert (short.max_positions, long.max_positions) == (16, 37)
    assert torch.equal(short.hidden(make_batch(length=37)), long.hidden(make_batch(length=37)))


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_flops_are_those_of_the_products_where_everything_is_seen(make_batch: MakeBatch, layers: int) -> None:
    model, batch = build("neobert"), make_batch(sequences=1, length=37)
    model.attention = "math"
    model.active_layers = range(layers)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    assert model.flops(37, batch.positions.shape[1], layers) == counter.get_total_flops()


def test_flops_of_a_window_grow_with_the_length_and_no_faster() -> None:
    """What the second of three layers costs: the last one's queries are none here."""
    near, everywhere = build("modern", global_every=3), build("modern", global_every=1)
    of_token = {
        (model, length): (model.flops(length, 0, 3) - model.flops(length, 0, 2)) / length
        for model in (near, everywhere)
        for length in (64, 4096)
    }
    assert of_token[near, 64] == of_token[near, 4096]
    assert of_token[everywhere, 4096] - of_token[near, 4096] == 4 * 24 * (4096 - 7)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("dropout", "feedforward_dropout"),
        ("attention_dropout", None),
        ("embedding_dropout", None),
        ("attention_output_dropout", "attention_dropout"),
        ("feedforward_dropout", "feedforward.dropout"),
    ],
)
def test_dropout_acts_in_training_mode_only(make_batch: MakeBatch, key: str, place: str | None) -> None:
    model, batch = build("modern", **{key: 0.3}), make_batch(length=37)
    assert ModernConfig(**{key: 0.3}).drops_out
    assert not torch.equal(model.train()(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))
    if place is not None:
        assert model.blocks[1].get_submodule(place).p == 0.3


def spread_of(model: Modern, name: str) -> tuple[float, float]:
    """Standard deviation, and the largest value in units of it."""
    weight = model.get_parameter(name)
    return weight.std().item(), (weight.abs().max() / weight.std()).item()


@pytest.mark.parametrize("init", ["full_megatron", "mitchell", "fan_in"])
def test_initial_weights_by_place(init: str) -> None:
    torch.manual_seed(0)
    model = ModernConfig(layers=3, hidden=128, heads=2, intermediate=192, init=init).build(512, 32)
    # A normal distribution cut at 2 deviations has 0.88 of its deviation, at 3 it has 0.987.
    cut, remaining = (2.0, 0.8796) if init == "full_megatron" else (3.0, 0.9866)
    for name, layer, inputs in (
        ("embeddings.word.weight", None, 128),
        ("head.dense.weight", -1, 128),
        ("blocks.0.attention.qkv.weight", None, 128),
        ("blocks.0.attention.output.weight", 0, 128),
        ("blocks.2.attention.output.weight", 2, 128),
        ("blocks.2.feedforward.expand.weight", None, 128),
        ("blocks.2.feedforward.contract.weight", 2, 192),
    ):
        last = layer is not None
        expected = {
            "full_megatron": 0.02 / math.sqrt(6) if last else 0.02,
            "fan_in": inputs**-0.5,
            "mitchell": inputs**-0.5 / (math.sqrt(2 * (layer + 1)) if last and layer >= 0 else 1),
        }[init]
        std, largest = spread_of(model, name)
        assert std == pytest.approx(expected * remaining, rel=0.03), name
        assert largest * std <= cut * expected * 1.0001, name
    assert all((p == 1).all() for name, p in model.named_parameters() if name.endswith("norm.weight"))
    assert not model.head.bias.any()


def test_initial_weights_of_neobert_are_uniform() -> None:
    torch.manual_seed(0)
    model = ModernConfig(layers=1, hidden=128, heads=2, intermediate=192, init="uniform", init_std=0.03).build(512, 32)
    std, largest = spread_of(model, "blocks.0.feedforward.contract.weight")
    assert std == pytest.approx(0.03 / math.sqrt(3), rel=0.03)
    assert 0.95 * 0.03 < largest * std <= 0.03


def test_classifiers_start_as_published() -> None:
    torch.manual_seed(0)
    config = ModernConfig(layers=2, hidden=256, heads=4, intermediate=64, classification_head=PooledHeadConfig("avg"))
    model = config.build(100, 32, labels=64)
    assert model.head.classifier.weight.std().item() == pytest.approx(0.8796 / 16, rel=0.05)
    assert model.head.pooler.weight.std().item() == pytest.approx(0.8796 * 0.02 / 2, rel=0.05)
    assert model.head.pooler.bias is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 36, "heads": 12}, "gives heads of odd width 3, but rotation turns pairs"),
        ({"heads": 7}, "arch.heads=7 does not divide arch.hidden=768"),
        ({"window": 0}, "arch.window=0 is too small"),
        ({"global_every": 0}, "arch.global_every=0 is too small"),
        ({"nonlin": "glu"}, "arch.nonlin=glu is unknown"),
        ({"norm": "rms"}, "arch.norm=rms is unknown; did you mean 'rmsnorm'"),
        ({"init": "megatron"}, "arch.init=megatron is unknown; did you mean 'full_megatron'"),
        ({"head": "linear"}, "arch.head=linear is unknown"),
        ({"head_nonlin": "mish"}, "arch.head_nonlin=mish is unknown"),
        ({"theta": 0.0}, "arch.theta=0.0 must be above 0"),
        ({"feedforward_dropout": 1.0}, "arch.feedforward_dropout=1.0 is not a probability"),
    ],
)
def test_impossible_encoders_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModernConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"pooler": "mean"}, "pooler=mean is unknown"), ({"classifier_dropout": 1.0}, "is not a probability below 1")],
)
def test_impossible_classification_heads_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PooledHeadConfig(**settings)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # ModernBERT's as transformers counts them (its card says 149 and 395 million); NeoBERT's from its matrices:
    # 28 (4 x 768^2 + 3 x 768 x 2048 + 2 x 768) + 768 + 2 x 30522 x 768 + 30522.
    [("modern", 149_655_232), ("modern_large", 395_881_664), ("neobert", 245_136_954)],
)
def test_published_sizes_have_the_parameters_of_the_reference(name: str, parameters: int) -> None:
    content = OmegaConf.load(Path(__file__).resolve().parents[2] / "config" / "arch" / f"{name}.yaml")
    content.pop("defaults")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModernConfig), content))
    with torch.device("meta"):
        model = config.build(config.vocab_size, 128)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.full
@pytest.mark.parametrize("form", FORMS)
def test_compiled_blocks_agree_with_plain_ones(make_batch: MakeBatch, form: str) -> None:
    model, batch = build(form), make_batch(length=37)
    plain, plain_gradients = model(batch), gradients(model, batch)
    for block in model.blocks:
        block.compile()
    torch.testing.assert_close(model(batch), plain, rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients(model, batch), plain_gradients)
