"""``gated_long_conv`` by Triton, interpreted where there is no GPU: the definition, at sizes that divide nothing."""
# ruff: noqa: E402, N803 -- triton comes first; what is known as a kernel is compiled has capitals

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton")
import triton.language as tl

from cramming.kernels import backends, gated_long_conv, triton_convolution, triton_products
from cramming.kernels.operands import Convolution
from cramming.kernels.triton_convolution import Tiles
from cramming.kernels.triton_products import narrowed, product
from tests.kernels import laws, whole_numbers
from tests.kernels.kernel_cases import ConvolutionCase, hold_convolution

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OP = laws.OPS[0]
KINDS = (torch.float32, torch.bfloat16, torch.float16)
# Channels, sequences, positions, taps: the least, less than a tile of 16, one, more; filters shorter, as long, longer.
CASES = (
    ConvolutionCase(1, 1, 1, 1),
    ConvolutionCase(3, 3, 15, 7, masked=True),
    ConvolutionCase(1, 17, 16, 16, directions=1),
    ConvolutionCase(2, 3, 17, 30, residual=False, masked=True),
    ConvolutionCase(3, 1, 33, 33, masked=True, strided=True),
)
LONGER = (  # than what one program takes
    ConvolutionCase(1, 3, 130, 64, masked=True),
    ConvolutionCase(1, 17, 130, 150, directions=1, residual=False),
)
GUARD = 64  # elements before and behind an output


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the smallest size, so that short sequences are many tiles, and none is taken whole."""
    tiles = Tiles(16, 32, 16, 4, 2)
    monkeypatch.setattr(triton_convolution, "mix_tiles", lambda dtype, sequences, length: tiles)
    monkeypatch.setattr(triton_convolution, "slopes_tiles", lambda dtype, sequences, length: tiles)
    monkeypatch.setattr(triton_convolution, "lag_tiles", lambda dtype, length: Tiles(0, 16, 16, 4, 2))


def hold_exactly(case: ConvolutionCase, dtype: torch.dtype) -> None:
    """In memory full of NaN."""
    with laws.poisoned():
        whole_numbers.hold_exactly(case, dtype, "triton", DEVICE)


@pytest.mark.parametrize("dtype", KINDS[:2], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_whole_numbers_come_out_exactly(case: ConvolutionCase, dtype: torch.dtype) -> None:
    hold_exactly(case, dtype)


@pytest.mark.parametrize("dtype", KINDS[:2], ids=str)
@pytest.mark.parametrize("case", LONGER, ids=str)
def test_and_from_many_programs(case: ConvolutionCase, dtype: torch.dtype) -> None:
    hold_exactly(case, dtype)


@pytest.mark.parametrize("fused", [0, pytest.param(512, marks=pytest.mark.full)])
def test_and_from_many_small_tiles(fused: int, small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_convolution, "FUSED", fused)
    hold_exactly(ConvolutionCase(1, 3, 50, 21, masked=True), torch.bfloat16)
    hold_exactly(ConvolutionCase(1, 17, 40, 40, directions=1, residual=False), torch.bfloat16)


def test_and_from_many_shares_of_the_sequences(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of taps are added up from shares of the sequences: here from four."""
    seen = []
    launch = triton_convolution._Work.launch

    def watched(self: Any, kernel: Any, programs: int, *rest: Any, **fixed: Any) -> None:
        seen.append((kernel.__name__, programs))
        launch(self, kernel, programs, *rest, **fixed)

    monkeypatch.setattr(triton_convolution._Work, "launch", watched)
    hold_exactly(ConvolutionCase(1, 120, 20, 20, residual=False), torch.float32)
    assert ("lag_products", 3 * 4) in seen, seen


@pytest.mark.parametrize("case", [CASES[1], *CASES[3:]], ids=str)
def test_it_is_the_definition(case: ConvolutionCase) -> None:
    laws.writes_everything(case, torch.float32, "triton", DEVICE)


@pytest.mark.parametrize("dtype", KINDS[1:], ids=str)
def test_it_is_the_definition_in_16_bits(dtype: torch.dtype) -> None:
    """Rounding errors are in proportion to the terms of a sum: of few sums one may be much smaller than its terms."""
    laws.writes_everything(ConvolutionCase(6, 3, 40, 50, masked=True, strided=True), dtype, "triton", DEVICE)


@pytest.mark.full
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("taps", [1, 100, 300])
@pytest.mark.parametrize("length", [127, 129, 257])
def test_a_grid_of_sizes(length: int, taps: int, dtype: torch.dtype) -> None:
    hold_convolution(ConvolutionCase(8, 3, length, taps, masked=True), dtype, "triton", DEVICE)
    hold_exactly(ConvolutionCase(1, 2, length, taps, directions=1, residual=False), dtype)


@pytest.mark.full
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_beyond_what_is_worked_out_again(dtype: torch.dtype) -> None:
    hold_exactly(ConvolutionCase(1, 1, triton_convolution.FUSED + 30, 550, masked=True), dtype)


