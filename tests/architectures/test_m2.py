"""Laws of M2-BERT: what may and may not change its outputs, and what its options do."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cramming.architectures import dense_outputs
from cramming.architectures.configs.m2 import M2Config
from cramming.architectures.layers import kept_filters
from cramming.architectures.layers.filters import Networks, generate
from cramming.architectures.m2 import M2
from cramming.batch import Batch
from cramming.engine import Engine
from cramming.kernels.torch_convolution import convolution_flops
from cramming.method import Method
from cramming.optim import for_model
from cramming.optim.config import AdamW, OptimConfig
from rst import Clock, StepsCost

MakeBatch = Callable[..., Batch]
LENGTHS = [17, 1, 9, 12]
SIZES = M2Config(layers=3, hidden=24, intermediate=48, filter_order=8, max_positions=20)
ARCHS = Path(__file__).resolve().parents[2] / "config" / "arch"


def build(**options: object) -> M2:
    """A model whose weights are large enough that every part of it matters to the output."""
    torch.manual_seed(0)
    model = dataclasses.replace(SIZES, **options).build(97, 20)
    assert isinstance(model, M2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def m2() -> M2:
    return build()


def gradients(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """Gradient of the batch's mean loss by parameter."""
    model.zero_grad(set_to_none=True)
    ((model(batch) * batch.weights).sum() / batch.normalizer).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(one: Mapping[str, Tensor | None], other: Mapping[str, Tensor | None], rtol: float = 1e-3) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        scale = 1e-5 * float(other[name].abs().max()) + 1e-7
        torch.testing.assert_close(gradient, other[name], rtol=rtol, atol=scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_losses_are_cross_entropy_of_the_dense_logits_at_predicted_positions(
    m2: M2, make_batch: MakeBatch, lengths: list[int] | None
) -> None:
    batch = make_batch(lengths=lengths)
    mask = None if lengths is None else torch.arange(17) < torch.tensor(lengths)[:, None]
    there = dense_outputs(m2, batch.inputs, mask)["logits"][torch.arange(4)[:, None], batch.positions]
    used = batch.weights.bool()
    torch.testing.assert_close(m2(batch, logits=True)[used], there[used], rtol=1e-4, atol=1e-5)
    expected = F.cross_entropy(there.flatten(0, 1), batch.labels.flatten(), reduction="none").view(4, -1)
    torch.testing.assert_close(m2(batch)[used], expected[used], rtol=1e-4, atol=1e-5)


def test_padding_never_leaks(m2: M2, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    padding = torch.arange(17) >= batch.lengths[:, None]
    draw = torch.randint(1, 97, batch.inputs.shape, generator=torch.Generator().manual_seed(0))
    other = dataclasses.replace(batch, inputs=batch.inputs.where(~padding, draw))
    assert torch.equal(m2(batch), m2(other))
    assert torch.equal(m2.hidden(batch), m2.hidden(other))
    one, two = gradients(m2, batch), gradients(m2, other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not m2.hidden(batch)[padding].any()


@pytest.mark.parametrize("training_additions", [True, False])
def test_a_padded_sequence_is_what_it_is_alone(make_batch: MakeBatch, training_additions: bool) -> None:
    model = build(training_additions=training_additions)
    batch = make_batch(lengths=LENGTHS)
    together = model.hidden(batch)
    for row, length in enumerate(LENGTHS):
        alone = dense_outputs(model, batch.inputs[row : row + 1, :length])["hidden"]
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)


def test_padding_is_text_where_released_models_took_it_for_text(m2: M2, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    leaking = dataclasses.replace(SIZES, mask_padding=False).build(97, 20)
    leaking.load_state_dict(m2.state_dict())
    tokens = torch.arange(17) < batch.lengths[:, None]
    whole = m2.hidden(dataclasses.replace(batch, lengths=None))
    torch.testing.assert_close(leaking.hidden(batch), whole * tokens[..., None])
    assert (leaking.hidden(batch) - m2.hidden(batch))[tokens].abs().max() > 0.1


def test_sequences_do_not_depend_on_their_companions(m2: M2, make_batch: MakeBatch) -> None:
    for lengths in (None, LENGTHS):
        batch = make_batch(lengths=lengths)
        losses = m2(batch)
        for row in range(4):
            alone = m2(next(part for number, part in enumerate(batch.split(1)) if number == row))
            torch.testing.assert_close(losses[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_documents_apart_are_what_they_are_alone(m2: M2, make_batch: MakeBatch) -> None:
    batch = make_batch(sequences=1)
    starts = torch.zeros(1, 17, dtype=torch.bool)
    starts[0, [0, 5, 6]] = True
    together = m2.hidden(dataclasses.replace(batch, starts=starts))
    for begin, end in ((0, 5), (5, 6), (6, 17)):
        alone = dense_outputs(m2, batch.inputs[:, begin:end])["hidden"]
        torch.testing.assert_close(together[:, begin:end], alone, rtol=1e-4, atol=1e-5)
    assert (together - m2.hidden(batch)).abs().max() > 0.1


def test_a_filter_reaches_as_far_as_it_is_long(make_batch: MakeBatch) -> None:
    """One layer of length 6: the short convolution adds two positions to what a token sees behind it."""
    model = build(layers=1, filter_length=6)
    batch = make_batch(sequences=1, length=20)
    batch = dataclasses.replace(batch, lengths=None)
    changed = batch.inputs.clone()
    changed[0, 10] = 1 + changed[0, 10] % 90
    model.use_kernels({"gated_long_conv": "reference"})  # a transform's rounding is everywhere
    moved = (model.hidden(batch) != model.hidden(dataclasses.replace(batch, inputs=changed))).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(10 - 6, 10 + 5 + 2 + 1))


def test_shorter_sequences_use_the_first_taps(make_batch: MakeBatch) -> None:
    """What follows a sequence is zero to the whole filter, so it may as well not be there."""
    model = build(mask_padding=True)
    batch = make_batch(sequences=2, length=9)
    longer = F.pad(batch.inputs, (0, 11), value=3)
    told = dataclasses.replace(batch, inputs=longer, lengths=torch.tensor([9, 9]))
    torch.testing.assert_close(model.hidden(told)[:, :9], model.hidden(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("active", [(), (1,), (0, 2), (0, 1, 2)])
def test_active_layers_are_a_model_of_those_layers(m2: M2, make_batch: MakeBatch, active: tuple[int, ...]) -> None:
    batch = make_batch(lengths=LENGTHS)
    full = copy.deepcopy(m2)
    full.blocks = torch.nn.ModuleList(copy.deepcopy(m2.blocks[i]) for i in active)
    full.active_layers = range(len(active))
    m2.active_layers = active
    assert torch.equal(m2(batch), full(batch))
    found = gradients(m2, batch)
    for layer in range(3):
        there = [g is not None for name, g in found.items() if name.startswith(f"blocks.{layer}.")]
        assert there == [layer in active] * len(there)
    assert all(g is not None for name, g in found.items() if not name.startswith("blocks."))


def test_checkpointing_gives_the_same_gradients(m2: M2, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    plain = gradients(m2, batch)
    m2.gradient_checkpointing = True
    kept = gradients(m2, batch)
    assert all(torch.equal(plain[name], kept[name]) for name in plain)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_flops_are_those_of_the_products_and_the_transforms(m2: M2, make_batch: MakeBatch, layers: int) -> None:
    batch = make_batch(sequences=1)
    m2.active_layers = range(layers)
    m2.compute_plainly(["block_diagonal"])  # by products that are counted
    m2(batch)  # the filters are there now
    with FlopCounterMode(display=False) as counter:
        m2(batch)
    transforms = layers * 2 * 24 * convolution_flops(17, 20)
    assert m2.flops(17, 4, layers) - transforms == counter.get_total_flops()


def engine_of(model: M2, precision: str, microbatch: int, optim: OptimConfig | None = None) -> Engine:
    clock = Clock({"main": StepsCost()}, 100.0)
    optimizer = for_model(optim or AdamW(lr=1e-2), model)
    return Engine(model, optimizer, clock, precision=precision, microbatch_size=microbatch)


def train(engine: Engine, batch: Batch, steps: int) -> None:
    for _ in range(steps):
        for part in batch.split(engine.microbatch_size):
            engine.backward(part, Method().objective)
        engine.step(1.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_filters_are_made_once_a_step_and_are_those_of_its_weights(
    make_batch: MakeBatch, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused AdamW writes weights unseen; the engine's copy in bfloat16 is rewritten in place."""
    made, returned = [], []
    inner = Networks.backward
    monkeypatch.setattr(
        Networks, "backward", lambda self, slope, hidden: returned.append(len(slope)) or inner(self, slope, hidden)
    )
    monkeypatch.setattr(
        kept_filters, "generate", lambda filters, rows: made.append(len(filters)) or generate(filters, rows)
    )
    batch, model = make_batch(), build()
    engine = engine_of(model, precision, 1)
    train(engine, batch, 3)
    assert engine.optimizer.defaults["fused"]
    assert made == 3 * [3], "four microbatches, three steps, three layers together"
    assert returned == 4 * 3 * [4 * 3], "four networks in each"
    fresh = build()
    fresh.load_state_dict(engine.model.state_dict())
    kept = engine.losses(batch, "train")
    assert torch.equal(kept, engine_of(fresh, precision, 1).losses(batch, "train"))


def test_microbatches_accumulate_to_the_gradient_of_the_batch(m2: M2, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    whole = {name: gradient.clone() for name, gradient in gradients(m2, batch).items()}
    m2.zero_grad(set_to_none=True)
    engine = engine_of(m2, "float32", 1)
    for part in batch.split(1):
        engine.backward(part, Method().objective)
    assert_same({name: p.grad for name, p in m2.named_parameters()}, whole)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_copies_follow_the_float32_model(m2: M2, make_batch: MakeBatch, precision: torch.dtype) -> None:
    with torch.no_grad():  # as large as a model's are, so that two gates do not magnify rounding
        for parameter in m2.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.5)
    batch = make_batch(lengths=LENGTHS)
    low = copy.deepcopy(m2).to(precision)
    used = batch.weights.bool()
    assert low(batch).dtype == torch.float32
    torch.testing.assert_close(low(batch)[used], m2(batch)[used], rtol=0.03, atol=0.05)
    exact, rounded = gradients(m2, batch), gradients(low, batch)
    for name, gradient in exact.items():
        assert rounded[name].dtype == (torch.float32 if ".filters." in name else precision)
        if gradient.norm() > 1e-4:
            assert F.cosine_similarity(gradient.flatten(), rounded[name].float().flatten(), dim=0) > 0.98, name


def test_a_copied_engine_goes_its_own_way(m2: M2, make_batch: MakeBatch) -> None:
    batch = make_batch()
    engine = engine_of(m2, "float32", 2)
    train(engine, batch, 1)
    before = engine.losses(batch, "train")
    other = copy.deepcopy(engine)
    train(other, batch, 2)
    assert torch.equal(engine.losses(batch, "train"), before)
    train(engine, batch, 2)
    assert torch.equal(engine.losses(batch, "train"), other.losses(batch, "train"))


def test_pooling_all_tokens_or_the_first(make_batch: MakeBatch) -> None:
    inputs = make_batch().inputs
    mask = torch.arange(17) < torch.tensor(LENGTHS)[:, None]
    for pool_all in (False, True):
        torch.manual_seed(0)
        model = dataclasses.replace(SIZES, pool_all=pool_all).build(97, 20, 3).eval()
        states = dense_outputs(model, inputs, mask)["hidden"]
        pooled = torch.stack([row[:length].mean(0) for row, length in zip(states, LENGTHS, strict=True)])
        head = model.head
        wanted = head.classifier(torch.tanh(head.pooler(pooled if pool_all else states[:, 0])))
        torch.testing.assert_close(model(inputs, mask), wanted)


def test_dropout_acts_in_training_mode_only(make_batch: MakeBatch) -> None:
    batch = make_batch()
    model = dataclasses.replace(SIZES, dropout=0.3).build(97, 20)
    model.active_layers = (1,)
    assert not torch.equal(model.train()(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))
