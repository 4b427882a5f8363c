"""The long convolution and the block-diagonal layers against their definitions."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from cramming.architectures.layers.block_diagonal import BlockDiagonalGatedFeedForward, BlockDiagonalLinear
from cramming.architectures.layers.long_convolution import (
    CHUNK_VALUES,
    Signals,
    convolution_flops,
    direct,
    fft,
    spectra_of,
    transform_size,
)

CHANNELS = 3


def toeplitz(taps: Tensor, skip: Tensor, length: int) -> Tensor:
    """The matrices (C, S, S) of a long convolution, entry by entry."""
    rows = taps.shape[-1]
    matrix = [[taps.new_zeros(taps.shape[1]) for _ in range(length)] for _ in range(length)]
    for t in range(length):
        for j in range(length):
            if t == j:
                matrix[t][j] = skip + taps[0, :, 0]
            elif t > j and t - j < rows:
                matrix[t][j] = taps[0, :, t - j]
            elif j > t and taps.shape[0] == 2 and j - t - 1 < rows:
                matrix[t][j] = taps[1, :, j - t - 1]
    return torch.stack([torch.stack(row, dim=-1) for row in matrix], dim=-2)


def oracle(signals: Signals, short: tuple[Tensor, Tensor], taps: Tensor, skip: Tensor) -> Tensor:
    """The mixer between its projections, in O(S^2), by sums over positions."""
    projected, residual, mask = signals
    weight, bias = short
    length = projected.shape[-1]
    steps = []
    for t in range(length):
        value = bias[:, None].expand(-1, projected.shape[1])
        for tap in range(3):
            if t - 2 + tap >= 0:
                value = value + weight[:, 0, tap, None] * projected[..., t - 2 + tap]
        steps.append(value)
    first, second, values = torch.stack(steps, dim=-1).chunk(3)
    keep = torch.ones(projected.shape[1:]) if mask is None else mask.double()
    mixed = second * torch.einsum("ctj,cbj->cbt", toeplitz(taps[0], skip[0], length), first * values * keep)
    if residual is not None:
        mixed = mixed + torch.einsum("ctj,cbj->cbt", toeplitz(taps[1], skip[1], length), residual * keep)
    return mixed


def case(length: int, rows: int, *, directions: int = 2, filters: int = 2, masked: bool = False) -> list:
    """Random float64 arguments: signals, short convolution, taps, skip."""
    draw = torch.Generator().manual_seed(100 * length + 10 * rows + 2 * directions + filters)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    residual = normal(CHANNELS, 2, length) if filters == 2 else None
    mask = torch.arange(length) < torch.tensor([[length], [max(1, length - 2)]]) if masked else None
    return [
        Signals(normal(3 * CHANNELS, 2, length), residual, mask),
        (normal(3 * CHANNELS, 1, 3), normal(3 * CHANNELS)),
        normal(filters, directions, CHANNELS, rows),
        normal(filters, CHANNELS),
    ]


def by_fft(signals: Signals, short: tuple[Tensor, Tensor], taps: Tensor, skip: Tensor) -> Tensor:
    points = transform_size(signals.projected.shape[-1], taps.shape[-1])
    return fft(signals, short, spectra_of(taps[..., : points // 2], skip, points))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("directions", "filters"), [(2, 2), (2, 1), (1, 2), (1, 1)])
@pytest.mark.parametrize(("length", "rows"), [(1, 1), (1, 5), (2, 2), (3, 7), (8, 8), (9, 4), (13, 13), (17, 6)])
def test_both_forms_are_the_sums_they_stand_for(
    length: int, rows: int, directions: int, filters: int, masked: bool
) -> None:
    given = case(length, rows, directions=directions, filters=filters, masked=masked)
    leaves = [t for t in (given[0].projected, given[0].residual, *given[1], given[2], given[3]) if t is not None]
    expected = oracle(*given)
    incoming = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, leaves, incoming)
    for form in (direct, by_fft):
        found = form(*given)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(torch.autograd.grad(found, leaves, incoming), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [127, 128, 129, 200, 500])
def test_float32_transforms_are_exact_to_rounding(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_VALUES, "cpu", 2 * length)  # one channel at a time
    given = case(length, length, masked=True)
    exact = direct(*given)
    narrow = [
        Signals(given[0].projected.float(), given[0].residual.float(), given[0].mask),
        tuple(part.float() for part in given[1]),
        given[2].float(),
        given[3].float(),
    ]
    assert float(((by_fft(*narrow).double() - exact).norm() / exact.norm()).detach()) < 1e-6


@pytest.mark.parametrize("channels", [1, 2, 1000])
def test_channels_at_a_time_and_order_in_memory_change_nothing(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    signals, *rest = case(17, 17, masked=True)
    leaves = [signals.projected, signals.residual, *rest[0]]
    expected = by_fft(signals, *rest)
    incoming = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, incoming)
    monkeypatch.setitem(CHUNK_VALUES, "cpu", channels * 2 * 17)
    turned = [leaf.permute(1, 2, 0).contiguous().permute(2, 0, 1) for leaf in leaves[:2]]
    found = by_fft(Signals(*turned, signals.mask), *rest)
    assert torch.equal(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, leaves, incoming), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_token_reaches_both_ways_by_lag() -> None:
    """Lag d of the past is tap d of the forward filter, lag d of the future tap d - 1 of the backward one."""
    taps = torch.arange(1.0, 17.0).view(1, 2, 1, 8)
    projected = torch.ones(3, 1, 8)
    projected[0] = 0
    projected[0, 0, 3] = 1.0  # the gated signal: one at position 3
    weight = torch.zeros(3, 1, 3)
    weight[..., 2] = 1.0
    response = by_fft(Signals(projected, None, None), (weight, torch.zeros(3)), taps, torch.full((1, 1), 100.0))
    expected = torch.tensor([11.0, 10.0, 9.0, 101.0, 2.0, 3.0, 4.0, 5.0])
    torch.testing.assert_close(response.flatten(), expected, rtol=1e-5, atol=1e-4)


def test_the_short_convolution_looks_back_only() -> None:
    signals, short, taps, skip = case(12, 1, directions=1, filters=1)
    signals = Signals(signals.projected.detach(), None, None)
    changed = signals.projected.clone()
    changed[..., 5] += 1.0
    moved = by_fft(signals, short, taps, skip) != by_fft(Signals(changed, None, None), short, taps, skip)
    differing = direct(signals, short, taps, skip) != direct(Signals(changed, None, None), short, taps, skip)
    assert differing.any(0).any(0).tolist() == [5 <= t <= 7 for t in range(12)]  # taps of a long filter: one
    assert moved[..., 5:8].all()


def test_low_precision_signals_are_worked_on_in_float32() -> None:
    signals, short, taps, skip = case(32, 32)
    low = Signals(signals.projected.bfloat16(), signals.residual.bfloat16(), None)
    short_low = tuple(part.bfloat16() for part in short)
    found = by_fft(low, short_low, taps.float(), skip.float())
    assert found.dtype == torch.bfloat16
    wide = Signals(low.projected.double(), low.residual.double(), None)
    exact = direct(wide, tuple(part.double() for part in short_low), taps, skip)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-2)  # the output is rounded, nothing else


def test_sizes_of_transforms() -> None:
    for length in range(1, 70):
        for rows in (1, 7, 64, 1000):
            points = transform_size(length, rows)
            assert points >= length + min(length - 1, rows)
            assert points & (points - 1) == 0
            assert points == 2 or points < 2 * (length + min(length - 1, rows))
    costs = [convolution_flops(length, length) / length for length in (256, 512, 1024, 2048)]
    assert all(1.0 < later / earlier < 1.2 for earlier, later in pairwise(costs)), "it grows as S log S"


def test_block_diagonal_layers_are_the_references(shared: Path) -> None:
    tensors = load_file(shared / "golden" / "m2_blockdiag_linear.safetensors")
    described = json.loads((shared / "golden" / "m2_blockdiag_linear.json").read_text())
    for variant in described["variants"]:
        name = variant["prefix"]
        layer = BlockDiagonalLinear(
            variant["in_features"], variant["out_features"], variant["nblocks"], bias=variant["bias"]
        )
        state = {k.removeprefix(f"{name}state_dict."): t for k, t in tensors.items() if f"{name}state_dict." in k}
        layer.load_state_dict(state)
        x = tensors[f"{name}input.x"].requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y, tensors[f"{name}expected.y"], rtol=0, atol=1e-5)
        y.backward(tensors[f"{name}input.cotangent"])
        gradients = {"x": x.grad, "weight": layer.weight.grad}
        if layer.bias is not None:
            gradients["bias"] = layer.bias.grad
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, tensors[f"{name}grad.{key}"], rtol=0, atol=1e-5)


def test_fresh_block_diagonal_weights() -> None:
    torch.manual_seed(0)
    layer = BlockDiagonalLinear(256, 512, 4)
    assert 0.99 < float(layer.weight.detach().abs().max()) * math.sqrt(256 / 4) <= 1
    assert 0.97 < float(layer.bias.detach().abs().max()) * math.sqrt(512) <= 1, "the bias' bound is by outputs"


@pytest.mark.parametrize(
    ("hidden", "width", "blocks"), [(16, 24, 4), (16, 24, 2), (12, 18, 6), (16, 24, 1), (15, 9, 3)]
)
def test_the_feed_forward_part_is_what_its_matrices_say(hidden: int, width: int, blocks: int) -> None:
    torch.manual_seed(0)
    part = BlockDiagonalGatedFeedForward(hidden, width, blocks).double()
    x = torch.randn(5, hidden, dtype=torch.float64, requires_grad=True)
    inner, outer = (torch.block_diag(*layer.weight.unbind()) for layer in (part.expand, part.contract))
    gates, values = (x @ inner.T).chunk(2, dim=1)
    expected = (F.gelu(gates) * values) @ outer.T + part.contract.bias
    found = part(x)
    torch.testing.assert_close(found, expected)
    incoming = torch.randn_like(found)
    leaves = [x, *part.parameters()]
    wanted = torch.autograd.grad(expected, leaves, incoming)
    for ours, theirs in zip(torch.autograd.grad(found, leaves, incoming), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_which_quarters_meet() -> None:
    """Gates of blocks 0 and 1 stand beside values of blocks 2 and 3."""
    torch.manual_seed(0)
    part = BlockDiagonalGatedFeedForward(16, 32, 4)
    x = torch.randn(16)
    for quarter in range(4):
        changed = x.clone()
        changed[4 * quarter : 4 * quarter + 4] += 1
        moved = (part(x[None]) != part(changed[None])).view(4, 4).any(1).tolist()
        assert moved == ([True, True, False, False] if quarter in (0, 2) else [False, False, True, True])
