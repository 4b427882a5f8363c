"""The stream: an order without an array, a position of two integers, a split that no seed moves."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import LENGTH, same, store, stream

from cramming.batch import Batch
from cramming.data.permutation import Permutation
from cramming.data.stream import Split, Stream, shuffled, slots

unhurried = settings(deadline=None, derandomize=True, max_examples=60)


@unhurried
@given(n=st.integers(1, 3000), key=st.integers())
def test_a_permutation_is_one_to_one(n: int, key: int) -> None:
    assert np.array_equal(np.sort(Permutation(n, key)(np.arange(n))), np.arange(n))


@pytest.mark.parametrize("n", [2**16, 2**31 - 1, 2**31 + 1, 10**12])
def test_a_permutation_of_any_size_costs_nothing(n: int) -> None:
    """Different indices give different items in range, without an array of n."""
    indices = np.unique(np.linspace(0, n - 1, 20_000).astype(np.int64))
    items = Permutation(n, "key")(indices)
    assert len(np.unique(items)) == len(indices)
    assert items.min() >= 0
    assert items.max() < n


def test_a_permutation_is_the_same_however_it_is_asked() -> None:
    permutation = Permutation(1000, 3)
    at_once = permutation(np.arange(1000))
    assert [int(permutation(np.array([i]))[0]) for i in range(1000)] == at_once.tolist()


def test_a_permutation_follows_its_key_and_looks_like_chance() -> None:
    """Different keys agree at about one index, neighbours do not stay neighbours, and no trend is left."""
    orders = [Permutation(5000, *key)(np.arange(5000)) for key in ((0, 0), (0, 1), (1, 0), ("heldout",))]
    for number, order in enumerate(orders):
        assert abs(np.corrcoef(np.arange(5000), order)[0, 1]) < 5 / np.sqrt(5000)
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(5000)
        assert (np.abs(np.diff(order)) == 1).sum() < 15  # 2 are expected
        for other in orders[:number]:
            assert (order == other).sum() < 10  # 1 is expected


@unhurried
@given(rows=st.integers(2, 500), fraction=st.floats(0.001, 0.99))
def test_every_row_trains_or_is_held_out(rows: int, fraction: float) -> None:
    """Never both; at least one is held out."""
    split = Split(rows, fraction)
    train, heldout = split.train(np.arange(split.train_rows)), split.heldout(np.arange(split.heldout_rows))
    assert len(heldout) == max(1, round(rows * fraction))
    assert sorted([*train.tolist(), *heldout.tolist()]) == list(range(rows))


def test_validation_starts_alike_whatever_the_fraction_held_out() -> None:
    small, large = Split(10_000, 0.005), Split(10_000, 0.2)
    assert np.array_equal(small.heldout(np.arange(50)), large.heldout(np.arange(50)))


@unhurried
@given(rows=st.integers(30, 4000), fraction=st.floats(0.1, 0.9))
def test_what_is_held_out_can_be_a_corpus_of_its_own(rows: int, fraction: float) -> None:
    """It shares no row with what others train on; a tenth of it is held out in turn, the first that all validate on."""
    split = Split(rows, fraction)
    inner = split.of_heldout()
    trained, validated = inner.train(np.arange(inner.train_rows)), inner.heldout(np.arange(inner.heldout_rows))
    held_out = split.heldout(np.arange(split.heldout_rows))
    assert np.array_equal(np.sort(np.concatenate([trained, validated])), np.sort(held_out))
    assert np.array_equal(validated, held_out[: max(1, split.heldout_rows // 10)])
    assert inner.name != split.name, "one must not be taken for the other"


def test_of_much_that_is_held_out_only_what_all_validate_on_is_held_out_in_turn() -> None:
    inner = Split(10**9, 0.2).of_heldout()
    assert (inner.heldout_rows, inner.train_rows) == (10_000, 200_000_000 - 10_000)


def test_an_epoch_visits_every_training_row_once_and_the_next_in_another_order() -> None:
    source = stream()
    n = source.split.train_rows
    first, second = source.draw(n), source.draw(n)
    training = sorted(source.split.train(np.arange(n)).tolist())
    assert sorted(first.ids.tolist()) == training
    assert sorted(second.ids.tolist()) == training
    assert first.ids.tolist() != second.ids.tolist()
    assert first.epochs.unique().tolist() == [0]
    assert second.epochs.unique().tolist() == [1]


def test_an_epoch_s_order_is_the_same_however_it_is_asked() -> None:
    """Rows are worked out many at a time; single ones, backwards, far apart and out of order are the same."""
    split = Split(70_001, 0.1)
    order, known = Permutation(split.train_rows, 3, 1), shuffled(split, 3)(1)
    whole = split.train(order(np.arange(split.train_rows)))
    assert sorted(whole) == sorted(set(whole))
    asked = [range(5), range(3, 9), range(40_000, 40_512), range(7), [62_999, 62_998], range(0, 63_000, 7), [16_384]]
    for places in map(np.array, [*asked, np.arange(split.train_rows), [62_990, 62_980, 62_999], [16_000, 33_000]]):
        assert np.array_equal(known(places), whole[places])


def test_the_seed_changes_order_and_masks_but_not_the_split() -> None:
    one, other = stream(seed=0), stream(seed=1)
    n = one.split.train_rows
    first, second = one.draw(n), other.draw(n)
    assert first.ids.tolist() != second.ids.tolist()
    assert sorted(first.ids.tolist()) == sorted(second.ids.tolist())
    by_id, by_other_id = first.select(first.ids.argsort()), second.select(second.ids.argsort())
    assert not torch.equal(by_id.inputs, by_other_id.inputs)


def test_validation_is_the_same_for_every_seed_and_moves_nothing() -> None:
    one, other = stream(seed=0), stream(seed=7)
    other.draw(150)
    before = other.state_dict()
    batches = [list(source.heldout(5, mask_rate=0.15, mask_seed=0, limit=10_000)) for source in (one, other)]
    assert same(batches[0], batches[1])
    assert [len(batch) for batch in batches[0]] == [5, 5, 2]
    assert other.state_dict() == before
    trained = set(one.draw(one.split.train_rows).ids.tolist())
    assert not trained & set(Batch.concatenate(batches[0]).ids.tolist())


def test_validation_is_the_same_in_batches_of_any_size_and_ends_at_its_limit() -> None:
    pieces = [
        Batch.concatenate(list(stream().heldout(size, mask_rate=0.15, mask_seed=0, limit=10))) for size in (3, 10)
    ]
    assert same(pieces[0], pieces[1])
    assert len(pieces[0]) == 10


@unhurried
@given(before=st.integers(1, 400), after=st.integers(1, 150), layout=st.sampled_from(["packed", "document"]))
def test_a_stream_goes_on_behind_what_was_consumed(before: int, after: int, layout: str) -> None:
    """Its state is two integers that fit in JSON; a new stream that takes them up gives exactly what would follow."""
    source, resumed = stream(store(layout)), stream(store(layout))
    source.draw(before)
    state = json.loads(json.dumps(source.state_dict()))
    resumed.load_state_dict(state)
    assert list(state) == ["epoch", "offset"]
    assert state["epoch"] * source.split.train_rows + state["offset"] == before
    assert same(resumed.draw(after), source.draw(after))


@unhurried
@given(pieces=st.lists(st.integers(1, 130), min_size=1, max_size=5))
def test_pieces_drawn_one_by_one_are_what_one_draw_gives(pieces: list[int]) -> None:
    one_by_one, at_once = stream(), stream()
    parts = [one_by_one.draw(n) for n in pieces]
    assert same(Batch.concatenate(parts), at_once.draw(sum(pieces)))
    assert one_by_one.state_dict() == at_once.state_dict()


def test_a_draw_across_the_border_carries_both_epochs() -> None:
    source = stream()
    n = source.split.train_rows
    batch = source.draw(2 * n + 3)
    assert batch.epochs.tolist() == [0] * n + [1] * n + [2] * 3
    assert source.state_dict() == {"epoch": 2, "offset": 3}
    first, second = (batch.select((batch.ids == batch.ids[0]) & (batch.epochs == epoch)) for epoch in (0, 1))
    assert first.positions.tolist() != second.positions.tolist(), "the same row has another mask in the next epoch"


def test_the_mask_rate_is_fixed_at_the_draw_and_travels_with_the_sequence() -> None:
    """A schedule of the rate moves the weights; the number of slots, and so every shape, stays."""
    now = [0.5]
    source = stream(rate=lambda: now[0])
    early = source.draw(4)
    now[0] = 0.25
    late = source.draw(4)
    joined = Batch.concatenate([late, early])
    assert early.weights.sum(1).tolist() == [12] * 4
    assert late.weights.sum(1).tolist() == [6] * 4
    assert joined.weights.sum(1).tolist() == [6] * 4 + [12] * 4
    assert early.weights.shape[1] == late.weights.shape[1] == slots(LENGTH, 0.5)


def test_documents_bring_their_lengths_and_packed_rows_none() -> None:
    documents: Stream = stream(store("document"))
    batch = documents.draw(6)
    _, lengths = documents.store.read(batch.ids.numpy())
    assert batch.lengths is not None
    assert batch.lengths.tolist() == list(lengths)  # type: ignore[arg-type]
    assert stream().draw(6).lengths is None
