"""Cutting a batch: order is kept, and parts know the whole they count towards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import batch_of, same

from cramming.batch import Batch

unhurried = settings(deadline=None, derandomize=True, max_examples=40)
layouts = st.sampled_from(["packed", "document"])


@unhurried
@given(n=st.integers(1, 12), size=st.integers(1, 14), layout=layouts)
def test_parts_follow_one_another_and_keep_the_normalizer_of_the_whole(n: int, size: int, layout: str) -> None:
    """So the sum of their losses is the mean over the batch, however it is cut."""
    batch = batch_of(n, layout)
    parts = list(batch.groups(size))
    assert [len(part) for part in parts] == [min(size, n - start) for start in range(0, n, size)]
    assert all(torch.equal(part.normalizer, batch.weights.sum()) for part in parts)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert same(Batch.concatenate(parts), batch)


def test_none_means_the_whole() -> None:
    batch = batch_of(5)
    assert list(batch.split(None)) == [batch]


def test_groups_are_numbered_and_their_parts_still_belong_to_the_whole() -> None:
    batch = batch_of(12, "document")
    groups = list(batch.groups(4))
    assert [group.index for group in groups] == [0, 1, 2]
    microbatches = [part for group in groups for part in group.split(2)]
    assert [part.index for part in microbatches] == [0, 0, 1, 1, 2, 2]
    assert same(torch.cat([part.ids for part in microbatches]), batch.ids)
    assert all(torch.equal(part.normalizer, batch.normalizer) for part in microbatches)


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_selected_sequences_are_a_batch_of_their_own(layout: str) -> None:
    """By mask in the order they had, by number in the order asked for; normalized by what they predict themselves."""
    batch = batch_of(6, layout)
    by_mask = batch.select(torch.tensor([True, False, True, False, False, True]))
    by_number = batch.select(torch.tensor([5, 0, 2]))
    assert same(by_mask.ids, batch.ids[[0, 2, 5]])
    assert same(by_number.ids, batch.ids[[5, 0, 2]])
    assert same(by_number.select(torch.tensor([1, 2, 0])), by_mask)
    for part in (by_mask, by_number):
        assert part.normalizer == part.weights.sum()
        assert part.normalizer < batch.normalizer
    _, second = batch.groups(3)
    assert second.select(torch.tensor([0])).index == 0, "no longer a group of the batch it was taken from"


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_a_joined_batch_is_normalized_anew(layout: str) -> None:
    """Also when its parts were cut from larger batches: then it counts only what it has."""
    batch = batch_of(9, layout)
    first, second, third = batch.split(3)
    joined = Batch.concatenate([third, first])
    assert same(joined, batch.select(torch.tensor([6, 7, 8, 0, 1, 2])))
    assert joined.index == 0
    assert second.normalizer == batch.normalizer


def test_documents_of_one_batch_predict_different_numbers_of_tokens() -> None:
    """What the laws of accumulation are tested on: the normalizers of equal parts differ."""
    counts = [float(part.weights.sum()) for part in batch_of(8, "document").split(1)]
    assert len(set(counts)) >= 4
    assert len({float(part.weights.sum()) for part in batch_of(8, "document").split(4)}) == 2


def test_moving_a_batch_keeps_it() -> None:
    batch = next(batch_of(6, "document").split(2))
    assert same(batch.to(torch.device("cpu")), batch)
