"""Laws of layouts: every way out of a grid and back, with padding, holes and documents anywhere."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramming.architectures.layers.unpadding import Groups, Layout, Queries

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9))


def bits(data: st.DataObject, shape: tuple[int, int]) -> Tensor:
    """Any grid of booleans."""
    flat = data.draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return torch.tensor(flat).view(shape)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, Tensor, Tensor]:
    """A layout, which cells of the batch hold tokens, and which of these begin a document."""
    shape = draw(SIZES)
    data = draw(st.data())
    inputs = torch.zeros(shape, dtype=torch.int64)
    kind = draw(st.sampled_from(["full", "lengths", "mask", "documents", "documents and lengths"]))
    lengths = torch.tensor(draw(st.lists(st.integers(1, shape[1]), min_size=shape[0], max_size=shape[0])))
    mask = torch.arange(shape[1]) < lengths[:, None] if "lengths" in kind else torch.ones(shape, dtype=torch.bool)
    starts = torch.zeros(shape, dtype=torch.bool)
    if kind == "mask":
        mask = bits(data, shape)
        mask[0, draw(st.integers(0, shape[1] - 1))] = True
    if "documents" in kind:
        starts = bits(data, shape)
    layout = Layout.of(
        inputs,
        mask if kind == "mask" else None,
        lengths if "lengths" in kind else None,
        starts if "documents" in kind else None,
    )
    starts[:, 0] = True
    return layout, mask, starts


def grid_of(mask: Tensor) -> Tensor:
    """A number for each cell, none of them 0, with two features."""
    cells = torch.arange(1, mask.numel() + 1, dtype=torch.float64).view(mask.shape)
    return torch.stack((cells, -cells), dim=-1)


@given(layouts())
def test_rows_are_the_tokens_in_order_and_lead_back_to_the_batch(case: tuple[Layout, Tensor, Tensor]) -> None:
    layout, mask, _ = case
    grid = grid_of(mask)
    rows = layout.gather(grid)
    assert torch.equal(rows, grid[mask])
    assert torch.equal(layout.scatter(rows), grid * mask[..., None])
    assert torch.equal(layout.gather(layout.scatter(rows)), rows)


@given(layouts())
def test_tokens_are_mixed_on_a_grid_with_a_row_for_each_document(case: tuple[Layout, Tensor, Tensor]) -> None:
    layout, mask, starts = case
    grid = grid_of(mask)
    rows = layout.gather(grid)
    padded = layout.pad(rows)
    assert torch.equal(layout.unpad(padded), rows)
    assert padded.shape[:2] == (layout.sequences, layout.length)
    if layout.batch is None:
        assert torch.equal(padded, grid * mask[..., None])
        return
    begins = (starts & mask)[mask].tolist()  # in a padded row every token stands before the padding
    assert sum(begins) == layout.sequences
    document = torch.tensor(begins).cumsum(0) - 1
    for number in range(layout.sequences):
        own = rows[document == number]
        assert torch.equal(padded[number, : len(own)], own)
        assert not padded[number, len(own) :].any()
        assert layout.mask[number].tolist() == [True] * len(own) + [False] * (layout.length - len(own))


@given(layouts(), st.data())
def test_positions_of_the_batch_find_their_tokens(case: tuple[Layout, Tensor, Tensor], data: st.DataObject) -> None:
    layout, mask, starts = case
    sequences, length = mask.shape
    cells = data.draw(st.lists(st.integers(0, length - 1), min_size=2 * sequences, max_size=2 * sequences))
    positions = torch.tensor(cells).view(sequences, 2)
    found = layout.rows_of(positions)
    rows = layout.gather(grid_of(mask)[..., 0])
    there = mask.gather(1, positions)
    assert torch.equal(rows[found][there], grid_of(mask)[..., 0].gather(1, positions)[there])
    assert found.min() >= 0
    assert found.max() < rows.shape[0], "also of padding, which gives some token's row"
    columns = torch.arange(length).expand(sequences, -1)
    if layout.batch is not None:  # counted within the document
        columns = columns - torch.where(starts, columns, 0).cummax(1).values
    assert torch.equal(layout.positions_of(found)[there], columns.gather(1, positions)[there])
    within = layout.positions()
    assert torch.equal(columns[mask], layout.positions_of(torch.arange(len(rows))) if within is None else within)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_groups_hold_every_token_once_beside_sequences_of_similar_length(lengths: list[int]) -> None:
    groups = Groups.of(torch.tensor(lengths))
    rows = torch.arange(1.0, sum(lengths) + 1)[:, None]
    grids = groups.spread(rows)
    assert torch.equal(groups.collect(grids), rows)
    inside = []
    for group, grid in zip(groups.members, grids, strict=True):
        mask = torch.ones(grid.shape[:2], dtype=torch.bool) if group.mask is None else group.mask
        counts = mask.sum(1)
        assert (group.sequences, group.length) == grid.shape[:2]
        assert counts.max() == group.length
        assert counts.max() - counts.min() < max(1, -(-max(lengths) // 8))
        for row, there in zip(grid, mask, strict=True):
            own = row[there][:, 0]
            assert torch.equal(own, torch.arange(own[0], own[0] + len(own))), "a sequence's tokens follow one another"
            inside.append(int(there.sum()))
    assert sorted(inside) == sorted(lengths)
    assert len(groups.members) <= 8


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31))
def test_gradients_through_groups_are_autograds(lengths: list[int], seed: int) -> None:
    """Against plain indexing, for what depends on tokens only."""
    torch.manual_seed(seed)
    groups = Groups.of(torch.tensor(lengths))
    rows = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=True)
    masks = [torch.ones(g.sequences, g.length, dtype=torch.bool) if g.mask is None else g.mask for g in groups.members]

    def mixed(grids: list[Tensor]) -> list[Tensor]:
        """Every token becomes a function of its whole sequence; padding holds what must not matter."""
        kept = [grid * mask[..., None] for grid, mask in zip(grids, masks, strict=True)]
        return [grid * kept_grid.sum(1, keepdim=True) for grid, kept_grid in zip(grids, kept, strict=True)]

    weights = torch.randn(sum(lengths), 2, dtype=torch.float64)
    (ours,) = torch.autograd.grad((groups.collect(mixed(groups.spread(rows))) * weights).sum(), rows)
    parts = rows.split(lengths)
    plain = torch.cat([part * part.sum(0, keepdim=True) for part in parts])
    (theirs,) = torch.autograd.grad((plain * weights).sum(), rows)
    torch.testing.assert_close(ours, theirs)


def test_nothing_is_masked_and_nothing_copied_where_nothing_is_padded() -> None:
    grid = torch.arange(12).view(3, 4)
    layout = Layout.of(grid)
    assert (layout.mask, layout.cells, layout.groups) == (None, None, None)
    assert layout.gather(grid).data_ptr() == grid.data_ptr()
    assert layout.pad(layout.unpad(grid)).data_ptr() == grid.data_ptr()


def test_tokens_with_holes_between_them_are_not_moved_together() -> None:
    """Groups count positions from a sequence's first token; padding on the left does not change distances."""
    inputs = torch.zeros(2, 4, dtype=torch.int64)
    assert Layout.of(inputs, torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])).groups is None
    assert Layout.of(inputs, torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]])).groups is not None


def test_queries_take_the_slots_in_use() -> None:
    rows = torch.tensor([[3, 1], [0, 2]])
    tokens = torch.arange(4.0)[:, None]
    everywhere, some = Queries(rows), Queries(rows, torch.tensor([1, 3]))
    assert everywhere.select(tokens)[:, 0].tolist() == [3, 1, 0, 2]
    assert some.select(tokens)[:, 0].tolist() == [1, 2]
    assert some.take(torch.tensor([10, 11, 12, 13])).tolist() == [11, 13]
