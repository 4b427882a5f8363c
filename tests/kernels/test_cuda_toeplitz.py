"""The Toeplitz kernels of ``gated_long_conv``, compiled for a processor, by way of the public function.

The whole of the cuda backend runs but torch's binding: what stands in its place calls the launchers.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from cramming.kernels import cuda, cuda_convolution, cuda_toeplitz, cuda_transform, gated_long_conv
from cramming.kernels.operands import Convolution
from tests.kernels.emulation import fenced, flag, library, pointer, run, seeded, size
from tests.kernels.kernel_cases import ConvolutionCase, hold_convolution
from tests.kernels.laws import OPS, poisoned, slopes_of, writes_everything

SOURCES = ("toeplitz_forward", "toeplitz_backward")


class Emulated:
    """In the place of ``torch.ops.cramming_kernels``: the same operations on tensors of a processor.

    Signals go to the kernels from memory that ends at a page which may not be touched, where ``edged``.
    """

    def __init__(self) -> None:
        self.made = library(SOURCES)
        self.edged = False

    def toeplitz_forward(self, z: Tensor, u: Tensor | None, *others: Tensor | None) -> None:
        *filters, mask, mixed = others
        assert mixed is not None
        taps, residual = filters[0], filters[1]
        assert taps is not None
        more = (0, 0) if residual is None else (residual.shape[0], residual.shape[2])
        self._run("toeplitz_forward", z, (z, u, *filters, mask), (mixed,), (*_counts(z, 3), *_tap_counts(taps), *more))

    def toeplitz_backward(self, z: Tensor, gradient: Tensor, taps: Tensor, *others: Tensor | None) -> None:
        *operands, of_z, of_taps, of_short = others
        assert of_taps is not None
        sizes = (*_counts(z, 3), *_tap_counts(taps), of_taps.shape[0])
        self._run("toeplitz_backward", z, (z, gradient, taps, *operands), (of_z, of_taps, of_short), sizes)

    def toeplitz_backward_residual(self, u: Tensor, gradient: Tensor, taps: Tensor, *others: Tensor | None) -> None:
        *operands, of_u, of_taps = others
        assert of_taps is not None
        sizes = (*_counts(u, 1), *_tap_counts(taps), of_taps.shape[0])
        self._run("toeplitz_backward_residual", u, (u, gradient, taps, *operands), (of_u, of_taps), sizes)

    def _run(self, name: str, signal: Tensor, given: Any, results: Any, sizes: tuple[int, ...]) -> None:
        assert all(part is None or part.is_contiguous() for part in (*given, *results))
        if self.edged:
            given = [None if part is None else fenced(self.made, part.detach()) for part in given]
            copies = [fenced(self.made, part) for part in results]
        else:
            copies = results
        half = flag(signal.dtype == torch.float16)
        run(getattr(self.made, name), *map(pointer, (*given, *copies)), *map(size, sizes), half, None)
        for part, copy in zip(results, copies, strict=True):
            part.copy_(copy)


def _counts(signal: Tensor, thirds: int) -> tuple[int, ...]:
    return signal.shape[0] // thirds, *signal.shape[1:]


def _tap_counts(taps: Tensor) -> tuple[int, int]:
    return taps.shape[0], taps.shape[2]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """The cuda backend on a processor: its operations are emulated, and no device lacks anything."""
    ops = Emulated()
    monkeypatch.setattr(cuda, "ops", lambda: ops)
    monkeypatch.setattr(cuda, "lacks", lambda device: None)
    return ops


# Lengths on both sides of a lane's 8 positions, a block's 32 and a warp's 128; sequences on both sides of a tile's 16
# and a thread block's 64; filters shorter and longer than the sequence.
CASES = (
    ConvolutionCase(channels=1, sequences=1, length=1, taps=1),
    ConvolutionCase(channels=3, sequences=3, length=2, taps=5, masked=True),
    ConvolutionCase(channels=1, sequences=16, length=15, taps=15),
    ConvolutionCase(channels=3, sequences=17, length=16, taps=16, masked=True, strided=True),
    ConvolutionCase(channels=1, sequences=3, length=17, taps=9, directions=1),
    ConvolutionCase(channels=2, sequences=3, length=100, taps=128, masked=True),
    ConvolutionCase(channels=1, sequences=17, length=127, taps=127),
    ConvolutionCase(channels=1, sequences=65, length=128, taps=128, masked=True),
    ConvolutionCase(channels=3, sequences=3, length=129, taps=129, masked=True),
    ConvolutionCase(channels=1, sequences=1, length=200, taps=64, residual=False),
    ConvolutionCase(channels=1, sequences=17, length=256, taps=300),
)
LONG_CASES = (
    ConvolutionCase(channels=3, sequences=16, length=128, taps=128),
    ConvolutionCase(channels=2, sequences=40, length=250, taps=250, masked=True, strided=True),
    ConvolutionCase(channels=2, sequences=17, length=300, taps=300, masked=True),
    ConvolutionCase(channels=1, sequences=17, length=512, taps=512),
    ConvolutionCase(channels=1, sequences=3, length=512, taps=100, directions=1, residual=False, masked=True),
    ConvolutionCase(channels=1, sequences=2, length=700, taps=700),
    ConvolutionCase(channels=3, sequences=1, length=1024, taps=1024, masked=True),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_definition_and_nothing_unwritten(emulated: Emulated, case: ConvolutionCase) -> None:
    writes_everything(case, torch.bfloat16, "cuda")


@pytest.mark.full
@pytest.mark.parametrize("dtype", cuda_toeplitz.DTYPES)
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_the_definition_of_longer_ones(
    emulated: Emulated, case: ConvolutionCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_convolution, "family", lambda given: cuda_toeplitz)
    writes_everything(case, dtype, "cuda")


@pytest.mark.parametrize("case", [CASES[1], CASES[8]], ids=str)
def test_half_precision(emulated: Emulated, case: ConvolutionCase) -> None:
    hold_convolution(case, torch.float16, "cuda")


@pytest.mark.parametrize("length", [100, 160], ids=["narrow", "wide"])
def test_nothing_is_read_or_written_outside_of_operands(emulated: Emulated, length: int) -> None:
    emulated.edged = True
    case = ConvolutionCase(channels=2, sequences=33, length=length, taps=length, masked=True)
    with poisoned():
        slopes = slopes_of(OPS[0], case.operands(torch.bfloat16), "cuda")
    assert all(slope.isfinite().all() for slope in slopes)


def test_the_same_bits_in_whatever_order_threads_run(emulated: Emulated) -> None:
    operands = ConvolutionCase(channels=2, sequences=70, length=150, taps=150, masked=True).operands(torch.bfloat16)
    with seeded(emulated.made, 7):
        first = slopes_of(OPS[0], operands, "cuda")
    with seeded(emulated.made, 8):
        again = slopes_of(OPS[0], operands, "cuda")
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_wide_and_narrow_reads_give_the_same_bits(emulated: Emulated) -> None:
    operands = ConvolutionCase(channels=2, sequences=3, length=136, taps=136, masked=True).operands(torch.bfloat16)
    wide = slopes_of(OPS[0], operands, "cuda")
    z = operands[0]
    assert z is not None
    beside = torch.empty(z.numel() + 1, dtype=z.dtype)[1:].view(z.shape).copy_(z.detach())
    assert beside.data_ptr() % 16
    narrow = slopes_of(OPS[0], [beside.requires_grad_(), *operands[1:]], "cuda")
    assert all(torch.equal(one, other) for one, other in zip(wide, narrow, strict=True))


def test_taps_without_a_pair_of_positions_do_nothing_and_get_nothing(emulated: Emulated) -> None:
    length = 20
    operands = ConvolutionCase(channels=2, sequences=17, length=length, taps=30).operands(torch.bfloat16)
    plain = slopes_of(OPS[0], operands, "cuda")
    for number in (2, 3):
        taps = operands[number]
        assert taps is not None
        beyond = taps.detach().clone()
        beyond[0, :, length:] = beyond[1, :, length - 1 :] = float("nan")
        operands[number] = beyond.requires_grad_()
    made, *slopes = slopes_of(OPS[0], operands, "cuda")
    assert torch.equal(made, plain[0])
    for place in (2, 3):
        assert torch.equal(slopes[place], plain[place + 1])
        assert slopes[place][0, :, :length].all()
        assert not slopes[place][0, :, length:].any()
        assert not slopes[place][1, :, length - 1 :].any()


def test_whole_numbers_are_exact(emulated: Emulated) -> None:
    """Where nothing is rounded the result is the definition's to the last bit, at every position of every sequence."""
    channels, sequences, length = 2, 65, 200
    draw = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=draw).float()

    z, u = whole(3 * channels, sequences, length).bfloat16(), whole(channels, sequences, length).bfloat16()
    taps = [whole(2, channels, length) * (torch.rand(2, channels, length, generator=draw) < 0.05) for _ in range(2)]
    weight = torch.tensor([1.0, 0.0, 0.0]).repeat(3 * channels, 1)
    operands = [z, u, *taps, whole(channels), whole(channels), weight, torch.zeros(3 * channels)]
    exact = gated_long_conv(*(part.double() for part in operands), backend="reference")  # type: ignore[arg-type]
    assert float(exact.abs().max()) < 256
    assert torch.equal(gated_long_conv(*operands, backend="cuda").double(), exact)  # type: ignore[arg-type]


