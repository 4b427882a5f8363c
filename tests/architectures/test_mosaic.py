"""Laws of MosaicBERT's encoder and what each of its options does."""

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from cramming import optim
from cramming.architectures import dense_outputs
from cramming.architectures.configs.mosaic import MosaicConfig
from cramming.architectures.mosaic import Mosaic
from cramming.batch import Batch
from cramming.cli import compose, pretraining
from cramming.data.tokenizer import Tokenizer
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.fill_mask import fill
from cramming.method import Method
from cramming.session import pretrain
from rst.clock import Clock
from rst.costs import StepsCost

MakeBatch = Callable[..., Batch]
LENGTHS = [17, 1, 9, 12]


def make(length: int = 20, **options: Any) -> Mosaic:
    """A model whose weights are large enough that every part of it matters to the output."""
    torch.manual_seed(0)
    sizes = {"layers": 3, "hidden": 24, "heads": 3, "intermediate": 20}
    model = MosaicConfig(**(sizes | options)).build(97, length)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def gradients(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradient of the batch's mean loss by parameter."""
    model.zero_grad(set_to_none=True)
    ((model(batch) * batch.weights).sum() / batch.normalizer).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("glu", [True, False])
def test_a_block_is_its_formulas(glu: bool) -> None:
    """Section 2 of the paper: norm(x + attention), then norm(x + feed-forward) with a gate on half of a product."""
    model = make(glu=glu)
    block, x = model.blocks[0], torch.randn(7, 24)
    layout = model.layout(torch.zeros(1, 7, dtype=torch.int64))
    after = F.layer_norm(
        x + block.attention(x, layout), (24,), block.attention_norm.weight, block.attention_norm.bias, 1e-12
    )
    expand, contract = block.feedforward.expand, block.feedforward.contract
    if glu:
        assert expand.bias is None
        values, gates = after @ expand.weight[:20].T, after @ expand.weight[20:].T
        inner = F.gelu(gates) * values
    else:
        inner = F.gelu(after @ expand.weight.T + expand.bias)
    expected = after + inner @ contract.weight.T + contract.bias
    expected = F.layer_norm(expected, (24,), block.feedforward_norm.weight, block.feedforward_norm.bias, 1e-12)
    torch.testing.assert_close(block(x, layout), expected)


@pytest.mark.parametrize("glu", [True, False])
def test_gradients_are_those_of_the_dense_computation(make_batch: MakeBatch, glu: bool) -> None:
    model, batch = make(glu=glu), make_batch(lengths=LENGTHS)
    labels = torch.full(batch.inputs.shape, -100)
    used = batch.weights.bool()
    rows = torch.arange(4)[:, None].expand_as(used)
    labels[rows[used], batch.positions[used]] = batch.labels[used]
    fast = gradients(model, batch)
    model.zero_grad(set_to_none=True)
    mask = torch.arange(17) < batch.lengths[:, None]
    dense_outputs(model, batch.inputs, mask, labels=labels)["loss"].backward()
    assert_same_gradients(fast, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def test_padding_never_leaks(make_batch: MakeBatch) -> None:
    model, batch = make(), make_batch(lengths=LENGTHS)
    padding = torch.arange(17) >= batch.lengths[:, None]
    other = replace(batch, inputs=batch.inputs.where(~padding, torch.randint(1, 97, batch.inputs.shape)))
    assert torch.equal(model(batch), model(other))
    assert torch.equal(model.hidden(batch), model.hidden(other))
    one, two = gradients(model, batch), gradients(model, other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not model.hidden(batch)[padding].any()


@pytest.mark.parametrize("form", ["math", "sdpa"])
def test_a_padded_sequence_is_what_it_is_alone(make_batch: MakeBatch, form: str) -> None:
    model, batch = make(), make_batch(lengths=LENGTHS)
    model.attention = form
    together = model.hidden(batch)
    for row, length in enumerate(LENGTHS):
        alone = dense_outputs(model, batch.inputs[row : row + 1, :length])["hidden"]
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)


def test_documents_are_kept_apart(make_batch: MakeBatch) -> None:
    model, batch = make(), make_batch()
    starts = torch.zeros(4, 17, dtype=torch.bool)
    starts[:, 6] = True
    together = model.hidden(replace(batch, starts=starts))
    for part in (slice(0, 6), slice(6, 17)):
        alone = dense_outputs(model, batch.inputs[:, part])["hidden"]
        torch.testing.assert_close(together[:, part], alone, rtol=1e-4, atol=1e-5)


def test_any_length_fits_whatever_it_was_trained_on() -> None:
    short, long = make(length=4), make(length=900)
    ids = torch.randint(1, 97, (1, 700))
    assert torch.equal(dense_outputs(short, ids)["hidden"], dense_outputs(long, ids)["hidden"])
    assert short.state_dict().keys() == long.state_dict().keys()
    assert all(torch.equal(t, long.state_dict()[n]) for n, t in short.state_dict().items()), (
        "and no weight depends on it"
    )
    assert short.max_positions >= 700


@pytest.mark.parametrize("heads", [1, 3, 6, 12])
def test_order_is_told_by_any_number_of_heads(heads: int) -> None:
    """Without the bias, turning the words round would turn the output round and change nothing else."""
    model, ids = make(heads=heads), torch.arange(5, 14)[None]
    forward, backward = dense_outputs(model, ids)["hidden"], dense_outputs(model, ids.flip(1))["hidden"].flip(1)
    torch.testing.assert_close(forward, backward, msg="distances are the same in both directions")
    swapped = ids[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]]
    assert (dense_outputs(model, swapped)["hidden"][:, 4] - forward[:, 4]).abs().max() > 1e-3
    for block in model.blocks:
        block.attention.slopes = None
    plain = dense_outputs(model, ids)["hidden"]
    torch.testing.assert_close(dense_outputs(model, swapped)["hidden"][:, 4], plain[:, 4])


@pytest.mark.parametrize("active", [(), (1,), (0, 2)])
def test_active_layers_are_a_model_of_those_layers(make_batch: MakeBatch, active: tuple[int, ...]) -> None:
    model, batch = make(), make_batch(lengths=LENGTHS)
    full = copy.deepcopy(model)
    full.blocks = torch.nn.ModuleList(copy.deepcopy(model.blocks[i]) for i in active)
    full.active_layers = range(len(active))
    model.active_layers = active
    assert torch.equal(model(batch), full(batch))
    there = {name.split(".")[1] for name in gradients(model, batch) if name.startswith("blocks.")}
    assert there == {str(layer) for layer in active}


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradient_checkpointing_changes_nothing(make_batch: MakeBatch, lengths: list[int] | None) -> None:
    model, batch = make(), make_batch(lengths=lengths)
    plain = gradients(model, batch)
    model.gradient_checkpointing = True
    assert_same_gradients(gradients(model, batch), plain)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("glu", [True, False])
def test_flops_are_those_of_the_products(make_batch: MakeBatch, layers: int, glu: bool) -> None:
    model, batch = make(glu=glu), make_batch(sequences=1)
    model.attention = "math"
    model.active_layers = range(layers)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    assert model.flops(batch.length, batch.positions.shape[1], layers) == counter.get_total_flops()


@pytest.mark.parametrize("low_precision_norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_copies_follow_the_float32_model(
    make_batch: MakeBatch, dtype: torch.dtype, low_precision_norm: bool
) -> None:
    model, batch = make(low_precision_norm=low_precision_norm), make_batch(lengths=LENGTHS)
    low = copy.deepcopy(model).to(dtype)
    used = batch.weights.bool()
    assert low.hidden(batch).dtype == dtype
    torch.testing.assert_close(low(batch)[used], model(batch)[used], rtol=0.05, atol=0.05)
    exact, rounded = gradients(model, batch), gradients(low, batch)
    for name in exact:
        if not name.endswith("qkv.bias"):  # a key's bias has the gradient zero: only rounding is left
            assert F.cosine_similarity(exact[name].flatten(), rounded[name].float().flatten(), dim=0) > 0.98, name


def test_norms_in_float32_keep_what_bfloat16_would_round_away(make_batch: MakeBatch) -> None:
    """A weight of 1.001 is 1 in bfloat16: only the option lets a change so small act, and the engine train it."""
    batch = make_batch(lengths=LENGTHS)
    outputs = {}
    for low in (True, False):
        model = make(low_precision_norm=low)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.001)
        copies = [copy.deepcopy(m).to(torch.bfloat16) for m in (model, moved)]
        norms = [m for m in copies[0].modules() if isinstance(m, torch.nn.LayerNorm)]
        assert len(norms) == 2 * 3 + 2
        assert {norm.weight.dtype for norm in norms} == {torch.bfloat16 if low else torch.float32}
        outputs[low] = [c(batch) for c in copies]
        engine = Engine(
            model,
            optim.build("adamw", optim.parameter_groups(model), lr=1e-2),
            Clock({"main": StepsCost()}, budget_s=10),
            precision="bfloat16",
        )
        engine.backward(batch, Method().objective)
        engine.step(1.0)
        trained = [m.weight for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
        assert not any(torch.equal(weight, torch.ones(24)) for weight in trained)
    assert torch.equal(*outputs[True])
    assert not torch.equal(*outputs[False])
    wide = copy.deepcopy(make(low_precision_norm=False)).double()
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


@pytest.mark.parametrize("glu", [True, False])
def test_dropout_acts_in_training_mode_only_and_where_it_is_said_to(make_batch: MakeBatch, glu: bool) -> None:
    batch = make_batch()
    for key in ("dropout", "attention_dropout"):
        model = make(glu=glu, **{key: 0.3})
        assert not torch.equal(model.train()(batch), model(batch)), key
        assert torch.equal(model.eval()(batch), model(batch)), key
    model = make(glu=glu, dropout=0.5).train()
    block, x = model.blocks[0], torch.randn(500, 24)
    with torch.no_grad():
        block.feedforward.contract.weight.zero_()
    change = block.feedforward_dropout(block.feedforward(x)) / block.feedforward.contract.bias
    assert bool((change == 1).all()) == glu, "with gates nothing is dropped after the second matrix"


@pytest.mark.parametrize(("vocabulary", "multiple", "rows"), [(97, 8, 104), (96, 8, 96), (97, 64, 128), (97, 1, 97)])
def test_the_vocabulary_is_filled_up(vocabulary: int, multiple: int, rows: int) -> None:
    config = MosaicConfig(layers=1, hidden=24, heads=3, intermediate=20, pad_vocab_to=multiple)
    model = config.build(vocabulary, 16)
    assert model.vocab_size == rows
    assert model.embeddings.word.weight.shape == (rows, 24)
    assert dense_outputs(model, torch.ones(1, 3, dtype=torch.int64))["logits"].shape == (1, 3, rows)
    assert config.build(rows, 16).vocab_size == rows


def test_classifiers_have_a_dropout_of_their_own() -> None:
    sizes = {"layers": 1, "hidden": 24, "heads": 3, "intermediate": 20, "dropout": 0.1}
    assert MosaicConfig(**sizes).build(97, 16, labels=3).head.dropout.p == 0.1
    model = MosaicConfig(**sizes, classifier_dropout=0.4).build(97, 16, labels=3)
    assert model.head.dropout.p == 0.4
    ids = torch.randint(1, 97, (2, 9))
    types = torch.tensor([[0] * 5 + [1] * 4] * 2)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    logits = model.eval()(ids, mask, types)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(logits[1:], model(ids[1:, :6], None, types[1:, :6]))
    assert not torch.allclose(logits, model(ids, mask))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 7}, "arch.heads=7 does not divide arch.hidden=768: the nearest that does is 6"),
        ({"pad_vocab_to": 0}, "arch.pad_vocab_to=0 is too small"),
        ({"classifier_dropout": 1.0}, "arch.classifier_dropout=1.0 is not a probability"),
        ({"intermediate": 0}, "arch.intermediate=0 is too small"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MosaicConfig(**settings)


@pytest.mark.parametrize(("name", "parameters"), [("mosaic", 137_400_384), ("mosaic_large", 435_221_312)])
def test_published_sizes(name: str, parameters: int) -> None:
    """The base model's number is the reference's; the large one's was published as about 430 million."""
    config = compose([f"arch={name}", "data=python_docs"]).arch
    with torch.device("meta"):
        model = config.build(30522, 128)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_recipes_are_the_published_ones() -> None:
    base, large = compose(["experiment=mosaic_base"]), compose(["experiment=mosaic_large"])
    baseline = compose(["experiment=mosaic_bert_baseline"])
    for config in (base, large, baseline):
        train, data, optimizer = config.train, config.data, config.train.optim
        assert (data.name, data.seq_length, data.layout, data.tokenizer) == ("c4", 128, "document", "bert-base-uncased")
        assert (config.seed, train.batch_size, train.clip_norm, config.impl.precision) == (17, 4096, None, "bfloat16")
        assert data.max_documents * (1 - data.heldout_fraction) >= 70_000 * 4096
        assert (train.schedule.kind, train.schedule.warmup, train.schedule.end) == ("linear", 0.06, 0.02)
        assert (optimizer.kind, optimizer.betas, optimizer.eps) == ("adamw", [0.9, 0.98], 1e-6)
        assert (optimizer.decay_norms, optimizer.decay_biases) == (True, True)
        assert optimizer.weight_decay * optimizer.lr == pytest.approx(1e-5), "there the decay is not times the rate"
        assert config.arch.dropout == 0.1
        assert config.arch.rows(30522) == 30528
    assert (base.arch.name, base.train.optim.lr, base.train.mask_rate) == ("mosaic", 5e-4, 0.3)
    assert (large.arch.name, large.train.optim.lr, large.train.mask_rate) == ("mosaic_large", 2e-4, 0.3)
    assert (baseline.arch.name, baseline.train.optim.lr, baseline.train.mask_rate) == ("bert_base", 5e-4, 0.15)
    assert (base.arch.attention_dropout, baseline.arch.attention_dropout) == (0.0, 0.1)


def test_the_tiny_size_trains_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that has to be filled up, documents of many lengths, dropout: the loss falls."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    words = ["".join(draw.choices("bdfgklmnprstaeiou", k=draw.randint(2, 7))) for _ in range(300)]
    rare = [1 / (rank + 1) for rank in range(300)]
    documents = [" ".join(draw.choices(words, rare, k=draw.randint(3, 60))) for _ in range(600)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    own = ["data.vocab_size=301", "data.seq_length=64", "data.layout=document", "arch.dropout=0.1"]
    speed = ["impl.threads=1", "impl.precision=float32", "impl.microbatch_size=16", "train.batch_size=16"]
    run = ["name=a", "arch=mosaic_tiny", "data=local", "data.path=text.txt", "rst=steps", "budget=30"]
    pretraining(pretrain, [*run, *own, *speed, "train.optim.lr=3e-3", "train.mask_rate=0.3"])
    summary = json.loads((tmp_path / "outputs" / "a" / "summary.json").read_text())
    assert (summary["steps"], summary["end_reason"]) == (30, "budget spent")
    assert summary["validation_loss"] < math.log(301) - 1.0
    tokenizer = Tokenizer.load(tmp_path / "outputs" / "a" / "tokenizer")
    model = MosaicConfig(layers=1, hidden=24, heads=3, intermediate=20).build(tokenizer.vocab_size, 64).eval()
    with torch.no_grad():
        model.head.bias[tokenizer.vocab_size :] = 100.0  # rows that no word has, and that must never be one
    ((*found,),) = fill(model, tokenizer, f"{words[0]} [MASK]", top=301)
    assert sum(probability for _, probability in found) == pytest.approx(1, abs=1e-4)
