"""Which rank writes and reads what: every row once, equal work, on any number of ranks, from shapes alone."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming.saving.layout import (
    SMALL,
    Outline,
    Rows,
    chunk,
    from_json,
    plan,
    reading_plan,
    to_json,
    written_by,
)

SHAPES = st.lists(st.integers(0, 200), max_size=3).map(tuple)
OUTLINES = st.builds(
    lambda shape, dtype, sharded: Outline(shape, dtype, sharded and bool(shape)),
    SHAPES, st.sampled_from(["F32", "BF16", "I64", "BOOL"]), st.booleans(),
)  # fmt: skip
TENSORS = st.dictionaries(st.text("ab.", min_size=1, max_size=6), OUTLINES, max_size=8)


def bert_large() -> dict[str, Outline]:
    """Weights and two moments of 24 layers, as FSDP shares them, and a little that every rank has."""
    shapes = [(1024, 1024), (4096, 1024), (1024, 4096), (1024, 1024), (1024,), (4096,)] * 24 + [(30522, 1024)]
    tensors = {f"{kind}.{i}": Outline(shape, sharded=True) for kind in "wmv" for i, shape in enumerate(shapes)}
    return tensors | {"random": Outline((5056,), "U8"), **{f"step.{i}": Outline(()) for i in range(len(shapes))}}


@settings(max_examples=300, deadline=None)
@given(TENSORS, st.integers(1, 9))
def test_every_row_is_written_once(tensors: dict[str, Outline], world: int) -> None:
    for name, entry in plan(tensors, world).items():
        entry.check(world)
        parts = [part.get(name) for part in (written_by(tensors, world, rank) for rank in range(world))]
        rows = [row for part in parts if part for row in range(part.start, part.end)]
        assert rows == list(range(tensors[name].rows if tensors[name].bytes else 0))


@settings(max_examples=300, deadline=None)
@given(TENSORS, st.integers(1, 9), st.integers(1, 9))
def test_readers_find_the_rows_they_want(tensors: dict[str, Outline], writers: int, readers: int) -> None:
    index = plan(tensors, writers)
    files = [written_by(tensors, writers, rank) for rank in range(writers)]
    for rank in range(readers):
        for name, (wanted, slices) in reading_plan(index, readers, rank).items():
            outline = tensors[name]
            assert wanted == (chunk(outline.rows, readers, rank) if outline.sharded else Rows(0, outline.rows))
            found = []
            for one in slices:
                assert one.at == len(found), "in order and without a gap"
                piece = files[one.rank][name]
                assert one.rows.end <= piece.length
                found += range(piece.start + one.rows.start, piece.start + one.rows.end)
            assert found == (list(range(wanted.start, wanted.end)) if outline.bytes else [])


@settings(max_examples=200, deadline=None)
@given(TENSORS, st.integers(1, 9))
def test_work_is_equal_up_to_a_row_of_each_shared_tensor(tensors: dict[str, Outline], world: int) -> None:
    total = sum(outline.bytes for outline in tensors.values())
    slack = sum(outline.row_bytes for outline in tensors.values() if outline.sharded)
    slack += max([SMALL, *(outline.row_bytes for outline in tensors.values())])
    for rank in range(world):
        own = sum(rows.length * tensors[name].row_bytes for name, rows in written_by(tensors, world, rank).items())
        assert own <= total / world + slack


@given(st.integers(0, 100), st.integers(1, 12))
def test_shared_rows_are_those_of_torch_chunk(rows: int, world: int) -> None:
    parts = [part.tolist() for part in torch.arange(rows).chunk(world)] if rows else []
    ours = [chunk(rows, world, rank) for rank in range(world)]
    assert [list(range(part.start, part.end)) for part in ours if part.length] == parts


def test_an_index_is_json_and_is_checked_when_it_is_read() -> None:
    tensors = {"a": Outline((10, 4), sharded=True), "b": Outline((), "I64"), "empty": Outline((0, 3))}
    said = json.loads(json.dumps(to_json(plan(tensors, 4), 4)))
    assert from_json(said) == (plan(tensors, 4), 4)
    for pieces in ([[0, 0, 3, 3]], [[0, 0, 3, 3], [3, 8, 2, 1]], [[0, 0, 10, 2]], [[2, 0, 5, 3]], [[-1, 0, 10, 1]]):
        broken = {**said, "tensors": {**said["tensors"], "a": {**said["tensors"]["a"], "pieces": pieces}}}
        with pytest.raises(ValueError, match="do not make up"):
            from_json(broken)


def test_a_thousand_ranks_plan_in_little_memory() -> None:
    """The index grows with the tensors, not with the ranks; any rank on any other number finds its slices in it."""
    tensors = bert_large()
    index = plan(tensors, 1024)
    assert sum(len(entry.runs) for entry in index.values()) <= 2 * len(tensors)
    assert len(json.dumps(to_json(index, 1024))) < 200 * len(tensors)
    shared = {name for name, outline in tensors.items() if outline.sharded}
    total = sum(tensors[name].bytes for name in shared)
    row = sum(tensors[name].row_bytes for name in shared)
    for world in (1024, 1000, 64):
        for rank in {0, 1, world // 2, world - 1}:
            slices = [(name, s) for name, (_, found) in reading_plan(index, world, rank).items() for s in found]
            assert len(slices) <= len(tensors) * (1024 / world + 2)
            assert sum(s.rows.length * tensors[n].row_bytes for n, s in slices if n in shared) <= total / world + row