def test_launchers_refuse_what_they_cannot_do(emulated: Emulated) -> None:
    operands = ConvolutionCase(channels=2, sequences=2, length=1025, taps=3).operands(torch.bfloat16)
    given = Convolution(*operands)  # type: ignore[arg-type]
    assert cuda_toeplitz.convolution_lacks(given) == "Toeplitz kernels are for at most 1024 positions, not 1025"
    with pytest.raises(AssertionError, match="longer than 1024 positions"):
        cuda_toeplitz.convolve(given)
    z, u, taps, _, bias, *_ = ConvolutionCase(channels=2, sequences=65, length=16, taps=3).operands(torch.bfloat16)
    assert z is not None
    assert u is not None
    assert taps is not None
    assert cuda_toeplitz.splits_of(z) == 2
    with pytest.raises(AssertionError, match="another number of parts"):
        emulated.toeplitz_backward_residual(u, u, taps, bias, None, torch.empty_like(u), torch.empty(3, 2, 2, 3))


@pytest.mark.parametrize(
    ("dtype", "length", "module"),
    [
        (torch.bfloat16, cuda_convolution.SHORT, cuda_toeplitz),
        (torch.float16, 1, cuda_toeplitz),
        (torch.bfloat16, cuda_convolution.SHORT + 1, cuda_transform),
        (torch.float32, 1, cuda_transform),
    ],
)
def test_type_and_length_alone_choose_the_family(dtype: torch.dtype, length: int, module: ModuleType) -> None:
    given = Convolution(*ConvolutionCase(channels=1, sequences=1, length=length, taps=1).operands(dtype))  # type: ignore[arg-type]
    assert cuda_convolution.family(given) is module


def test_what_the_backend_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = ConvolutionCase(channels=1, sequences=1, length=4, taps=4).operands(torch.bfloat16)
    given = Convolution(*operands)  # type: ignore[arg-type]
    assert cuda_convolution.convolution_lacks(given) == "no GPU: cpu"
    doubles = given._replace(z=given.z.double())
    assert str(cuda_convolution.convolution_lacks(doubles)).endswith("not float64")
    monkeypatch.setattr(cuda, "lacks", lambda device: None)
    assert cuda_convolution.convolution_lacks(given) is None
