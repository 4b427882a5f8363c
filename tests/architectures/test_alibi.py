"""Linear biases: the reference's slopes and bias, and what they mean for attention."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cramming.architectures.layers import blockwise
from cramming.architectures.layers.alibi import alibi, slopes
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.unpadding import Layout, Queries

GOLDEN_HEADS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24)


@pytest.mark.parametrize("heads", GOLDEN_HEADS)
def test_stored_slopes_and_bias(shared: Path, heads: int) -> None:
    stored = load_file(shared / "golden" / "alibi_slopes.safetensors")
    ours = torch.tensor(slopes(heads))
    torch.testing.assert_close(ours, stored[f"slopes.{heads}"], rtol=1e-6, atol=0)
    places = torch.arange(7)
    torch.testing.assert_close(alibi(ours, places, places), stored[f"bias.{heads}"], rtol=1e-6, atol=0)


@given(st.integers(1, 200))
def test_slopes_of_any_number_of_heads(heads: int) -> None:
    """Section 3 of the paper: a geometric sequence from 2^(-8/A), A a power of two; others take every other of 2A's."""
    found = slopes(heads)
    power = 1
    while 2 * power <= heads:
        power *= 2
    assert len(found) == heads
    assert found[:power] == [2 ** (-8 * (i + 1) / power) for i in range(power)]
    assert found[power:] == [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    assert len(set(found)) == heads


@given(st.integers(1, 12), st.lists(st.integers(0, 5000), min_size=1, max_size=6), st.integers(1, 9))
def test_the_bias_is_minus_slope_times_distance(heads: int, queries: list[int], keys: int) -> None:
    bias = alibi(torch.tensor(slopes(heads), dtype=torch.float64), torch.tensor(queries), torch.arange(keys))
    for head, slope in enumerate(slopes(heads)):
        for row, query in enumerate(queries):
            assert bias[head, row].tolist() == [-slope * abs(query - key) for key in range(keys)]
    by_sequence = alibi(torch.tensor(slopes(heads)), torch.tensor([queries, queries[::-1]]), torch.arange(keys))
    assert torch.equal(by_sequence[0], alibi(torch.tensor(slopes(heads)), torch.tensor(queries), torch.arange(keys)))
    assert torch.equal(by_sequence[1].flip(1), by_sequence[0])


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_attention_with_equal_scores_is_the_softmax_of_the_bias(heads: int) -> None:
    """Queries of zero leave nothing but distance: hand-computed probabilities."""
    torch.manual_seed(0)
    layer = SelfAttention(4 * heads, heads, alibi=True).double()
    with torch.no_grad():
        layer.qkv.weight[: 4 * heads] = 0
        layer.qkv.bias[: 4 * heads] = 0
        layer.output.weight.copy_(torch.eye(4 * heads))
        layer.output.bias.zero_()
    x = torch.randn(6, 4 * heads, dtype=torch.float64)
    values = (x @ layer.qkv.weight[8 * heads :].T + layer.qkv.bias[8 * heads :]).view(6, heads, 4)
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    mixed = layer(x, Layout(1, 6)).view(6, heads, 4)
    for head, slope in enumerate(slopes(heads)):
        weights = torch.exp(-slope * distance.double())
        weights = weights / weights.sum(1, keepdim=True)
        torch.testing.assert_close(mixed[:, head], weights @ values[:, head])


def test_attention_moves_with_its_input() -> None:
    """Positions are distances: the same tokens further right, with nothing before them, are the same."""
    torch.manual_seed(0)
    layer = SelfAttention(12, 3, alibi=True).double()
    x = torch.randn(5, 12, dtype=torch.float64)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[:, 3:8] = True
    alone = layer(x, Layout(1, 5))
    grid = torch.randn(9, 12, dtype=torch.float64).index_copy(0, torch.arange(3, 8), x)
    torch.testing.assert_close(layer(x, Layout.of(mask, mask)), alone)
    torch.testing.assert_close(layer(grid, Layout(1, 9, mask=mask))[3:8], alone)


def test_far_positions_stay_apart_in_bfloat16() -> None:
    """bfloat16 has no number between 1000 and 1004, and the bias there must not be that of a rounded position."""
    torch.manual_seed(0)
    layer = SelfAttention(2, 1, alibi=True).to(torch.bfloat16)
    length = 1100
    bias = layer._bias(torch.zeros(1, 1, length, 2, dtype=torch.bfloat16), Layout(1, length))
    exact = -slopes(1)[0] * torch.arange(length).double()
    assert torch.equal(bias[0, 0, 0], exact.to(torch.bfloat16))
    last = bias[0, 0, length - 1]
    assert last[1] < last[length - 1 - 3], "and distances count from the query, wherever it is"
    assert torch.equal(last, exact.flip(0).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
def test_a_block_of_the_bias_is_that_part_of_all_of_it(dtype: torch.dtype, masked: bool, chosen: bool) -> None:
    torch.manual_seed(0)
    sequences, length, heads = 3, 300, 4
    layer = SelfAttention(8 * heads, heads, alibi=True).to(dtype)
    keys = torch.zeros(sequences, heads, length, 8, dtype=dtype)
    mask = torch.rand(sequences, length) > 0.3 if masked else None
    places = torch.stack([torch.randperm(length)[:70] for _ in range(sequences)]) if chosen else None
    grid = Layout(sequences, length, mask=mask)
    whole = layer._made_bias(keys, grid, places)
    assert whole is not None
    bias, (_, _, queries, _) = layer._line(keys, grid, places), whole.shape
    for part in itertools.product(
        [slice(0, 1), slice(1, 3)], [slice(0, 4), slice(2, 3)], [slice(0, queries), slice(11, 47)]
    ):
        found = bias.part(*part)
        one = [where if size > 1 else slice(None) for where, size in zip(part, whole.shape, strict=False)]
        assert torch.equal(*torch.broadcast_tensors(found.flip(3), whole[tuple(one)])), "keys come in reverse"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("scores", [1 << 20, 400, 1])
def test_blocks_are_the_definition(monkeypatch: pytest.MonkeyPatch, masked: bool, chosen: bool, scores: int) -> None:
    monkeypatch.setattr(blockwise, "SCORES", scores)
    torch.manual_seed(0)
    sequences, length, heads = 3, 37, 4
    layer = SelfAttention(8 * heads, heads, alibi=True).double()
    mask = torch.rand(sequences, length) > 0.3 if masked else None
    x = torch.randn(sequences * length, 8 * heads, dtype=torch.float64)
    rows = torch.arange(sequences)[:, None] * length + torch.stack([torch.randperm(length)[:11] for _ in range(3)])
    weights = torch.randn(33 if chosen else len(x), 8 * heads, dtype=torch.float64)
    if mask is not None and not chosen:  # what padding becomes is nobody's business
        weights *= mask.flatten()[:, None]
    found = []
    for form in ("math", "blocks"):
        layer.form = form
        inputs = x.clone().requires_grad_()
        mixed = layer(inputs, Layout(sequences, length, mask=mask), Queries(rows) if chosen else None)
        mixed.backward(weights)
        found.append((mixed.detach() * (weights != 0), inputs.grad, layer.qkv.weight.grad))
        layer.zero_grad()
    torch.testing.assert_close(found[1], found[0])
