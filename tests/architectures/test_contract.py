"""What every family owes, whatever it is made of: the contract of ``cramming/model.py``, one test for each promise.

The families are the files ``config/arch/*_tiny.yaml``: a new one is tested by being there. What a family does otherwise
is said in one table each.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cramming.batch import Batch
from cramming.cli import compose
from cramming.errors import UserError
from cramming.model import Model
from tests.architectures.families import FILES, TINY, VOCABULARY, arch, built

MakeBatch = Callable[..., Batch]
LENGTHS = [17, 1, 9, 12]
# Of a pass's operations, how many the counter does not see, at most: M2's Fourier transforms.
UNSEEN = {"m2_tiny": 0.2}


@pytest.fixture(params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    return str(request.param)


@pytest.fixture
def model(name: str) -> Model:
    """A small model of the family."""
    return built(arch(name))


def gradients(model: Model, batch: Batch) -> dict[str, Tensor | None]:
    """Gradient of the batch's mean loss by parameter."""
    model.zero_grad(set_to_none=True)
    ((model(batch) * batch.weights).sum() / batch.normalizer).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def close(one: Tensor, other: Tensor, what: str = "") -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda m: f"{what}: {m}")


def same_gradients(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    """Equal but for rounding, which is of the size of the largest: sums of terms that cancel have no other scale."""
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert (gradient is None) == (other[name] is None), name
        if gradient is not None:
            close(gradient, other[name], name)


def test_padding_changes_nothing_and_is_zero(model: Model, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    padding = torch.arange(17) >= batch.lengths[:, None]
    generator = torch.Generator().manual_seed(9)
    noise = torch.randint(1, VOCABULARY, batch.inputs.shape, generator=generator)
    other = replace(batch, inputs=batch.inputs.where(~padding, noise))
    assert not torch.equal(other.inputs, batch.inputs)
    used = batch.weights.bool()
    torch.testing.assert_close(model(other)[used], model(batch)[used], rtol=0, atol=1e-6)
    hidden = model.hidden(batch)
    torch.testing.assert_close(model.hidden(other), hidden, rtol=0, atol=1e-6)
    assert hidden.shape[:2] == batch.inputs.shape
    assert hidden[~padding].any(-1).all()
    assert not hidden[padding].any()
    same_gradients(gradients(model, other), gradients(model, batch))


@pytest.mark.parametrize("lengths", [[12, 11, 12, 10], [12, 3, 7, 1]], ids=["nearly full", "much padding"])
def test_a_classifier_says_of_a_text_what_it_says_of_it_alone(name: str, lengths: list[int]) -> None:
    torch.manual_seed(0)
    model = arch(name).build(VOCABULARY, 20, labels=3).eval()
    texts = [torch.randint(5, VOCABULARY, (length,)) for length in lengths]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]

    def asked(padding: int) -> Tensor:
        ids = torch.full((4, 12), padding)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        logits: Tensor = model(ids, mask)
        return logits

    def gradients_of(logits: Tensor) -> dict[str, Tensor | None]:
        model.zero_grad(set_to_none=True)
        logits.square().sum().backward()
        return {key: parameter.grad for key, parameter in model.named_parameters()}

    one_by_one = torch.cat([model(text[None], torch.ones(1, len(text), dtype=torch.bool)) for text in texts])
    for padding in (0, 7):
        close(asked(padding), one_by_one)
    same_gradients(gradients_of(asked(7)), gradients_of(one_by_one))


def test_empty_slots_are_finite_and_weigh_nothing(model: Model, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    empty = batch.weights == 0
    assert empty.any()
    other = replace(batch, positions=batch.positions.masked_fill(empty, 16), labels=batch.labels.masked_fill(empty, 7))
    close(model(other)[~empty], model(batch)[~empty])
    assert model(other).isfinite().all()
    assert model(other, logits=True).isfinite().all()
    same_gradients(gradients(model, other), gradients(model, batch))


def test_a_sequence_does_not_feel_its_companions(model: Model, make_batch: MakeBatch) -> None:
    for lengths in (None, LENGTHS):
        batch = make_batch(lengths=lengths)
        used = batch.weights.bool()
        together = model(batch)
        for row in range(len(batch)):
            alone = model(batch.select(torch.tensor([row])))[0]
            close(alone[used[row]], together[row][used[row]], f"sequence {row} of {lengths}")


def test_losses_are_the_cross_entropy_of_the_logits(model: Model, make_batch: MakeBatch) -> None:
    for lengths in (None, LENGTHS):
        batch = make_batch(lengths=lengths)
        losses, logits, used = model(batch), model(batch, logits=True), batch.weights.bool()
        assert losses.shape == batch.positions.shape
        assert losses.dtype == torch.float32
        # A family may have logits of rows beyond the vocabulary; no label is one of them.
        assert logits.shape[:2] == batch.positions.shape
        assert logits.shape[2] == model.vocab_size >= VOCABULARY
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
        close(losses[used], expected[used])


@pytest.mark.parametrize("active", [(), (1,), (0, 2), (0, 1, 2)])
def test_any_layers_may_be_active(name: str, make_batch: MakeBatch, active: tuple[int, ...]) -> None:
    model = built(arch(name, layers=3))
    assert model.layers == 3
    assert model.active_layers == (0, 1, 2)
    batch = make_batch(lengths=LENGTHS)
    model.active_layers = active
    assert model.active_layers == active
    found = gradients(model, batch)
    assert all(gradient is None or gradient.isfinite().all() for gradient in found.values())
    layers_of: dict[int, set[int]] = {}  # several where layers have their weights in common
    for layer, block in enumerate(model.blocks):
        for parameter in block.parameters():
            layers_of.setdefault(id(parameter), set()).add(layer)
    learning = set()
    for key, parameter in model.named_parameters():
        layers = layers_of.get(id(parameter))
        if layers is not None and not layers & set(active):
            assert found[key] is None, key
        elif layers is not None and found[key] is not None and found[key].any():
            learning |= layers & set(active)
    assert learning == set(active)
    losses = model(batch)
    model.active_layers = (0, 1, 2)  # nothing but which are active counts
    assert len(active) == 3 or not torch.allclose(model(batch), losses)
    model.active_layers = active
    assert torch.equal(model(batch), losses)


@pytest.mark.parametrize("wrong", [(1, 0), (0, 0), (2,), (-1,)])
def test_layers_that_do_not_exist_are_refused(model: Model, wrong: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, UserError), match="ascending subset"):
        model.active_layers = wrong
    assert model.active_layers == (0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_copies_follow_the_float32_model(model: Model, make_batch: MakeBatch, dtype: torch.dtype) -> None:
    low = copy.deepcopy(model).to(dtype)
    for lengths in (None, LENGTHS):
        batch = make_batch(lengths=lengths)
        used = batch.weights.bool()
        losses = low(batch)
        assert losses.dtype == torch.float32
        exact = model(batch)
        assert (losses[used] - exact[used]).abs().mean() < 0.03 * exact[used].abs().mean()
        wide, narrow = gradients(model, batch), gradients(low, batch)
        joined = []
        for key, gradient in wide.items():
            assert (gradient is None) == (narrow[key] is None), key
            if gradient is not None:
                assert narrow[key].isfinite().all(), key
                joined.append((gradient.flatten(), narrow[key].float().flatten()))
        one, other = (torch.cat(parts) for parts in zip(*joined, strict=True))
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.98


def test_gradient_checkpointing_changes_nothing(model: Model, make_batch: MakeBatch) -> None:
    for lengths in (None, LENGTHS):
        batch = make_batch(lengths=lengths)
        model.gradient_checkpointing = False
        losses, plain = model(batch), gradients(model, batch)
        model.gradient_checkpointing = True
        close(model(batch), losses)
        same_gradients(gradients(model, batch), plain)


def numbers_kept(model: Model, batch: Batch) -> int:
    """How many numbers a forward pass keeps for the backward one."""
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(kept)


def test_gradient_checkpointing_keeps_less_for_backward(name: str, make_batch: MakeBatch) -> None:
    model, batch = built(arch(name, layers=4)), make_batch()
    kept = {}
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        kept[checkpointing] = numbers_kept(model, batch)
    assert kept[True] < 0.8 * kept[False]


def documents(batch: Batch, starts: Tensor) -> Iterator[tuple[Tensor, Batch]]:
    """Each document as a sequence by itself, with the slots of the batch, (B, P) bool, that are its own."""
    for row in range(len(batch)):
        bounds = [*starts[row].nonzero()[:, 0].tolist(), batch.length]
        for first, end in itertools.pairwise(bounds):
            own = (batch.positions[row] >= first) & (batch.positions[row] < end)
            slots = torch.zeros_like(batch.weights, dtype=torch.bool)
            slots[row] = own
            alone = replace(
                batch.select(torch.tensor([row])),
                inputs=batch.inputs[row : row + 1, first:end],
                positions=batch.positions[row : row + 1, own] - first,
                labels=batch.labels[row : row + 1, own],
                weights=batch.weights[row : row + 1, own],
            )
            yield slots, alone


def test_documents_apart_are_what_they_are_alone(model: Model, make_batch: MakeBatch) -> None:
    batch = make_batch()
    starts = torch.zeros(4, 17, dtype=torch.bool)
    starts[:, 0] = True
    starts[0, [5, 9]] = True
    starts[1, [1, 2, 16]] = True
    starts[3, 8] = True
    apart = model(replace(batch, starts=starts))
    hidden = model.hidden(replace(batch, starts=starts))
    assert not torch.allclose(apart, model(batch), rtol=0, atol=1e-3)  # so that it matters here
    compared = torch.zeros_like(starts[:, :4])
    place = 0
    for slots, alone in documents(batch, starts):
        if alone.positions.numel():
            close(apart[slots], model(alone).flatten())
        compared |= slots
        row, length = place // 17, alone.length
        close(hidden[row, place % 17 : place % 17 + length], model.hidden(alone)[0])
        place += length
    assert compared.all()
    assert place == 4 * 17


def test_flops_grow_with_the_work(name: str) -> None:
    model = built(arch(name), 256)
    full = model.flops(128, 20, 2)
    assert 0 < model.flops(128, 20, 0) < model.flops(128, 20, 1) < full
    assert model.flops(64, 20, 2) < full < model.flops(256, 20, 2)
    assert model.flops(128, 10, 2) < full < model.flops(128, 40, 2)


def test_flops_are_those_of_the_products(name: str, model: Model, make_batch: MakeBatch) -> None:
    batch = make_batch(sequences=1)
    if hasattr(model, "attention"):
        model.attention = "math"  # whose products are counted one by one
    model.compute_plainly(["block_diagonal"])
    model(batch)  # what is worked out once for many passes is
    with FlopCounterMode(display=False) as counter:
        model(batch)
    seen = counter.get_total_flops() / model.flops(17, 4, 2)
    assert 1 - UNSEEN.get(name, 0.0) - 1e-2 <= seen <= 1 + 1e-2


def test_weights_survive_a_file(name: str, model: Model, make_batch: MakeBatch, tmp_path: Path) -> None:
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, tmp_path / "weights.safetensors")
    other = built(arch(name), seed=1)
    batch = make_batch(lengths=LENGTHS)
    assert not torch.equal(other(batch), model(batch))
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(other(batch), model(batch))


def test_a_seed_gives_the_same_weights(name: str) -> None:
    one, other, another = (built(arch(name), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], another[key]) for key in one)


def test_passes_without_dropout_draw_no_random_numbers(model: Model, make_batch: MakeBatch) -> None:
    batch = make_batch(lengths=LENGTHS)
    before = torch.get_rng_state()
    assert torch.equal(model(batch), model(batch))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "option", [pytest.param(f.stem, marks=() if f.stem in TINY else pytest.mark.full) for f in FILES]
)
def test_composes_from_the_command_line(option: str) -> None:
    words = ["arch.model_type=bert"] if option == "hf" else []
    config = compose([f"arch={option}", *words])
    assert config.arch.name == option
    assert config.train.batch_size == config.arch.batch_size
    assert config.data.vocab_size == config.arch.vocab_size
