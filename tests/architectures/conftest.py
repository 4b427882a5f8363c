"""Small models and batches for the tests of architectures."""

from collections.abc import Callable

import pytest
import torch

from cramming.architectures import BertConfig
from cramming.architectures.bert import Bert
from cramming.batch import Batch

VOCABULARY = 97


@pytest.fixture
def config() -> BertConfig:
    """Three layers, sizes that are no powers of two."""
    return BertConfig(layers=3, hidden=24, heads=3, intermediate=40, max_positions=20)


@pytest.fixture
def bert(config: BertConfig) -> Bert:
    """A model whose weights are large enough that every part of it matters to the output."""
    torch.manual_seed(0)
    model = config.build(VOCABULARY, 20)
    assert isinstance(model, Bert)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A function that makes random batches, padded where ``lengths`` are given (one slot in five carries weight)."""

    def make(sequences: int = 4, length: int = 17, slots: int = 4, lengths: list[int] | None = None) -> Batch:
        generator = torch.Generator().manual_seed(sequences * 1000 + length)
        ids = torch.randint(1, VOCABULARY, (sequences, length), generator=generator)
        inputs = torch.where(torch.rand(ids.shape, generator=generator) < 0.1, 4, ids)
        positions = torch.zeros(sequences, slots, dtype=torch.int64)
        weights = torch.zeros(sequences, slots)
        for row in range(sequences):
            tokens = length if lengths is None else lengths[row]
            used = slots if lengths is None else min(slots, max(1, tokens // 5))
            positions[row, :used] = torch.randperm(tokens, generator=generator)[:used].sort().values
            weights[row, :used] = 1.0
        if lengths is not None:
            inputs = inputs.where(torch.arange(length) < torch.tensor(lengths)[:, None], 0)
        return Batch(
            ids=torch.arange(sequences),
            epochs=torch.zeros(sequences, dtype=torch.int64),
            inputs=inputs,
            positions=positions,
            labels=ids.gather(1, positions),
            weights=weights,
            lengths=None if lengths is None else torch.tensor(lengths),
            normalizer=weights.sum(),
        )

    return make
