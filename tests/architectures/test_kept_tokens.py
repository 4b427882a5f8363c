"""Layers that run on part of the tokens: as if the others could not be seen, and they pass by as they are.

The definition is written here with whole layers: all tokens are computed, those dropped are attended to by nothing, and
what a layer makes of them is thrown away.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cramming.architectures.encoder import MaskedLanguageModel
from cramming.architectures.layers.unpadding import Layout, Queries
from cramming.batch import Batch
from tests.architectures.families import TINY, VOCABULARY, arch, built

MakeBatch = Callable[..., Batch]
LAYERS, LENGTH, KEPT = 5, 20, 9
DEPTH = (0.4, 0.8)  # layers 2 and 3 of 5
OPTIONS: dict[str, list[dict[str, object]]] = {  # positions in every way a family can have them
    "crammed_tiny": [{}, {"rotary": True, "position": "none"}],
    "modern_tiny": [{}, {"window": 2}, {"window": 8}],
}
CANNOT = ("albert_tiny", "deberta_tiny", "m2_tiny")
MODELS = [(name, options) for name in TINY if name not in CANNOT for options in OPTIONS.get(name, [{}])]


def model_of(name: str, options: dict[str, object]) -> MaskedLanguageModel:
    model = built(arch(name, layers=LAYERS, **options), LENGTH)
    assert isinstance(model, MaskedLanguageModel)
    return model


def keep(batch: Batch, kept: int = KEPT, seed: int = 3) -> Batch:
    """Random positions of each sequence, its padding last."""
    random = torch.rand(batch.inputs.shape, generator=torch.Generator().manual_seed(seed))
    if batch.lengths is not None:
        random += (torch.arange(batch.length) >= batch.lengths[:, None]) * 2.0
    return replace(batch, kept=random.argsort(1)[:, :kept].sort(1).values, kept_depth=DEPTH)


def by_definition(model: MaskedLanguageModel, batch: Batch) -> Tensor:
    """Losses (B, P) with nothing left out of any layer."""
    tokens = torch.ones(batch.inputs.shape, dtype=torch.bool)
    if batch.lengths is not None:
        tokens = torch.arange(batch.length) < batch.lengths[:, None]
    assert batch.kept is not None
    kept = torch.zeros_like(tokens).scatter_(1, batch.kept, True) & tokens
    whole, middle = (Layout(*batch.inputs.shape, mask=mask) for mask in (tokens, kept))
    x, decoder = model.embeddings(batch.inputs, whole, None)
    for layer in range(LAYERS):
        if layer in (2, 3):
            x = torch.where(kept.flatten()[:, None], model.blocks[layer](x, middle, None), x)
        else:
            x = model.blocks[layer](x, whole, None)
    x = Queries(whole.rows_of(batch.positions)).select(x if model.final_norm is None else model.final_norm(x))
    return model.head.losses(x, decoder, batch.labels.flatten()).view(batch.labels.shape)


def gradients(model: MaskedLanguageModel, losses: Tensor, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    ((losses * batch.weights).sum() / batch.normalizer).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lengths", [None, [20, 12, 5, 9]])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_it_is_the_definition(
    name: str, options: dict[str, object], lengths: list[int] | None, make_batch: MakeBatch
) -> None:
    """Losses and every gradient; a sequence of fewer tokens than are kept keeps all it has."""
    model = model_of(name, options).double()
    batch = keep(make_batch(length=LENGTH, lengths=lengths))
    used = batch.weights.bool()
    losses, expected = model(batch), by_definition(model, batch)
    torch.testing.assert_close(losses[used], expected[used], rtol=1e-9, atol=1e-9, check_dtype=False)
    assert not torch.allclose(losses[used], model(replace(batch, kept=None))[used], rtol=1e-3)
    one, other = gradients(model, model(batch), batch), gradients(model, by_definition(model, batch), batch)
    assert one.keys() == other.keys()
    for key, gradient in one.items():
        torch.testing.assert_close(gradient, other[key], rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_keeping_every_token_changes_nothing(name: str, options: dict[str, object], make_batch: MakeBatch) -> None:
    model, batch = model_of(name, options).double(), make_batch(length=LENGTH)
    torch.testing.assert_close(model(keep(batch, LENGTH)), model(batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_documents_apart_are_thinned_as_sequences_of_their_own(
    name: str, options: dict[str, object], make_batch: MakeBatch
) -> None:
    """One row of documents of 7 and 13 tokens is a batch of two padded sequences."""
    model = model_of(name, options).double()
    batch = keep(make_batch(sequences=1, length=LENGTH))
    assert batch.kept is not None
    starts = torch.zeros(1, LENGTH, dtype=torch.bool)
    starts[0, [0, 7]] = True
    row = replace(batch, starts=starts)
    inputs = torch.zeros(2, LENGTH, dtype=torch.int64)
    inputs[0, :7], inputs[1, :13] = batch.inputs[0, :7], batch.inputs[0, 7:]
    kept = [[*(p for p in batch.kept[0].tolist() if p < 7)], [p - 7 for p in batch.kept[0].tolist() if p >= 7]]
    assert all(kept)
    filled = torch.tensor(
        [sorted([*mine, *range(n, n + KEPT - len(mine))]) for mine, n in zip(kept, (7, 13), strict=True)]
    )
    second = (batch.positions[0] >= 7).long()
    positions = batch.positions.repeat(2, 1) - torch.tensor([[0], [7]])
    places = positions.clamp(0, LENGTH - 1)
    weights = torch.stack([1.0 - second, second.double()]).float() * batch.weights
    apart = replace(
        batch, ids=torch.arange(2), epochs=torch.zeros(2, dtype=torch.int64), inputs=inputs, positions=places,
        labels=batch.labels.repeat(2, 1), weights=weights, lengths=torch.tensor([7, 13]), kept=filled,
    )  # fmt: skip
    losses = model(apart)
    expected = torch.where(second.bool(), losses[1], losses[0])
    torch.testing.assert_close(model(row)[0], expected, rtol=1e-9, atol=1e-9)


def test_fewer_active_layers_thin_the_same_share(make_batch: MakeBatch) -> None:
    model, batch = model_of("bert_tiny", {}), keep(make_batch(length=LENGTH))
    for active, short in (((0, 1, 2, 3, 4), 2), ((0, 2, 4), 1), ((1, 3), 0), ((2,), 0), ((), 0)):
        model.active_layers = active
        work = model.work("forward", batch)
        assert (work.layers, work.short_layers, work.short_length) == (len(active), short, KEPT if short else 0)
        model(batch)


def test_recomputing_in_backward_changes_nothing(make_batch: MakeBatch) -> None:
    model, batch = model_of("mosaic_tiny", {}), keep(make_batch(length=LENGTH))
    plain = gradients(model, model(batch), batch)
    model.gradient_checkpointing = True
    for key, gradient in gradients(model, model(batch), batch).items():
        torch.testing.assert_close(gradient, plain[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", CANNOT)
def test_families_that_cannot_say_so(name: str) -> None:
    assert not arch(name).build(VOCABULARY, LENGTH).drops_tokens
