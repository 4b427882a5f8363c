"""Attention against its definition, sequence by sequence: grouped, on a grid, within documents, at wanted positions."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cramming.architectures.layers.alibi import slopes
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.rotary import rotate
from cramming.architectures.layers.unpadding import Layout, Queries

HIDDEN, HEADS = 24, 3
LENGTHS = [17, 1, 9, 12, 9, 16, 17, 2]
OPTIONS = [
    {},
    {"alibi": True},
    {"rotary": 10000.0},
    {"window": 2},
    {"alibi": True, "window": 3},
    {"rotary": 100.0, "window": 3},
    {"qkv_bias": False, "output_bias": False},
]
IDS = [" ".join(options) or "plain" for options in OPTIONS]


def make(options: dict[str, object], form: str = "math") -> SelfAttention:
    """A layer with weights large enough for attention to be uneven."""
    torch.manual_seed(0)
    layer = SelfAttention(HIDDEN, HEADS, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3)
    layer.form = form
    return layer


def definition(layer: SelfAttention, x: Tensor, places: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v of one sequence whose tokens are at ``places``: (S, H) -> (S, H)."""
    places = torch.arange(len(x)) if places is None else places
    heads = []
    for head, projected in enumerate(layer.qkv(x).view(len(x), 3, HEADS, -1).unbind(2)):
        q, k, v = projected.unbind(1)
        if layer.rotary is not None:
            q, k = (rotate(side[None, None], places, layer.rotary)[0, 0] for side in (q, k))
        scores = q @ k.T / math.sqrt(q.shape[1])
        distance = (places[:, None] - places).abs()
        if layer.slopes is not None:
            scores = scores - slopes(HEADS)[head] * distance
        if layer.window is not None:
            scores = scores.masked_fill(distance > layer.window, -math.inf)
        heads.append(scores.softmax(-1) @ v)
    return layer.output(torch.cat(heads, dim=-1))


