"""Laws of the crammed encoder: what its options do, and what nothing may change."""

import copy
import dataclasses
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from cramming.architectures import CrammedConfig, dense_outputs
from cramming.architectures.configs import ClassificationHeadConfig
from cramming.architectures.configs.crammed import HEADS, INITS, NONLINEARITIES, NORMS, POSITIONS
from cramming.architectures.crammed import Crammed, CrammedClassifier
from cramming.architectures.layers.activation import ACTIVATIONS
from cramming.batch import Batch

MakeBatch = Callable[..., Batch]
Make = Callable[..., Crammed]
LENGTHS = [17, 1, 9, 12]
SIZES: dict[str, Any] = {"layers": 3, "hidden": 24, "heads": 3, "intermediate": 40, "max_positions": 20}
# Each differs from the default in a way that the output must show; together they cover every branch.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "post": {"norm_scheme": "post", "final_norm": False},
    "sandwich": {"norm_scheme": "sandwich", "norm": "rmsnorm"},
    "scalenorm": {"norm": "scalenorm", "norm_eps": 1e-6},
    "unitnorm": {"norm": "unitnorm"},
    "deepnorm": {"deepnorm_scaling": True, "init": "deepnorm"},
    "rotary": {"rotary": True, "position": "none"},
    "learned": {"position": "learned", "embedding_norm": False},
    "sinusoidal": {"position": "sinusoidal"},
    "plain": {"glu": False, "nonlin": "relu"},
    "biases": {"bias": True, "qkv_bias": True, "decoder_bias": True, "head": "transform"},
    "factorized": {"embedding_dim": 16},
    "untied": {"tie_weights": False, "decoder_bias": True},
    "bare": {"head": "none"},
    "few_feedforwards": {"ffn_layer_frequency": 2},
    "soft_norms": {"norm_eps": 1.0},
}