@pytest.mark.full
@settings(max_examples=25)
@given(case=laws.drawn_convolutions, dtype=st.sampled_from(KINDS))
def test_drawn_sizes(case: ConvolutionCase, dtype: torch.dtype) -> None:
    hold_exactly(case._replace(channels=1 + case.channels % 2), dtype)


def test_laws_of_every_backend() -> None:
    laws.does_the_same_twice(OP, torch.bfloat16, "triton", DEVICE)
    laws.leaves_operands_alone(OP, torch.bfloat16, "triton", DEVICE)
    laws.takes_nothing(OP, "triton", DEVICE)


@pytest.mark.full
def test_more_laws_of_every_backend() -> None:
    laws.takes_autocasts_type(OP, "triton", DEVICE)
    laws.can_be_compiled(OP, torch.bfloat16, "triton", DEVICE)
    laws.can_be_differentiated_twice(OP, "triton", DEVICE)
    laws.takes_kept_spectra(torch.float32, "triton", DEVICE)
    laws.torch_finds_it_in_order(OP, torch.bfloat16, "triton", DEVICE)


def amid(part: Tensor) -> Tensor:
    """The same tensor with GUARD elements of NaN, or true, before and behind it in memory."""
    around = torch.full((part.numel() + 2 * GUARD,), 1 if part.dtype == torch.bool else torch.nan).to(part)
    around[GUARD:-GUARD] = part.detach().flatten()
    return around[GUARD:-GUARD].view(part.shape)


@pytest.mark.parametrize("dtype", KINDS[:2], ids=str)
def test_nothing_beside_operands_is_read_and_nothing_beside_outputs_written(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ConvolutionCase(2, 3, 19, 23, masked=True)
    operands = whole_numbers.operands(case, dtype, DEVICE)
    incoming = torch.ones(2, 3, 19, device=DEVICE)
    expected = whole_numbers.all_of(operands, "triton", incoming)
    kept: list[Tensor] = []

    def guarded(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*given: Any, **options: Any) -> Tensor:
            inside = make(*given, **options)
            if not inside.numel():  # the interpreter's
                return inside
            kept.append(torch.full((inside.numel() + 2 * GUARD,), 7.0).to(inside))
            kept[-1][GUARD:-GUARD] = torch.nan
            return kept[-1][GUARD:-GUARD].view(inside.shape)

        return made

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty_like", guarded(torch.empty_like))
        patched.setattr(torch, "empty", guarded(torch.empty))
        patched.setattr(Tensor, "new_empty", guarded(Tensor.new_empty))
        around = Convolution(*(None if part is None else amid(part) for part in operands))
        found = [triton_convolution.convolve(around)]
        found += triton_convolution.convolve_back(around, amid(incoming.to(dtype)))
    assert len(kept) > 10
    for one in kept:
        assert (one[:GUARD] == 7).all()
        assert (one[-GUARD:] == 7).all()
        assert not one.isnan().any()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_it_cannot_do_goes_to_the_next(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    operands = ConvolutionCase(1, 1, 2, 2).operands(torch.float64, DEVICE)
    case = Convolution(*operands)  # type: ignore[arg-type]
    assert "float64" in str(triton_convolution.convolution_lacks(case))
    monkeypatch.setattr(backends, "_said", set())
    with caplog.at_level(logging.WARNING):
        gated_long_conv(*operands, backend="triton")  # type: ignore[arg-type]
    assert "triton" in caplog.text
    assert "float64" in caplog.text
    narrow = case._replace(z=case.z.float())
    assert triton_convolution.convolution_lacks(narrow) is None
    monkeypatch.setattr(triton_products, "INTERPRETED", tl.constexpr(False))
    assert triton_products.no_device(torch.device("cpu")) == "Triton compiles for GPUs, and this is on cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0" in str(triton_products.no_device(torch.device("cuda")))


@triton.jit
def _of_products(numbers, rounded, sums, SIDE: tl.constexpr):
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tile = narrowed(tl.load(numbers + place), rounded.dtype.element_ty)
    tl.store(rounded + place, tile)
    tl.store(sums + place, product(tile, tile, tl.full((SIDE, SIDE), 0.5, tl.float32)))


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_rounding_and_products(dtype: torch.dtype) -> None:
    """To the nearest, ties to even, as torch rounds; among the numbers ties, carries into the exponent, zeros."""
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(32, 32, generator=draw) * torch.rand(32, 32, generator=draw) ** 4
    ties = 1 + torch.arange(-16, 16) / 256
    numbers[0], numbers[1], numbers[2] = ties, -ties, 2 - 2.0 ** -torch.arange(32.0)
    numbers[3, :4] = torch.tensor([0.0, -0.0, 2.0**-130, 65000.0])
    rounded, sums = torch.empty(32, 32, dtype=dtype, device=DEVICE), torch.empty(32, 32, device=DEVICE)
    _of_products[(1,)](numbers.to(DEVICE), rounded, sums, SIDE=32)
    assert torch.equal(rounded.cpu(), numbers.to(dtype))
    exact = numbers.to(dtype).double() @ numbers.to(dtype).double() + 0.5
    torch.testing.assert_close(sums.cpu().double(), exact, rtol=1e-5, atol=1e-4)