def assert_same(layer: SelfAttention, x: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Equal outputs, and equal gradients of the input and of every weight."""
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    wanted = (x, *layer.parameters())
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), wanted, retain_graph=True),
        torch.autograd.grad((theirs * weights).sum(), wanted, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", ["math", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_groups_and_masked_grids_are_every_sequence_alone(options: dict[str, object], form: str) -> None:
    layer = make(options, form)
    layout = Layout.of(torch.zeros(len(LENGTHS), 17, dtype=torch.int64), lengths=torch.tensor(LENGTHS))
    assert len(layout.groups.members) > 2
    assert {group.mask is None for group in layout.groups.members} == {True, False}
    x = torch.randn(sum(LENGTHS), HIDDEN, dtype=torch.float64, requires_grad=True)
    alone = torch.cat([definition(layer, part) for part in x.split(LENGTHS)])
    assert_same(layer, x, layer(x, layout), alone)
    assert_same(layer, x, layer(x, replace(layout, holes=True)), alone)
    computed = Layout(len(LENGTHS), 17, mask=layout.mask)  # padding computed, attended to by nothing
    assert_same(layer, x, layout.unpad(layer(layout.pad(x).flatten(0, 1), computed).view(-1, 17, HIDDEN)), alone)


@pytest.mark.parametrize("form", ["math", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_a_full_grid_is_every_sequence_alone(options: dict[str, object], form: str) -> None:
    layer = make(options, form)
    x = torch.randn(3 * 17, HIDDEN, dtype=torch.float64, requires_grad=True)
    alone = torch.cat([definition(layer, part) for part in x.split(17)])
    assert_same(layer, x, layer(x, Layout(3, 17)), alone)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("padded", [False, True])
def test_documents_apart_are_every_document_alone(options: dict[str, object], padded: bool) -> None:
    layer = make(options)
    inputs = torch.zeros(2, 17, dtype=torch.int64)
    starts = torch.zeros(2, 17, dtype=torch.bool)
    starts[0, [5, 6, 15]] = True
    starts[1, [0, 9]] = True
    lengths = torch.tensor([17, 11]) if padded else None
    layout = Layout.of(inputs, lengths=lengths, starts=starts)
    documents = [5, 1, 9, 2, 9, 2 if padded else 8]
    x = torch.randn(sum(documents), HIDDEN, dtype=torch.float64, requires_grad=True)
    alone = torch.cat([definition(layer, part) for part in x.split(documents)])
    assert_same(layer, x, layer(x, layout), alone)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("kind", ["full", "padded", "grid", "documents"])
def test_wanted_positions_are_those_of_the_whole_output(options: dict[str, object], kind: str) -> None:
    layer = make(options)
    inputs, lengths = torch.zeros(3, 17, dtype=torch.int64), torch.tensor([17, 4, 11])
    starts = torch.zeros(3, 17, dtype=torch.bool)
    starts[:, 6] = True
    layout = {
        "full": Layout.of(inputs),
        "padded": Layout.of(inputs, lengths=lengths),
        "grid": replace(Layout.of(inputs, lengths=lengths), holes=True),
        "documents": Layout.of(inputs, starts=starts),
    }[kind]
    x = torch.randn(len(layout.gather(inputs)), HIDDEN, dtype=torch.float64, requires_grad=True)
    rows = layout.rows_of(torch.tensor([[16, 0], [3, 1], [9, 2]]))
    for queries in (Queries(rows), Queries(rows, torch.tensor([0, 2, 3, 5]))):
        assert_same(layer, x, layer(x, layout, queries), queries.select(layer(x, layout)))


@pytest.mark.parametrize("options", [{"alibi": True}, {"rotary": 10000.0}, {"window": 2}], ids=str)
def test_distances_across_holes_are_those_of_the_row(options: dict[str, object]) -> None:
    layer = make(options)
    mask = torch.tensor([[1, 0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    x = torch.randn(7, HIDDEN, dtype=torch.float64, requires_grad=True)
    first = definition(layer, x[:4], torch.tensor([0, 3, 4, 6]))
    ours = layer(x, Layout.of(mask, mask))
    assert_same(layer, x, ours, torch.cat((first, definition(layer, x[4:]))))
    assert not torch.allclose(ours[:4], definition(layer, x[:4]))


def test_layers_that_differ_do_not_share_what_a_pass_remembers() -> None:
    layers = [make(options) for options in OPTIONS] + [make({"alibi": True}).float()]
    for layout in (Layout(2, 17), Layout.of(torch.zeros(2, 17), lengths=torch.tensor([9, 17]))):
        x = torch.randn(17 * 2 if layout.mask is None else 26, HIDDEN, dtype=torch.float64)
        rows = layout.rows_of(torch.tensor([[1, 2], [3, 16]]))
        for layer in layers:
            own = x.to(layer.qkv.weight.dtype)
            fresh = replace(layout, memo={})
            assert torch.equal(layer(own, layout), layer(own, fresh))
            assert torch.equal(layer(own, layout), layer(own, layout))
            for wanted in (rows, rows.flip(1)):
                found = layer(own, layout, Queries(wanted))
                torch.testing.assert_close(found, layer(own, fresh)[wanted.flatten()], rtol=1e-4, atol=1e-5)


def test_dropout_in_groups_acts_in_training_mode_only() -> None:
    layer = SelfAttention(HIDDEN, HEADS, 0.5, alibi=True)
    layout = Layout.of(torch.zeros(2, 9), lengths=torch.tensor([5, 9]))
    x = torch.randn(14, HIDDEN)
    torch.manual_seed(0)
    assert not torch.equal(layer.train()(x, layout), layer(x, layout))
    assert torch.equal(layer.eval()(x, layout), layer(x, layout))


@pytest.mark.full
def test_compiling_does_not_begin_anew_with_every_batch() -> None:
    """Groups differ from batch to batch; a graph of them would be compiled again and again."""
    from torch._dynamo.testing import CompileCounter

    layer, counter = make({"alibi": True}), CompileCounter()
    plain = make({"alibi": True})
    layer.compile(backend=counter)
    counts = []
    for seed in range(6):
        torch.manual_seed(seed)
        lengths = torch.randint(1, 18, (9,))
        layout = Layout.of(torch.zeros(9, 17), lengths=lengths)
        x = torch.randn(int(lengths.sum()), HIDDEN, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(layer(x, layout), plain(x, layout))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[1]
