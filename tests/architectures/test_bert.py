"""Laws of the encoder: what may and may not change its outputs."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from cramming.architectures import BertConfig, dense_outputs
from cramming.architectures.bert import Bert
from cramming.architectures.layers.attention_forms import CPU_MATH_UP_TO
from cramming.batch import Batch

MakeBatch = Callable[..., Batch]
LENGTHS = [17, 1, 9, 12]


def gradients(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor | None]:
    """Gradient of the batch's mean loss by parameter."""
    model.zero_grad(set_to_none=True)
    ((model(batch) * batch.weights).sum() / batch.normalizer).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(one: dict[str, torch.Tensor | None], other: dict[str, torch.Tensor | None]) -> None:
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_losses_are_cross_entropy_of_the_dense_logits_at_predicted_positions(
    bert: Bert, make_batch: MakeBatch, lengths: list[int] | None
) -> None:
    batch = make_batch(lengths=lengths)
    mask = None if lengths is None else torch.arange(17) < torch.tensor(lengths)[:, None]
    dense = dense_outputs(bert, batch.inputs, mask)["logits"]
    there = dense[torch.arange(4)[:, None], batch.positions]
    used = batch.weights.bool()
    torch.testing.assert_close(bert(batch, logits=True)[used], there[used])
    expected = F.cross_entropy(there.flatten(0, 1), batch.labels.flatten(), reduction="none").view(4, -1)
    losses = bert(batch)
    torch.testing.assert_close(losses[used], expected[used])
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


