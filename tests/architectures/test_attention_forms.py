"""Every form of attention against the written-out one.

Kernels that only GPUs have are replaced by their definitions, of the same signatures, below our own code.

Shape legend: T tokens, Q queries, A heads, W width of a head, S positions.
"""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.varlen import varlen_attn

from cramming.architectures.layers import attention_forms
from cramming.architectures.layers.alibi import slopes
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.attention_forms import Asked, Ends, Sight, lacking, varlen_attention
from cramming.architectures.layers.unpadding import Layout, Queries

HIDDEN, HEADS = 48, 3
CPU = torch.device("cpu")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"alibi": True},
    {"rotary": 10000.0},
    {"window": 2},
    {"alibi": True, "window": 3},
    {"rotary": 100.0, "window": 3, "qkv_bias": False, "output_bias": False},
]
IDS = [" ".join(options) or "plain" for options in OPTIONS]
LENGTHS = [17, 1, 9, 12, 9, 16, 1, 2]
STARTS = torch.zeros(2, 17, dtype=torch.bool).scatter(1, torch.tensor([[5, 6, 15], [0, 9, 9]]), True)


class Kernels:
    """Definitions in place of kernels, and how often they were called."""

    calls = 0

    def rows(self, *args: Any, window_size: tuple[int, int] = (-1, -1), alibi_slopes: Tensor | None = None) -> Tensor:
        """Sequence by sequence, aligned at its end as flash kernels are: (Q, A, W), 2 x (T, A, W) -> (Q, A, W)."""
        self.calls += 1
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k = args
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        of_queries, of_keys = cu_seq_q.diff(), cu_seq_k.diff()
        assert (int(cu_seq_q[-1]), int(cu_seq_k[-1])) == (len(query), len(key))
        assert 0 < int(of_queries.max()) <= max_q
        assert 0 < int(of_keys.max()) <= max_k
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        found = []
        parts = (x.split(counts.tolist()) for x, counts in ((query, of_queries), (key, of_keys), (value, of_keys)))
        for q, k, v in zip(*parts, strict=True):
            at = torch.arange(len(q))[:, None] + len(k) - len(q)
            distance = (at - torch.arange(len(k))).abs()
            scores = torch.einsum("qaw,kaw->aqk", q, k) / math.sqrt(q.shape[2])
            if alibi_slopes is not None:
                assert alibi_slopes.dtype == torch.float32
                scores = scores - alibi_slopes.to(q.dtype)[:, None, None] * distance
            if window_size[0] >= 0:
                assert window_size[0] == window_size[1]
                scores = scores.masked_fill(distance > window_size[0], -math.inf)
            found.append(torch.einsum("aqk,kaw->qaw", scores.softmax(-1), v))
        return torch.cat(found)

    def varlen(self, *args: Any, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
        """``torch.nn.attention.varlen.varlen_attn``."""
        return self.rows(*args, window_size=window_size)

    def flash_attn_varlen_func(
        self,
        *args: Any,
        dropout_p: float = 0.0,
        window_size: tuple[int, int] = (-1, -1),
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
    ) -> Tensor:
        """The package flash-attn's."""
        assert (dropout_p, deterministic) == (0.0, False)
        return self.rows(*args, window_size=window_size, alibi_slopes=alibi_slopes)

    def flex(self, q: Tensor, k: Tensor, v: Tensor, score: Any, mask: BlockMask) -> Tensor:
        """What a kernel computes that trusts the blocks: (1, A, Q, W), 2 x (1, A, T, W) -> (1, A, Q, W)."""
        self.calls += 1
        scores = q @ k.mT / math.sqrt(q.shape[3])
        head, i, j = (torch.arange(size) for size in scores.shape[1:])
        where = (head[:, None, None], i[:, None], j)
        zero = torch.zeros((), dtype=torch.int64)
        partly, wholly = (spread(blocks, mask)[: len(i), : len(j)] for blocks in listed(mask))
        seen = wholly | (partly & mask.mask_mod(zero, *where))
        if score is not None:
            scores = score(scores, zero, *where)
        return scores.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num() @ v


def listed(mask: BlockMask) -> tuple[Tensor, Tensor]:
    """The blocks that are read in part, and whole: 2 x (n, n) bool, as the lists of kernels say."""
    sides = (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
    found = []
    for counts, order in sides:
        if counts is None or order is None:
            found.append(torch.zeros_like(mask.kv_indices[0, 0], dtype=torch.bool))
            continue
        used = torch.arange(order.shape[-1]) < counts[0, 0, :, None]
        chosen_blocks = torch.zeros(order.shape[-2:], dtype=torch.bool)
        found.append(chosen_blocks.scatter_(1, order[0, 0].long(), used))
    return found[0], found[1]


def spread(blocks: Tensor, mask: BlockMask) -> Tensor:
    """(n, n) blocks -> every pair of rows in them."""
    high, wide = mask.BLOCK_SIZE
    return blocks.repeat_interleave(high, 0).repeat_interleave(wide, 1)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Definitions everywhere, in any precision, and small blocks."""
    found = Kernels()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", found.varlen)
    fake = SimpleNamespace(flash_attn_varlen_func=found.flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(attention_forms, "flex_kernel", found.flex)
    monkeypatch.setattr(attention_forms, "_IN_16_BITS", ())
    monkeypatch.setattr(attention_forms, "BLOCK", 8)
    return found


def make(options: dict[str, Any]) -> SelfAttention:
    """A layer with weights large enough for attention to be uneven."""
    torch.manual_seed(0)
    layer = SelfAttention(HIDDEN, HEADS, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(3)
    return layer


def layouts() -> dict[str, Layout]:
    """Every kind of them."""
    inputs, lengths = torch.zeros(len(LENGTHS), 17, dtype=torch.int64), torch.tensor(LENGTHS)
    padded, full = Layout.of(inputs, lengths=lengths), Layout.of(inputs[:3])
    holes = torch.tensor([[1, 0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    kept = torch.tensor([0, 3, 4, 17, 18, 19, 25, 26, 30, 45, 46, 47, 64])
    thinned = torch.cat([torch.arange(3) * 17 + place for place in (0, 2, 3, 11, 12, 16)]).sort().values
    return {
        "full": full,
        "padded": padded,
        "documents": Layout.of(inputs[:2], starts=STARTS),
        "padded documents": Layout.of(inputs[:2], lengths=torch.tensor([17, 11]), starts=STARTS),
        "a sequence without tokens": Layout.of(inputs[:3], lengths=torch.tensor([4, 0, 6])),
        "holes": Layout.of(holes, holes),
        "padding computed": Layout(len(LENGTHS), 17, mask=padded.mask),
        "some tokens": padded.part(kept),
        "some tokens of full rows": full.part(thinned, 6),
        "one token": Layout(1, 1),
    }


def rows_of(layout: Layout) -> int:
    """T."""
    return layout.sequences * layout.length if layout.cells is None else len(layout.cells)


def assert_same(ours: Tensor, theirs: Tensor, wanted: list[Tensor]) -> None:
    """Equal outputs, and equal gradients of the input and of every weight."""
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), wanted, retain_graph=True),
        torch.autograd.grad((theirs * weights).sum(), wanted, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", layouts())
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("form", ["varlen", "flash_attn", "flex"])
def test_forms_on_rows_are_the_definition(kernels: Kernels, form: str, options: dict[str, Any], kind: str) -> None:
    layer = make(options)
    layout = layouts()[kind]
    x = torch.randn(rows_of(layout), HIDDEN, dtype=torch.float64, requires_grad=True)
    kept = slice(None) if kind != "padding computed" else layout.mask.flatten()  # type: ignore[union-attr]
    found = {}
    for layer.form in ("math", form):
        fresh = replace(layout, memo={})
        found[layer.form] = layer(x, fresh)[kept]
        assert torch.equal(layer(x, fresh)[kept], found[layer.form]), "what is remembered is what was made"
    assert_same(found[form], found["math"], [x, *layer.parameters()])
    distance = bool({"alibi", "window"} & set(options))
    gaps = kind in ("holes", "some tokens", "some tokens of full rows")
    told = kind != "padding computed" and not (distance and gaps)
    taken = form == "flex" or (told and not (form == "varlen" and "alibi" in options))
    assert (kernels.calls > 0) == taken


@pytest.mark.parametrize("kind", ["full", "padded", "documents", "padded documents", "holes", "padding computed"])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("form", ["varlen", "flash_attn", "flex"])
def test_wanted_queries_get_what_all_do(kernels: Kernels, form: str, options: dict[str, Any], kind: str) -> None:
    """In no order, a token twice, and with slots that nobody uses."""
    layer = make(options)
    layout = layouts()[kind]
    x = torch.randn(rows_of(layout), HIDDEN, dtype=torch.float64, requires_grad=True)
    sequences = layout.sequences if layout.batch is None else layout.batch[0]
    places = torch.tensor([[0, 0, 0]] * sequences)
    places[0], places[-1] = torch.tensor([6, 0, 4] if kind == "holes" else [16, 0, 6]), torch.tensor([1, 0, 1])
    rows = layout.rows_of(places)
    for queries in (Queries(rows), Queries(rows, torch.tensor([0, 2, 3 * sequences - 1]))):
        layer.form = "math"
        expected = queries.select(layer(x, layout))
        layer.form = form
        assert_same(layer(x, layout, queries), expected, [x, *layer.parameters()])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.one_of(st.none(), st.integers(1, 30)),
    st.integers(0, 2**31),
    st.booleans(),
)
@settings(deadline=None)
def test_blocks_are_read_where_a_pair_sees_each_other(
    lengths: list[int], window: int | None, seed: int, some: bool
) -> None:
    """None is left out, none is read whole but where every pair does, and of all queries none is read in vain."""
    before, attention_forms.BLOCK = attention_forms.BLOCK, 8
    try:
        layout = Layout.of(torch.zeros(len(lengths), max(lengths)), lengths=torch.tensor(lengths))
        total = sum(lengths)
        rows = torch.randint(total, (13,), generator=torch.Generator().manual_seed(seed)) if some else None
        mask = Sight.of(layout, CPU, window, None, rows).mask
    finally:
        attention_forms.BLOCK = before
    document = torch.repeat_interleave(torch.tensor(lengths))
    every = torch.arange(total)
    at = every if rows is None else rows
    near = torch.ones(len(at), total, dtype=torch.bool) if window is None else (at[:, None] - every).abs() <= window
    sees = near & (document[at][:, None] == document)
    assert torch.equal(mask.mask_mod(at[:1] * 0, at[:1] * 0, torch.arange(len(at))[:, None], every), sees)
    partly, wholly = (blocks for blocks in listed(mask))
    assert not (partly & wholly).any()
    high, wide = len(partly) * 8 - len(at), partly.shape[1] * 8 - total
    by_block = torch.nn.functional.pad(sees, (0, wide, 0, high)).view(len(partly), 8, -1, 8)
    assert torch.equal(wholly, by_block.all(3).all(1))
    read = by_block.any(3).any(1)
    assert not (read & ~partly & ~wholly).any()
    if rows is None:
        assert torch.equal(read, partly | wholly)


@pytest.mark.parametrize("options", [OPTIONS[3], OPTIONS[4]], ids=["window", "alibi window"])
def test_torchs_own_flex_computes_the_same(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """On a processor it runs forward only."""
    flag = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"  # then nothing is compiled
    monkeypatch.setattr(flag, True, raising=False)
    layer = make(options)
    layout = layouts()["padded documents"]
    x = torch.randn(rows_of(layout), HIDDEN, dtype=torch.float64)
    queries = Queries(layout.rows_of(torch.tensor([[3, 16], [10, 0]])))
    with torch.no_grad():
        layer.form = "math"
        expected, wanted = layer(x, layout), layer(x, layout, queries)
        layer.form = "flex"
        torch.testing.assert_close(layer(x, layout), expected)
        torch.testing.assert_close(layer(x, layout, queries), wanted)


@pytest.mark.full
def test_flex_within_a_compiled_layer_is_one_graph() -> None:
    layer = make(OPTIONS[4])
    layer.form = "flex"
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for kind in ("full", "padded", "documents"):
        layout = layouts()[kind]
        x = torch.randn(rows_of(layout), HIDDEN, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, layout), layer(x, layout))


@pytest.mark.full
def test_what_decides_and_torchs_kernel_are_part_of_one_graph() -> None:
    """What a machine has is asked once, when a graph is made."""

    def attended(q: Tensor, ends: Tensor) -> Tensor:
        missing = lacking("varlen", Asked(16), q.device, q.dtype)
        return varlen_attention(q, q, q, Ends(ends, ends, 2, 7), 3) if missing is not None else q

    q = torch.empty(6, HEADS, 16, dtype=torch.bfloat16, device="meta")
    compiled = torch.compile(attended, backend="eager", fullgraph=True)
    assert compiled(q, torch.empty(4, dtype=torch.int32, device="meta")).shape == q.shape


@pytest.mark.parametrize("window", [None, 3])
def test_torchs_own_kernel_takes_what_it_is_given(window: int | None) -> None:
    """Without values: the shapes of outputs and gradients, by torch's own description of its kernel."""
    q, k, v = (torch.empty(n, HEADS, 16, dtype=torch.bfloat16, device="meta", requires_grad=True) for n in (6, 9, 9))
    ends = torch.empty(4, dtype=torch.int32, device="meta")
    found = varlen_attention(q, k, v, Ends(ends, ends, 2, 7), window)
    assert found.shape == q.shape
    assert [g.shape for g in torch.autograd.grad(found.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]
    assert varlen_attn.__module__ == "torch.nn.attention.varlen"


def test_slopes_reach_kernels_as_they_are() -> None:
    layer = make({"alibi": True})
    found = layer._slopes(CPU)
    assert found is not None
    assert found.tolist() == pytest.approx(slopes(HEADS))
