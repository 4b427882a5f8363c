"""A rank's share of a batch, without any process: shares of R ranks, put together, are the batch.

Ranks are pretended one after the other; what they would tell each other is put together by hand as ``Ranks.gathered``
does it, row i of rank r at place i R + r.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import batch_of, same, stream
from torch import Tensor

from cramming.batch import _PER_SEQUENCE, Batch
from cramming.parallel import ranks
from cramming.parallel.ranks import Ranks

unhurried = settings(max_examples=40)
sizes, worlds = st.integers(1, 13), st.integers(1, 6)
layouts = st.sampled_from(["packed", "document"])


@dataclass(frozen=True)
class Pretended(Ranks):
    """A rank whose gathering was prepared: others' rows are known beforehand."""

    told: Callable[[Tensor], Tensor] | None = None

    def gathered(self, rows: Tensor) -> Tensor:
        assert self.told is not None
        return self.told(rows)

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor


@contextmanager
def pretended(rank: int, world: int, told: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
    with patch.object(ranks, "_HERE", [Pretended(rank, world, rank, world, told)]):
        yield


def shares(batch: Batch, world: int) -> list[Batch]:
    """Each rank's share, ready to be looked at from outside."""
    found = []
    for rank in range(world):
        with pretended(rank, world):
            found.append(batch.shared())
    return found


def together(parts: list[Batch], name: str) -> Tensor | None:
    """One field of all ranks, in the order of the batch, filling sequences at its end."""
    values = [getattr(part, name) for part in parts]
    return None if values[0] is None else torch.stack(values, dim=1).flatten(0, 1)


def assert_together(parts: list[Batch], batch: Batch) -> None:
    """What ranks hold is the batch, and what fills it up weighs nothing."""
    for name in _PER_SEQUENCE:
        found, expected = together(parts, name), getattr(batch, name)
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found[: len(batch)], expected)
    weights = together(parts, "weights")
    assert weights is not None
    assert not weights[len(batch) :].any()
    assert len({len(part) for part in parts}) == 1, "equal work"
    assert all(part.sequences == len(batch) for part in parts)
    assert all(torch.equal(part.normalizer, batch.normalizer) for part in parts)


@unhurried
@given(n=sizes, world=worlds, layout=layouts)
def test_shares_put_together_are_the_batch(n: int, world: int, layout: str) -> None:
    batch = batch_of(n, layout)
    parts = shares(batch, world)
    if world == 1:
        assert parts[0] is batch
        return
    assert_together(parts, batch)
    assert len(parts[0]) == -(-n // world), "and no more of it than must be"


@unhurried
@given(n=sizes, world=st.integers(2, 6), layout=layouts)
def test_a_share_becomes_whole_again(n: int, world: int, layout: str) -> None:
    """``whole``, ``select`` and ``concatenate``, on every rank, with what the others would tell it."""
    batch = batch_of(n, layout)
    parts = shares(batch, world)
    for rank, part in enumerate(parts):

        def told(rows: Tensor, part: Batch = part) -> Tensor:
            name = next(name for name in _PER_SEQUENCE if getattr(part, name) is rows)
            found = together(parts, name)
            assert found is not None
            return found

        with pretended(rank, world, told):
            assert same(part.whole(), batch)
            rows = torch.arange(0, n, 2)
            assert same(part.select(rows), batch.select(rows))
            assert same(Batch.concatenate([part, part]), Batch.concatenate([batch, batch]))
            assert part.shared() is part


@unhurried
@given(n=sizes, world=st.integers(2, 6), each=st.integers(1, 3), size=st.integers(1, 4), layout=layouts)
def test_groups_are_the_same_sequences_on_any_number_of_ranks(
    n: int, world: int, each: int, size: int, layout: str
) -> None:
    """Draw groups of which R divides the size, cut into microbatches of any."""
    batch, group = batch_of(n, layout), each * world
    expected = [part.ids.tolist() for part in batch.groups(group)]
    found = []
    for rank, part in enumerate(shares(batch, world)):
        with pretended(rank, world):
            groups = list(part.groups(group))
            places = [one.places.tolist() for one in groups]
            cut = [list(one.split(size)) for one in groups]
        assert [one.index for one in groups] == list(range(len(expected)))
        assert [one.sequences for one in groups] == [len(ids) for ids in expected]
        assert all(place[0] == rank for place in places)
        ends = [(one.ends_group, one.ends_batch) for many in cut for one in many]
        assert sum(group_ends for group_ends, _ in ends) == len(groups)
        assert [batch_ends for _, batch_ends in ends] == [False] * (len(ends) - 1) + [True]
        assert [sum(one.sequences for one in many) for many in cut] == [len(ids) for ids in expected]
        found.append(groups)
    for number, ids in enumerate(expected):
        here = [groups[number] for groups in found]
        known = together(here, "ids")
        assert known is not None
        assert known[: len(ids)].tolist() == ids
    weights = sum(float(one.weights.sum()) for groups in found for one in groups)
    assert weights == float(batch.normalizer)


@unhurried
@given(n=sizes, world=st.integers(2, 6), size=st.integers(1, 5))
def test_parts_of_shares_put_together_are_runs_of_the_batch(n: int, world: int, size: int) -> None:
    """The k-th microbatches of all ranks are consecutive sequences, so that gathering them keeps the order."""
    batch = batch_of(n)
    cut = []
    for rank, part in enumerate(shares(batch, world)):
        with pretended(rank, world):
            cut.append(list(part.split(size)))
    order: list[int] = []
    for number in range(len(cut[0])):
        here = [parts[number] for parts in cut]
        assert len({(part.sequences, len(part)) for part in here}) == 1
        ids = together(here, "ids")
        assert ids is not None
        order += ids[: here[0].sequences].tolist()
    assert order == batch.ids.tolist()


@unhurried
@given(sizes_drawn=st.lists(st.integers(1, 70), min_size=1, max_size=4), world=st.integers(2, 6))
def test_ranks_draw_their_shares_of_what_one_draws(sizes_drawn: list[int], world: int) -> None:
    """Beyond the end of an epoch too; they stand at one place of the stream afterwards."""
    alone = stream()
    drawn = [alone.draw(n) for n in sizes_drawn]
    found = []
    for rank in range(world):
        with pretended(rank, world):
            source = stream()
            found.append([source.draw(n) for n in sizes_drawn])
            assert source.state_dict() == alone.state_dict()
    for number, batch in enumerate(drawn):
        parts = [shares[number] for shares in found]
        for name in ("ids", "epochs", "inputs", "positions", "labels"):
            rows = together(parts, name)
            assert rows is not None
            assert torch.equal(rows[: len(batch)], getattr(batch, name))
        assert sum(float(part.normalizer) for part in parts) == float(batch.normalizer), "each counts its own"
