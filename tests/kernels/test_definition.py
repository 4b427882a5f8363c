"""``gated_long_conv`` against matrices that are filled entry by entry, with gradients; which way taps look."""

import pytest
import torch
from torch import Tensor

from cramming.kernels import gated_long_conv
from cramming.kernels.long_convolution import operands
from cramming.kernels.torch_convolution import composed
from tests.kernels.kernel_cases import ConvolutionCase

CHANNELS = 3


def toeplitz(taps: Tensor, bias: Tensor, length: int) -> Tensor:
    """The matrices (C, S, S) of a long convolution, entry by entry."""
    rows = taps.shape[-1]
    matrix = [[taps.new_zeros(taps.shape[1]) for _ in range(length)] for _ in range(length)]
    for t in range(length):
        for j in range(length):
            if t == j:
                matrix[t][j] = bias + taps[0, :, 0]
            elif t > j and t - j < rows:
                matrix[t][j] = taps[0, :, t - j]
            elif j > t and taps.shape[0] == 2 and j - t - 1 < rows:
                matrix[t][j] = taps[1, :, j - t - 1]
    return torch.stack([torch.stack(row, dim=-1) for row in matrix], dim=-2)


def by_matrices(given: list[Tensor | None]) -> Tensor:
    """The operation as products with those."""
    z, u, taps, taps_residual, bias, bias_residual, weight, short_bias, mask = given
    length = z.shape[-1]
    steps = []
    for t in range(length):
        value = short_bias[:, None].expand(-1, z.shape[1])
        for tap in range(3):
            if t - 2 + tap >= 0:
                value = value + weight[:, tap, None] * z[..., t - 2 + tap]
        steps.append(value)
    first, second, values = torch.stack(steps, dim=-1).chunk(3)
    keep = torch.ones(z.shape[1:]) if mask is None else mask.double()
    mixed = second * torch.einsum("ctj,cbj->cbt", toeplitz(taps, bias, length), first * values * keep)
    if u is not None:
        mixed = mixed + torch.einsum("ctj,cbj->cbt", toeplitz(taps_residual, bias_residual, length), u * keep)
    return mixed


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("directions", "residual"), [(2, True), (2, False), (1, True), (1, False)])
@pytest.mark.parametrize(("length", "rows"), [(1, 1), (1, 5), (2, 2), (3, 7), (8, 8), (9, 4), (13, 13), (17, 6)])
def test_every_form_is_the_matrices_it_stands_for(
    length: int, rows: int, directions: int, residual: bool, masked: bool
) -> None:
    """The definition, that by torch's transforms, and that which is differentiated twice."""
    given = ConvolutionCase(CHANNELS, 2, length, rows, directions, residual, masked).operands(torch.float64)
    leaves = [part for part in given[:-1] if part is not None]
    expected = by_matrices(given)
    incoming = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, leaves, incoming)
    forms = {
        "reference": gated_long_conv(*given, backend="reference"),
        "torch": gated_long_conv(*given, backend="torch"),
        "composed": composed(operands(*given)),
    }
    for name, found in forms.items():
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        for ours, theirs in zip(torch.autograd.grad(found, leaves, incoming), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_token_reaches_both_ways_by_lag(backend: str) -> None:
    """Lag d of the past is tap d of the forward filter, lag d of the future tap d - 1 of the backward one."""
    taps = torch.arange(1.0, 17.0).view(2, 1, 8)
    z = torch.ones(3, 1, 8)
    z[0] = 0
    z[0, 0, 3] = 1.0  # the gated signal: one at position 3
    now = torch.zeros(3, 3)
    now[:, 2] = 1.0
    response = gated_long_conv(z, None, taps, None, torch.tensor([100.0]), None, now, torch.zeros(3), backend=backend)
    expected = torch.tensor([11.0, 10.0, 9.0, 101.0, 2.0, 3.0, 4.0, 5.0])
    torch.testing.assert_close(response.flatten(), expected, rtol=1e-5, atol=1e-4)


def test_the_short_convolution_looks_back_only() -> None:
    given = ConvolutionCase(CHANNELS, 2, 12, taps=1, directions=1, residual=False).operands(torch.float64)
    changed = [part if part is None else part.detach().clone() for part in given]
    changed[0][..., 5] += 1.0
    differing = gated_long_conv(*given, backend="reference") != gated_long_conv(*changed, backend="reference")
    assert differing.any(0).any(0).tolist() == [5 <= t <= 7 for t in range(12)]  # taps of a long filter: one
    moved = gated_long_conv(*given, backend="torch") != gated_long_conv(*changed, backend="torch")
    assert moved[..., 5:8].all()