@pytest.fixture
def make() -> Make:
    """A function that makes a model whose weights are large enough that every part of it matters to the output."""

    def model(**options: Any) -> Crammed:
        torch.manual_seed(0)
        made = CrammedConfig(**{**SIZES, **options}).build(97, 20)
        assert isinstance(made, Crammed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return made

    return model


def gradients(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor | None]:
    """Gradient of the batch's mean loss by parameter."""
    model.zero_grad(set_to_none=True)
    ((model(batch) * batch.weights).sum() / batch.normalizer).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_the_dense_computation(
    make: Make, make_batch: MakeBatch, variant: str
) -> None:
    model, batch = make(**VARIANTS[variant]), make_batch(lengths=LENGTHS)
    used = batch.weights.bool()
    rows = torch.arange(4)[:, None].expand_as(used)
    labels = torch.full(batch.inputs.shape, -100)
    labels[rows[used], batch.positions[used]] = batch.labels[used]
    mask = torch.arange(17) < batch.lengths[:, None]
    fast, losses = gradients(model, batch), model(batch)
    model.zero_grad(set_to_none=True)
    dense = dense_outputs(model, batch.inputs, mask, labels=labels)
    there = dense["logits"][rows, batch.positions]
    torch.testing.assert_close(model(batch, logits=True)[used], there[used], rtol=1e-4, atol=1e-4)
    expected = F.cross_entropy(there.flatten(0, 1), batch.labels.flatten(), reduction="none").view(4, -1)
    torch.testing.assert_close(losses[used], expected[used], rtol=1e-4, atol=1e-4)
    dense["loss"].backward()
    for name, parameter in model.named_parameters():
        scale = float(fast[name].abs().max())
        torch.testing.assert_close(fast[name], parameter.grad, rtol=1e-3, atol=1e-5 * max(scale, 1.0), msg=name)
        assert scale > 0, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sequence_is_what_it_is_alone_and_padding_never_leaks(
    make: Make, make_batch: MakeBatch, variant: str
) -> None:
    model, batch = make(**VARIANTS[variant]), make_batch(lengths=LENGTHS)
    padding = torch.arange(17) >= batch.lengths[:, None]
    other = dataclasses.replace(batch, inputs=batch.inputs.where(~padding, torch.randint(1, 97, batch.inputs.shape)))
    assert torch.equal(model(batch), model(other))
    hidden = model.hidden(batch)
    assert torch.equal(hidden, model.hidden(other))
    assert not hidden[padding].any()
    one, two = gradients(model, batch), gradients(model, other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    for row, length in enumerate(LENGTHS):
        alone = dense_outputs(model, batch.inputs[row : row + 1, :length])["hidden"]
        torch.testing.assert_close(hidden[row : row + 1, :length], alone, rtol=1e-4, atol=1e-4)


def test_padding_leaks_where_it_is_asked_to(make: Make, make_batch: MakeBatch) -> None:
    model, batch = make(attend_padding=True), make_batch(lengths=LENGTHS)
    padding = torch.arange(17) >= batch.lengths[:, None]
    other = dataclasses.replace(batch, inputs=batch.inputs.masked_fill(padding, 3))
    used = batch.weights.bool()
    assert not torch.allclose(model(batch)[used], model(other)[used])
    assert not model.hidden(batch)[padding].any()
    whole = dataclasses.replace(batch, lengths=None)  # padding taken for text
    torch.testing.assert_close(model(batch)[used], model(whole)[used])
    torch.testing.assert_close(model(batch), make()(whole) * used)


def test_every_variant_has_an_output_of_its_own(make: Make, make_batch: MakeBatch) -> None:
    batch = make_batch()
    logits = {name: make(**options)(batch, logits=True) for name, options in VARIANTS.items()}
    for one, other in combinations(VARIANTS, 2):
        assert not torch.allclose(logits[one], logits[other], atol=1e-3), (one, other)


def test_every_name_that_is_accepted_is_one_that_exists(make: Make, make_batch: MakeBatch) -> None:
    """The names live twice, because options must load without torch."""
    assert set(NONLINEARITIES) == set(ACTIVATIONS)
    batch, logits = make_batch(), []
    for key, names in {"nonlin": NONLINEARITIES, "norm": NORMS, "position": POSITIONS, "head": HEADS}.items():
        logits += [make(**{key: name})(batch, logits=True) for name in names[1:]]  # the first is the default
    for one, other in combinations(logits, 2):
        assert not torch.equal(one, other)
    for name in INITS:
        make(init=name)


H, F_, E, V, L, P = 24, 40, 24, 97, 3, 20  # sizes of SIZES and of the vocabulary and positions of ``make``
PARAMETERS = L * (4 * H * H + F_ * H + F_ // 2 * H + 4 * H) + V * E + 1 + 4 * H + H * E


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, 0),
        ({"rotary": True}, 0),
        ({"attend_padding": True}, 0),
        ({"deepnorm_scaling": True}, 0),
        ({"norm_scheme": "post"}, 0),
        ({"norm_scheme": "sandwich"}, 4 * H * L),
        ({"norm": "rmsnorm"}, -(2 * L + 2) * H),
        ({"norm": "unitnorm"}, -(2 * L + 2) * H),
        ({"norm": "scalenorm"}, (2 * L + 2) * (1 - 2 * H)),
        ({"final_norm": False}, -2 * H),
        ({"embedding_norm": False}, -2 * E),
        ({"position": "sinusoidal"}, -1),
        ({"position": "none"}, -1),
        ({"position": "learned"}, P * E - 1),
        ({"glu": False}, L * F_ // 2 * H),
        ({"ffn_layer_frequency": 2}, -2 * (F_ * H + F_ // 2 * H + 2 * H)),
        ({"ffn_layer_frequency": 4}, -3 * (F_ * H + F_ // 2 * H + 2 * H)),
        ({"bias": True}, L * (H + F_ + H) + E),
        ({"qkv_bias": True}, L * 3 * H),
        ({"decoder_bias": True}, V),
        ({"head": "none"}, -H * E),
        ({"head": "transform"}, 2 * E),
        ({"tie_weights": False}, V * E),
        ({"embedding_dim": 16}, (16 - E) * V + 2 * (16 - E) + (16 - E) * H + 16 * H),
        ({"embedding_dim": 24}, 0),
    ],
)
def test_every_option_has_the_parameters_it_should(make: Make, options: dict[str, Any], more: int) -> None:
    assert sum(p.numel() for p in make(**options).parameters()) == PARAMETERS + more


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 120_179_713),
        ({"head": "none"}, 119_589_889),
        ({"layers": 4, "hidden": 384, "intermediate": 1024, "embedding_dim": 96, "position": "learned"}, 8_788_320),
    ],
)
def test_parameter_counts_are_the_references(options: dict[str, Any], count: int) -> None:
    if "embedding_dim" in options:  # its bert-tiny
        options |= {"norm_scheme": "post", "final_norm": False, "glu": False, "head": "transform"}
        options |= {"bias": True, "qkv_bias": True, "decoder_bias": True}
    with torch.device("meta"):
        model = CrammedConfig(**options).build(32768, 128)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("variant", ["default", "rotary", "post", "few_feedforwards"])
@pytest.mark.parametrize("active", [(), (1,), (0, 2), (0, 1, 2)])
def test_active_layers_are_a_model_of_those_layers(
    make: Make, make_batch: MakeBatch, variant: str, active: tuple[int, ...]
) -> None:
    model, batch = make(**VARIANTS[variant]), make_batch(lengths=LENGTHS)
    fewer = copy.deepcopy(model)
    fewer.blocks = torch.nn.ModuleList(copy.deepcopy(model.blocks[i]) for i in active)
    fewer.active_layers = range(len(active))
    model.active_layers = active
    assert torch.equal(model(batch), fewer(batch))
    assert torch.equal(model.hidden(batch), fewer.hidden(batch))
    found = gradients(model, batch)
    for layer in range(3):
        there = [g is not None for name, g in found.items() if name.startswith(f"blocks.{layer}.")]
        assert there == [layer in active] * len(there)
    assert all(g is not None for name, g in found.items() if not name.startswith("blocks."))


@pytest.mark.parametrize("variant", ["default", "plain", "factorized", "untied", "bare", "few_feedforwards", "biases"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_flops_are_those_of_the_products(make: Make, make_batch: MakeBatch, variant: str, layers: int) -> None:
    model, batch = make(**VARIANTS[variant]), make_batch(sequences=1)
    model.attention = "math"
    model.active_layers = range(layers)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    assert model.flops(batch.length, batch.positions.shape[1], layers) == counter.get_total_flops()


@pytest.mark.parametrize("variant", ["default", "rotary", "sandwich", "scalenorm", "unitnorm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_copies_follow_the_float32_model(
    make: Make, make_batch: MakeBatch, variant: str, dtype: torch.dtype
) -> None:
    model, batch = make(**VARIANTS[variant]), make_batch(lengths=LENGTHS)
    low = copy.deepcopy(model).to(dtype)
    used = batch.weights.bool()
    torch.testing.assert_close(low(batch)[used], model(batch)[used], rtol=0.06, atol=0.06)
    exact, rounded = gradients(model, batch), gradients(low, batch)
    for name, gradient in exact.items():
        assert rounded[name].dtype == dtype
        if gradient.numel() > 1:
            assert F.cosine_similarity(gradient.flatten(), rounded[name].float().flatten(), dim=0) > 0.98, name


def test_dropout_acts_in_training_mode_only(make: Make, make_batch: MakeBatch) -> None:
    batch = make_batch()
    for options in ({"dropout": 0.3}, {"attention_dropout": 0.3}, {"embedding_dropout": 0.3}):
        model = make(**options)
        assert not torch.equal(model.train()(batch), model(batch)), options
        assert torch.equal(model.eval()(batch), model(batch)), options
        assert model.embeddings.dropout.p == options.get("embedding_dropout", options.get("dropout", 0.0))
        assert CrammedConfig(**options).drops_out
    assert not CrammedConfig().drops_out
    assert make(dropout=0.3, embedding_dropout=0.0).embeddings.dropout.p == 0.0


@pytest.mark.parametrize(
    ("options", "std"),
    [
        ({}, 0.02),
        ({"init_std": 0.05}, 0.05),
        ({"init": "small"}, (2 / (5 * 64)) ** 0.5),
        ({"init": "megatron"}, (1 / (3 * 64)) ** 0.5),
        ({"init": "wang"}, 2 / (2 * 64**0.5)),
        ({"init": "deepnorm"}, 16**-0.25),
    ],
)
def test_initial_weights_have_the_spread_of_their_kind(options: dict[str, Any], std: float) -> None:
    torch.manual_seed(0)
    sizes = {"layers": 2, "hidden": 64, "heads": 4, "intermediate": 128, "bias": True, "tie_weights": False}
    for name, parameter in CrammedConfig(**sizes, **options).build(512, 32).named_parameters():
        if parameter.dim() == 2:
            assert abs(parameter.std() / std - 1) < 5 / (2 * parameter.numel()) ** 0.5, name
        elif name == "embeddings.position.scale":
            assert parameter.tolist() == [64**-0.5]
        else:
            expected = torch.ones_like if name.endswith("norm.weight") else torch.zeros_like
            assert torch.equal(parameter, expected(parameter)), name


@pytest.mark.parametrize("pooler", ["zero_index", "avg", "max", "lse"])
@pytest.mark.parametrize("pool_padding", [False, True])
def test_classification_pools_tokens_and_padding_only_if_asked(pooler: str, pool_padding: bool) -> None:
    torch.manual_seed(0)
    head = ClassificationHeadConfig(pooler=pooler, pool_padding=pool_padding, head_dim=10)
    model = CrammedConfig(**SIZES, init_std=0.3, classification_head=head).build(97, 20, labels=3).eval()
    assert isinstance(model, CrammedClassifier)
    ids = torch.randint(1, 97, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    logits = model(ids, mask)
    alone = torch.cat([model(ids[row : row + 1, : int(mask[row].sum())]) for row in range(3)])
    other = model(ids.where(mask, 5), mask)
    if pool_padding and pooler != "zero_index":
        assert not torch.allclose(logits[1:], alone[1:], atol=1e-3)
        assert not torch.allclose(logits[1:], other[1:], atol=1e-3)
        torch.testing.assert_close(logits[0], alone[0])
    else:
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, other, rtol=1e-4, atol=1e-5)
    states = dense_outputs(model, ids, mask)["hidden"]
    pooled = {
        "zero_index": states[2, 0],
        "avg": states[2].mean(0) if pool_padding else states[2, 0],
        "max": states[2].amax(0) if pool_padding else states[2, 0],
        "lse": states[2].logsumexp(0) if pool_padding else states[2, 0],
    }[pooler]
    torch.testing.assert_close(logits[2], model.head.classifier(torch.tanh(model.head.pooler(pooled))))


def test_the_classification_heads_options_act() -> None:
    def count(**options: Any) -> int:
        config = CrammedConfig(**SIZES, classification_head=ClassificationHeadConfig(**options))
        return sum(p.numel() for p in config.build(97, 20, labels=2).head.parameters())

    assert count(head_dim=10) == 24 * 10 + 10 + 10 * 2 + 2
    assert count(include_ff_layer=False) == 24 * 2 + 2
    states = torch.randn(2, 5, 24)
    heads = {}
    for nonlin in ("tanh", "relu"):
        torch.manual_seed(0)
        config = CrammedConfig(**SIZES, classification_head=ClassificationHeadConfig(nonlin=nonlin, head_dim=8))
        heads[nonlin] = config.build(97, 20, labels=2).head.eval()
    assert not torch.allclose(heads["tanh"](states), heads["relu"](states))
    dropping = ClassificationHeadConfig(classifier_dropout=0.5)
    head = CrammedConfig(**SIZES, classification_head=dropping).build(97, 20, labels=2).head
    assert not torch.equal(head.train()(states), head(states))


@pytest.mark.full
@pytest.mark.parametrize("variant", ["default", "rotary"])
def test_compiled_blocks_agree_with_plain_ones(make: Make, make_batch: MakeBatch, variant: str) -> None:
    model, batch = make(**VARIANTS[variant]), make_batch()
    plain, plain_gradients = model(batch), gradients(model, batch)
    for block in model.blocks:
        block.compile()
    torch.testing.assert_close(model(batch), plain, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-3, atol=1e-5, msg=name)