def test_gradients_are_those_of_the_dense_computation(bert: Bert, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    labels = torch.full(batch.inputs.shape, -100)
    used = batch.weights.bool()
    rows = torch.arange(4)[:, None].expand_as(used)
    labels[rows[used], batch.positions[used]] = batch.labels[used]
    fast = gradients(bert, batch)
    bert.zero_grad(set_to_none=True)
    mask = torch.arange(17) < batch.lengths[:, None]
    dense_outputs(bert, batch.inputs, mask, labels=labels)["loss"].backward()
    assert_same_gradients(fast, {name: p.grad for name, p in bert.named_parameters()})


def test_padding_never_leaks(bert: Bert, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    padding = torch.arange(17) >= batch.lengths[:, None]
    other = copy.copy(batch)
    object.__setattr__(other, "inputs", batch.inputs.where(~padding, torch.randint(1, 97, batch.inputs.shape)))
    assert torch.equal(bert(batch), bert(other))
    assert torch.equal(bert.hidden(batch), bert.hidden(other))
    one, two = gradients(bert, batch), gradients(bert, other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not bert.hidden(batch)[padding].any()


@pytest.mark.parametrize("form", ["math", "sdpa"])
def test_a_padded_sequence_is_what_it_is_alone(bert: Bert, make_batch: MakeBatch, form: str) -> None:
    bert.attention = form
    batch = make_batch(lengths=LENGTHS)
    together = bert.hidden(batch)
    for row, length in enumerate(LENGTHS):
        alone = dense_outputs(bert, batch.inputs[row : row + 1, :length])["hidden"]
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)


def test_lengths_that_pad_nothing_change_nothing(bert: Bert, make_batch: MakeBatch) -> None:
    plain, told = make_batch(), make_batch()
    object.__setattr__(told, "lengths", torch.full((4,), 17))
    torch.testing.assert_close(bert(plain), bert(told))
    assert_same_gradients(gradients(bert, plain), gradients(bert, told))


def test_empty_slots_may_point_anywhere(bert: Bert, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    other = copy.copy(batch)
    empty = batch.weights == 0
    assert empty.any()
    object.__setattr__(other, "positions", batch.positions.masked_fill(empty, 16))
    torch.testing.assert_close(bert(batch)[~empty], bert(other)[~empty])
    assert bert(other, logits=True).isfinite().all()


@pytest.mark.parametrize("active", [(), (1,), (0, 2), (0, 1, 2)])
def test_active_layers_are_a_model_of_those_layers(
    bert: Bert, config: BertConfig, make_batch: MakeBatch, active: tuple[int, ...]
) -> None:
    batch = make_batch(lengths=LENGTHS)
    full = copy.deepcopy(bert)
    full.blocks = torch.nn.ModuleList(copy.deepcopy(bert.blocks[i]) for i in active)
    full.active_layers = range(len(active))
    bert.active_layers = active
    assert torch.equal(bert(batch), full(batch))
    assert torch.equal(bert.hidden(batch), full.hidden(batch))
    found = gradients(bert, batch)
    for layer in range(config.layers):
        there = [g is not None for name, g in found.items() if name.startswith(f"blocks.{layer}.")]
        assert there == [layer in active] * len(there)
    assert all(g is not None for name, g in found.items() if not name.startswith("blocks."))


@pytest.mark.parametrize("wrong", [(1, 0), (0, 0), (3,), (-1,)])
def test_active_layers_that_do_not_exist_are_refused(bert: Bert, wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending subset"):
        bert.active_layers = wrong
    assert bert.active_layers == (0, 1, 2)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_attention_forms_agree(bert: Bert, make_batch: MakeBatch, lengths: list[int] | None) -> None:
    batch = make_batch(lengths=lengths)
    outputs = {}
    for form in ("math", "sdpa"):
        bert.attention = form
        assert bert.fast_paths()["attention"] == form
        outputs[form] = (bert(batch), bert.hidden(batch), gradients(bert, batch))
    torch.testing.assert_close(outputs["math"][0], outputs["sdpa"][0])
    torch.testing.assert_close(outputs["math"][1], outputs["sdpa"][1], rtol=1e-4, atol=1e-5)
    assert_same_gradients(outputs["math"][2], outputs["sdpa"][2])


def test_auto_attention_is_chosen_by_length_on_cpu(bert: Bert) -> None:
    assert bert.attention == "auto"
    assert bert.fast_paths(CPU_MATH_UP_TO)["attention"] == "math"
    assert bert.fast_paths(CPU_MATH_UP_TO + 1)["attention"] == "sdpa"
    with pytest.raises(ValueError, match="'flash' is not one of auto, math, blocks, sdpa"):
        bert.attention = "flash"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_low_precision_copies_follow_the_float32_model(
    bert: Bert, make_batch: MakeBatch, dtype: torch.dtype, lengths: list[int] | None
) -> None:
    batch = make_batch(lengths=lengths)
    low = copy.deepcopy(bert).to(dtype)
    used = batch.weights.bool()
    losses = low(batch)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses[used], bert(batch)[used], rtol=0.03, atol=0.03)
    exact, rounded = gradients(bert, batch), gradients(low, batch)
    for name, gradient in exact.items():
        assert rounded[name].dtype == dtype
        # The gradient of a key's bias is zero (what is left is rounding), so only the values' bias is compared.
        values = slice(gradient.shape[0] // 3 * 2 if name.endswith("qkv.bias") else 0, None)
        assert F.cosine_similarity(gradient[values].flatten(), rounded[name][values].float().flatten(), dim=0) > 0.99


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_flops_are_those_of_the_products(bert: Bert, make_batch: MakeBatch, layers: int) -> None:
    batch = make_batch(sequences=1)
    bert.attention = "math"
    bert.active_layers = range(layers)
    with FlopCounterMode(display=False) as counter:
        bert(batch)
    assert bert.flops(batch.length, batch.positions.shape[1], layers) == counter.get_total_flops()


def test_dropout_acts_in_training_mode_only(make_batch: MakeBatch) -> None:
    batch = make_batch()
    for key in ("dropout", "attention_dropout"):
        torch.manual_seed(0)
        model = BertConfig(layers=1, hidden=24, heads=3, intermediate=40, **{key: 0.3}).build(97, 20)
        for form in ("math", "sdpa"):
            model.attention = form
            assert not torch.equal(model.train()(batch), model(batch)), (key, form)
            assert torch.equal(model.eval()(batch), model(batch)), (key, form)


def test_initial_weights_are_the_references() -> None:
    torch.manual_seed(0)
    model = BertConfig(layers=2, hidden=64, heads=4, intermediate=128).build(512, 32)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            spread = 0.02 / (2 * parameter.numel()) ** 0.5
            assert abs(parameter.mean()) < 5 * 0.02 / parameter.numel() ** 0.5, name
            assert abs(parameter.std() - 0.02) < 5 * spread, name
        else:
            expected = torch.ones_like if name.endswith("norm.weight") else torch.zeros_like
            assert torch.equal(parameter, expected(parameter)), name


@pytest.mark.full
def test_compiled_blocks_agree_with_plain_ones(bert: Bert, make_batch: MakeBatch) -> None:
    batch = make_batch()
    plain, plain_gradients = bert(batch), gradients(bert, batch)
    for block in bert.blocks:
        block.compile()
    torch.testing.assert_close(bert(batch), plain)
    assert_same_gradients(gradients(bert, batch), plain_gradients)
