"""Attention within a window, and attention a block at a time, against their definition."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cramming.architectures.layers import blockwise
from cramming.architectures.layers.attention import SelfAttention, math_attention, sdpa_attention
from cramming.architectures.layers.attention_forms import resolve_form
from cramming.architectures.layers.blockwise import blocks, blockwise_attention
from cramming.architectures.layers.local_attention import banded, local_attention, plain_local_attention
from cramming.architectures.layers.unpadding import Layout, Queries

Form = Callable[..., Tensor]
FORMS = (local_attention, plain_local_attention)


def heads(length: int, sequences: int = 3, width: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Queries, keys and values of 5 heads."""
    torch.manual_seed(length)
    return tuple(torch.randn(sequences, 5, length, width, dtype=dtype, requires_grad=True) for _ in range(3))


def gradients(context: Tensor, kept: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a sum that minds every value of the kept positions, (B, S); it arrives transposed, as in a layer."""
    by_token = context.transpose(1, 2).flatten(2)
    return torch.autograd.grad((by_token.contiguous().sin() * kept[:, :, None]).sum(), inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("length", "window"),
    [(1, 1), (5, 7), (30, 3), (64, 40), (65, 16), (96, 32), (100, 1), (129, 16), (300, 70), (300, 130)],
)
def test_a_window_is_full_attention_with_everything_further_shut_out(
    monkeypatch: pytest.MonkeyPatch, form: Form, length: int, window: int, padded: bool
) -> None:
    q, k, v = heads(length)
    mask = torch.arange(length) < torch.tensor([length, max(1, length // 2), max(1, length - 2)])[:, None]
    kept = mask if padded else torch.ones(3, length, dtype=torch.bool)
    allowed = banded(torch.arange(length), torch.arange(length), window) & kept[:, None, None, :]
    allowed = allowed | ~allowed.any(-1, keepdim=True)  # positions of padding that see nothing
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    due = gradients(expected, kept, (q, k, v))
    for scores in (1 << 19, 1 << 15, 1):  # all heads at once; a few of a sequence; each by itself
        monkeypatch.setattr(blockwise, "SCORES", scores)
        found = form(q, k, v, window, mask=mask if padded else None)
        assert found.isfinite().all()
        torch.testing.assert_close(found.movedim(1, 2)[kept], expected.movedim(1, 2)[kept])
        for one, other in zip(gradients(found, kept, (q, k, v)), due, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_beyond_the_window_changes_a_bit(form: Form) -> None:
    q, k, v = heads(200)
    near = (torch.arange(200) - 100).abs() <= 20
    expected = form(q, k, v, 20)[:, :, 100]
    far_k, far_v = (torch.where(near[:, None], x, 1e3 * torch.randn_like(x)) for x in (k, v))
    assert torch.equal(form(q, far_k, far_v, 20)[:, :, 100], expected)
    edge = (torch.arange(200) - 100).abs() < 20
    assert not torch.equal(form(q, torch.where(edge[:, None], k, 0.0), v, 20)[:, :, 100], expected)


def test_a_window_costs_the_same_for_every_token() -> None:
    """Products grow with the length, forward and backward, and a token's are those of its chunk's keys."""
    counted = {}
    for length in (1024, 2048, 4096):
        q, k, v = heads(length, sequences=1, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter:
            local_attention(q, k, v, 64).sum().backward()
        counted[length] = counter.get_total_flops()
    assert counted[4096] == 2 * counted[2048] == 4 * counted[1024]
    assert counted[1024] == 6 * 2 * 5 * 1024 * (64 + 2 * 64) * 8  # 2 products forward, 4 backward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [*FORMS, "blocks"])
def test_low_precision_follows_float32(form: Form | str, dtype: torch.dtype) -> None:
    q, k, v = heads(300, dtype=torch.float32)
    low = tuple(x.detach().to(dtype).requires_grad_() for x in (q, k, v))
    everywhere = torch.ones(3, 300, dtype=torch.bool)
    if form == "blocks":
        expected, found = sdpa_attention(q, k, v, None, 0.0), blockwise_attention(*low, None)
    else:
        expected, found = form(q, k, v, 20), form(*low, 20)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    for one, other in zip(gradients(found, everywhere, low), gradients(expected, everywhere, (q, k, v)), strict=True):
        assert F.cosine_similarity(one.float().flatten(), other.flatten(), dim=0) > 0.999


def test_dropout_within_a_window_drops_probabilities() -> None:
    q, k, _ = heads(90)
    torch.manual_seed(0)
    ones = torch.ones_like(q)
    kept = local_attention(q, k, ones, 10, dropout=0.25)
    assert kept.std() > 0.05
    assert kept[..., 0].mean().item() == pytest.approx(1.0, abs=0.05)  # of 1350 queries
    torch.testing.assert_close(local_attention(q, k, ones, 10), torch.ones_like(ones))


@pytest.mark.parametrize("shape", [None, (3, 1, 1, 33), (1, 5, 21, 33), (3, 1, 21, 33), (3, 5, 21, 33), (1, 1, 1, 33)])
@pytest.mark.parametrize("scores", [1 << 19, 33 * 60, 33 * 10, 1])
def test_attention_by_blocks_is_attention(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...] | None, scores: int
) -> None:
    monkeypatch.setattr(blockwise, "SCORES", scores)
    _, k, v = heads(33)
    q = heads(21)[0]
    bias = None if shape is None else torch.randn(shape, dtype=torch.float64)
    expected, found = math_attention(q, k, v, bias, 0.0), blockwise_attention(q, k, v, bias)
    torch.testing.assert_close(found, expected)
    everywhere = torch.ones(3, 21, dtype=torch.bool)
    for one, other in zip(
        gradients(found, everywhere, (q, k, v)), gradients(expected, everywhere, (q, k, v)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("sequences", "count", "scores"), [(3, 5, 1), (3, 5, 1 << 18), (7, 2, 1 << 17), (1, 4, 1 << 30)]
)
def test_blocks_cover_every_head_once_and_lie_together(sequences: int, count: int, scores: int) -> None:
    grid = torch.arange(sequences * count).view(sequences, count, 1)
    parts = [grid[block] for block in blocks(sequences, count, scores)]
    assert torch.cat([part.flatten() for part in parts]).tolist() == list(range(sequences * count))
    assert all(part.is_contiguous() for part in parts)


def test_blocks_keep_no_scores_for_backward() -> None:
    q, k, v = heads(500, sequences=1)
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        blockwise_attention(q, k, v, None)
    assert kept == 3 * q.numel() < 500 * 500


def test_forms_are_chosen_by_length_and_precision() -> None:
    cpu = torch.device("cpu")
    assert resolve_form("auto", cpu, 256, torch.bfloat16) == resolve_form("auto", cpu, 256) == "math"
    assert resolve_form("auto", cpu, 257, torch.bfloat16) == resolve_form("auto", cpu, 257, torch.float16) == "blocks"
    assert resolve_form("auto", cpu, 257) == "sdpa"
    assert resolve_form("auto", torch.device("cuda"), 64, torch.bfloat16) == "sdpa"


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("form", ["math", "sdpa", "blocks"])
def test_wanted_queries_get_what_all_do(window: int | None, padded: bool, form: str) -> None:
    """The last layer of a model computes some positions only, in whichever way."""
    torch.manual_seed(0)
    layer = SelfAttention(24, 3, rotary=10000.0, window=window, qkv_bias=False).double()
    layer.form = form
    inputs = torch.zeros(3, 40)
    layout = Layout.of(inputs, lengths=torch.tensor([40, 31, 9]) if padded else None)
    x = layout.unpad(torch.randn(3, 40, 24, dtype=torch.float64)).requires_grad_()
    positions = torch.tensor([[0, 39, 17], [3, 30, 11], [8, 0, 4]])
    queries = Queries(layout.rows_of(positions))
    everything = layer(x, layout)
    wanted = layer(x, layout, queries)
    torch.testing.assert_close(wanted, everything[queries.rows.flatten()])
    found, expected = (
        torch.autograd.grad(y.sin().sum(), x, retain_graph=True)[0]
        for y in (wanted, everything[queries.rows.flatten()])
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_a_window_on_a_gpu_is_the_one_on_a_processor(form: Form) -> None:
    q, k, v = heads(300, dtype=torch.float32)
    mask = torch.arange(300) < torch.tensor([300, 150, 298])[:, None]
    moved = tuple(x.detach().cuda().requires_grad_() for x in (q, k, v))
    expected, found = form(q, k, v, 20, mask=mask), form(*moved, 20, mask=mask.cuda())
    torch.testing.assert_close(found.cpu().movedim(1, 2)[mask], expected.movedim(1, 2)[mask], rtol=1e-3, atol=1e-3)
    on_gpu, on_cpu = gradients(found, mask.cuda(), moved), gradients(expected, mask, (q, k, v))
    for one, other in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)
