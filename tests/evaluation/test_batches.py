"""Batches: every example once, an order that follows from its seed, little padding, nothing lost in gathering."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tasks import examples, task

from cramming.data.permutation import Permutation
from cramming.data.tokenizer import Tokenizer
from cramming.evaluation import batches
from cramming.evaluation.batches import Inputs
from cramming.evaluation.encoded import Cut, Encoded
from cramming.evaluation.encoding import in_memory

Split = Callable[..., Encoded]


def of_lengths(lengths: list[int], choices: int = 1) -> Encoded:
    """Texts of so many tokens, every token another number."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Encoded(
        tokens=np.arange(5, 5 + starts[-1], dtype=np.uint16),
        types=np.zeros(starts[-1], dtype=np.uint8),
        starts=starts,
        span_starts=np.zeros_like(starts),
        spans=np.zeros((0, 2), dtype=np.int32),
        labels=np.arange(len(lengths) // choices),
        choices=choices,
        keys=[],
        cut=Cut(),
        sha256="",
    )


def equal(one: Inputs, other: Inputs) -> bool:
    """Whether two batches agree in every bit."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Inputs)]
    return all(a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def numbers(parts: Iterator[Inputs]) -> list[list[int]]:
    return [part.examples.tolist() for part in parts]


@given(
    st.lists(st.integers(1, 30), min_size=0, max_size=300),
    st.integers(1, 17),
    st.integers(0, 3),
    st.booleans(),
)
def test_every_example_once_in_an_epoch(lengths: list[int], batch_size: int, epoch: int, drop_last: bool) -> None:
    encoded = of_lengths(lengths)
    order = numbers(batches.training(encoded, batch_size, 0, epoch, drop_last))
    assert len(order) == batches.count(len(lengths), batch_size, drop_last)
    assert all(len(batch) == batch_size for batch in order[:-1]), "only the last may be smaller"
    left = len(lengths) % batch_size if drop_last else 0
    seen = [example for batch in order for example in batch]
    assert len(seen) == len(set(seen)) == len(lengths) - left
    assert set(seen) <= set(range(len(lengths)))


@given(st.lists(st.integers(1, 60), max_size=200), st.integers(1, 400), st.sampled_from([1, 8]))
def test_evaluation_sees_every_example_once_and_keeps_to_its_size(lengths: list[int], size: int, multiple: int) -> None:
    seen: list[int] = []
    widths = []
    for inputs in batches.evaluation(of_lengths(lengths), size, multiple=multiple):
        assert inputs.tokens.numel() <= size or len(inputs) == 1
        assert inputs.tokens.shape[1] % multiple == 0
        widths.append(inputs.tokens.shape[1])
        seen += inputs.examples.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    assert widths == sorted(widths, reverse=True), "what needs most memory comes first"


def test_the_order_follows_from_seed_and_epoch(encoded_split: Split) -> None:
    encoded = encoded_split(count=300)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return numbers(batches.training(encoded, 8, seed, epoch))

    assert order(0, 0) == order(0, 0)
    others = [order(0, 1), order(1, 0), order(1, 1)]
    assert all(other != order(0, 0) for other in others)
    assert order(0, 1) != order(1, 0)


def test_neighbours_change_from_epoch_to_epoch(encoded_split: Split) -> None:
    """Were all examples sorted, equal lengths apart, the same ones would meet in every epoch."""
    encoded = encoded_split(count=250)

    def together(epoch: int) -> set[frozenset[int]]:
        order = numbers(batches.training(encoded, 16, 0, epoch))
        return {frozenset((a, b)) for batch in order for a in batch for b in batch if a < b}

    first, second = together(0), together(1)
    expected = len(first) * 15 / 249  # pairs that meet again if the order is random
    assert len(first & second) < 3 * expected


def test_batches_come_long_and_short_in_turn(encoded_split: Split) -> None:
    """A sorted pool comes in random order: lengths do not rise through the epoch."""
    encoded = encoded_split(count=1600)
    widths = [inputs.tokens.shape[1] for inputs in batches.training(encoded, 4, 0, 0)]
    later = np.corrcoef(np.arange(50), np.array(widths[:400]).reshape(-1, 50))[0, 1:]
    assert np.abs(later.mean()) < 0.2, "position within a pool and length have nothing to do with one another"


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 9), st.booleans())
def test_an_epoch_can_begin_at_any_batch(start: int, batch_size: int, drop_last: bool) -> None:
    encoded = of_lengths([1 + 7 * i % 13 for i in range(211)])
    whole = list(batches.training(encoded, batch_size, 5, 2, drop_last))
    rest = list(batches.training(encoded, batch_size, 5, 2, drop_last, start=start))
    assert len(rest) == max(0, len(whole) - start)
    assert all(equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_sorting_in_pools_saves_most_of_the_padding() -> None:
    """Lengths as downstream tasks have them: many short, few long."""
    lengths = [1 + (i * 7919 % 1000) ** 3 // 10**7 for i in range(4000)]
    encoded = of_lengths(lengths)
    real = sum(lengths)

    def padded(parts: Iterator[list[int]]) -> float:
        return sum(len(part) * max(lengths[example] for example in part) for part in parts) / real

    shuffled = Permutation(4000, "plain")(np.arange(4000)).reshape(-1, 16)
    assert padded(iter(shuffled.tolist())) > 2.5
    assert padded(iter(numbers(batches.training(encoded, 16, 0, 0)))) < 1.25


def naive(encoded: Encoded, chosen: list[int], multiple: int = 1) -> Inputs:
    """A batch written down token by token."""
    texts = [example * encoded.choices + choice for example in chosen for choice in range(encoded.choices)]
    rows = [encoded.tokens[encoded.starts[t] : encoded.starts[t + 1]].tolist() for t in texts]
    types = [encoded.types[encoded.starts[t] : encoded.starts[t + 1]].tolist() for t in texts]
    bounds = [(encoded.span_starts[t], encoded.span_starts[t + 1]) for t in texts]
    width = -(-max(map(len, rows)) // multiple) * multiple
    mask = torch.tensor([[column < len(row) for column in range(width)] for row in rows])
    spans, labels = None, None
    most = max(last - first for first, last in bounds)
    if len(encoded.spans):
        spans = torch.tensor(
            [encoded.spans[first:last].tolist() + [[-1, -1]] * (most - (last - first)) for first, last in bounds]
        )
    if encoded.labels is not None:
        labels = torch.from_numpy(np.stack([encoded.labels[example] for example in chosen]))
        if encoded.per_span:
            each = [encoded.labels[first:last].tolist() for first, last in bounds]
            labels = torch.tensor([row + [-100] * (most - len(row)) for row in each])
    return Inputs(
        tokens=torch.tensor([row + [encoded.pad_id] * (width - len(row)) for row in rows]),
        mask=None if mask.all() else mask,
        types=torch.tensor([row + [0] * (width - len(row)) for row in types]),
        spans=spans,
        labels=labels,
        examples=torch.tensor(chosen),
    )


@pytest.mark.parametrize("kind", ["classification", "regression", "multilabel", "tokens", "choice"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
def test_gathering_is_what_writing_it_down_gives(
    tokenizer: Tokenizer, kind: str, labelled: bool, multiple: int
) -> None:
    made = examples(kind, 30, labelled=labelled)  # type: ignore[arg-type]
    encoded = in_memory(task(kind), made, tokenizer, max_length=14, spans="pooled")  # type: ignore[arg-type]
    encoded = replace(encoded, pad_id=4)
    for chosen in ([3], [0, 29, 7, 7], list(range(30))):
        assert equal(batches.gather(encoded, np.array(chosen), multiple), naive(encoded, chosen, multiple))


def test_nothing_is_masked_where_nothing_is_padded() -> None:
    encoded = of_lengths([5, 5, 3, 5])
    assert batches.gather(encoded, np.array([0, 3, 1])).mask is None
    padded = batches.gather(encoded, np.array([0, 2]))
    assert padded.mask is not None
    assert padded.mask.sum(1).tolist() == [5, 3]
    assert batches.gather(encoded, np.array([0, 3]), multiple=8).mask is not None


def test_choices_of_an_example_stay_together() -> None:
    encoded = of_lengths([1 + i * 5 % 9 for i in range(3 * 20)], choices=3)
    for inputs in [*batches.training(encoded, 4, 0, 0), *batches.evaluation(encoded, 60)]:
        assert inputs.choices == 3
        first = encoded.tokens[encoded.starts[:-1]].astype(np.int64)  # unique to each text
        texts = [3 * example + choice for example in inputs.examples.tolist() for choice in range(3)]
        assert inputs.tokens[:, 0].tolist() == first[texts].tolist()


@pytest.mark.parametrize("kind", ["classification", "tokens", "choice"])
def test_parts_make_up_the_whole(encoded_split: Split, kind: str) -> None:
    whole = next(batches.training(encoded_split(kind, 40), 10, 0, 0))
    assert next(whole.split(None)) is whole
    parts = list(whole.split(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    for field in fields(Inputs):
        values = [getattr(part, field.name) for part in parts]
        expected = getattr(whole, field.name)
        assert (values == [None] * 3) if expected is None else torch.equal(torch.cat(values), expected)
    assert equal(whole.to("cpu"), whole)
