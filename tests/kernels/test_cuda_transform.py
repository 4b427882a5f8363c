"""The transforms of ``gated_long_conv``, compiled for a processor, by way of the public function.

The whole of the cuda backend runs but torch's binding and the choice between its two families: what stands in the
binding's place calls the launchers.
"""

from ctypes import c_int64
from typing import Any

import pytest
import torch

from cramming.kernels import cuda, cuda_convolution, cuda_transform
from cramming.kernels.operands import Convolution
from tests.kernels.emulation import fenced, flag, library, pointer, run, seeded, size
from tests.kernels.kernel_cases import ConvolutionCase, hold_convolution
from tests.kernels.laws import CONVOLUTIONS, OPS, poisoned, slopes_of, writes_everything

SOURCES = ("transform_forward", "transform_back", "transform_back_long")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
HOPPER = cuda_transform.Room(block=232448, multiprocessor=233472, multiprocessors=2)
AMPERE = cuda_transform.Room(block=166912, multiprocessor=167936, multiprocessors=2)
ADA = cuda_transform.Room(block=101376, multiprocessor=102400, multiprocessors=2)


class Emulated:
    """In the place of ``torch.ops.cramming_kernels``: the same operations on tensors of a processor.

    Signals go to the kernels from memory that ends at a page which may not be touched, where ``edged``.
    """

    def __init__(self) -> None:
        self.made = library(SOURCES)
        self.edged = False
        self.kept: set[int] = set()  # what was ever kept in shared memory
        self.made.transform_points.restype = self.made.transform_bytes.restype = c_int64

    def transform_points(self, length: int) -> int:
        found: int = self.made.transform_points(size(length))
        return found

    def transform_bytes(self, length: int, filters: int, back: bool, kept: int, of_scratch: bool) -> int:
        found: int = self.made.transform_bytes(size(length), *map(flag, (filters, back, kept, of_scratch)))
        return found

    def transform_forward(self, *others: Any) -> None:
        self._run("transform_forward", others[:9], others[9:-2], others[-2:])

    def transform_back(self, *others: Any) -> None:
        self._run("transform_back", others[:10], others[10:-2], others[-2:])

    def _run(self, name: str, given: Any, results: Any, numbers: tuple[int, int]) -> None:
        z, _, taps, residual = given[:4]
        assert all(part is None or part.is_contiguous() for part in (*given, *results))
        self.kept.add(numbers[0])
        more = (0, 0) if residual is None else (residual.shape[0], residual.shape[2])
        sizes = (z.shape[0] // 3, *z.shape[1:], taps.shape[0], taps.shape[2], *more, KINDS[z.dtype], *numbers)
        copies = results
        if self.edged:
            given = [None if part is None else fenced(self.made, part.detach()) for part in given]
            copies = [fenced(self.made, part) if part is not None and part.numel() else part for part in results]
        run(getattr(self.made, name), *map(pointer, (*given, *copies)), *map(size, sizes), None)
        for part, copy in zip(results, copies, strict=True):
            if part is not None:
                part.copy_(copy)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """The cuda backend on a processor: its operations are emulated, and transforms do everything."""
    ops = Emulated()
    monkeypatch.setattr(cuda, "ops", lambda: ops)
    monkeypatch.setattr(cuda, "lacks", lambda device: None)
    monkeypatch.setattr(cuda_convolution, "family", lambda given: cuda_transform)
    monkeypatch.setattr(cuda_transform, "room_of", lambda device: HOPPER)
    return ops


# A transform of each size, with filters longer and shorter than the sequence, one sequence and more than a thread block
# takes at a time; lengths on both sides of powers of two.
CASES = (
    ConvolutionCase(channels=1, sequences=1, length=1, taps=1),
    ConvolutionCase(channels=3, sequences=3, length=2, taps=5, masked=True),
    ConvolutionCase(channels=2, sequences=2, length=3, taps=2, residual=False),
    ConvolutionCase(channels=2, sequences=17, length=17, taps=9, directions=1, masked=True),
    ConvolutionCase(channels=3, sequences=5, length=100, taps=128, masked=True, strided=True),
    ConvolutionCase(channels=1, sequences=33, length=127, taps=127),
    ConvolutionCase(channels=2, sequences=3, length=129, taps=129, masked=True),
    ConvolutionCase(channels=1, sequences=2, length=256, taps=256),
    ConvolutionCase(channels=3, sequences=9, length=500, taps=500, masked=True),
    ConvolutionCase(channels=3, sequences=5, length=1000, taps=300, masked=True),
    ConvolutionCase(channels=2, sequences=3, length=1500, taps=2000, masked=True),
)
LONG_CASES = (
    ConvolutionCase(channels=1, sequences=2, length=4096, taps=4096, masked=True),
    ConvolutionCase(channels=1, sequences=3, length=2049, taps=2049, masked=True),
    ConvolutionCase(channels=1, sequences=3, length=5000, taps=100, masked=True),
    ConvolutionCase(channels=1, sequences=2, length=8192, taps=8192),
    ConvolutionCase(channels=1, sequences=2, length=9001, taps=9001, masked=True),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_definition_and_nothing_unwritten(emulated: Emulated, case: ConvolutionCase) -> None:
    writes_everything(case, torch.float32, "cuda")


@pytest.mark.full
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_the_definition_of_long_sequences(emulated: Emulated, case: ConvolutionCase) -> None:
    writes_everything(case, torch.float32, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [CASES[4], CASES[9]], ids=str)
def test_narrow_types(emulated: Emulated, case: ConvolutionCase, dtype: torch.dtype) -> None:
    hold_convolution(case, dtype, "cuda")


@pytest.mark.full
@pytest.mark.parametrize("case", [case for case in CONVOLUTIONS if case.channels > 2], ids=str)
def test_the_grid_of_all_backends(emulated: Emulated, case: ConvolutionCase) -> None:
    hold_convolution(case, torch.float32, "cuda")


@pytest.mark.parametrize("case", [CASES[3], CASES[9], CASES[10]], ids=str)
def test_the_same_bits_wherever_spectra_lie_and_whoever_comes_first(
    emulated: Emulated, case: ConvolutionCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = case.operands(torch.float32)
    first = slopes_of(OPS[0], operands, "cuda")
    assert {1, 3} == emulated.kept
    # Where a thread block may ask for as little as the exchange takes, spectra and sums lie in global memory.
    least = emulated.transform_bytes(case.length, 2, True, 0, False)
    monkeypatch.setattr(cuda_transform, "room_of", lambda device: HOPPER._replace(block=least, multiprocessor=least))
    with seeded(emulated.made, 7):
        again = slopes_of(OPS[0], operands, "cuda")
    assert {0, 1, 3} == emulated.kept
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[8]], ids=str)
def test_nothing_beyond_the_signals_is_touched(emulated: Emulated, case: ConvolutionCase) -> None:
    operands = case.operands(torch.bfloat16)
    inside = slopes_of(OPS[0], operands, "cuda")
    emulated.edged = True
    with poisoned():
        edged = slopes_of(OPS[0], operands, "cuda")
    assert all(torch.equal(one, other) for one, other in zip(inside, edged, strict=True))


def test_sequences_are_shared_by_thread_blocks_without_changing_more_than_rounding(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = ConvolutionCase(channels=2, sequences=131, length=40, taps=40, masked=True).operands(torch.float32)
    shared = slopes_of(OPS[0], operands, "cuda")
    monkeypatch.setattr(cuda_transform, "room_of", lambda device: HOPPER._replace(multiprocessors=0))
    alone = slopes_of(OPS[0], operands, "cuda")
    for one, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(shared[0], alone[0])
    assert not torch.equal(shared[3], alone[3])  # gradients of taps are summed in another order


@pytest.mark.parametrize(
    ("length", "dtype", "room", "why"),
    [
        (16385, torch.float32, HOPPER, "at most 16384 positions, not 16385"),
        (100, torch.float64, HOPPER, "not float64"),
        (16384, torch.bfloat16, ADA, "of a thread block's shared memory: 101376 are there"),
        (16384, torch.bfloat16, AMPERE, None),
        (8192, torch.bfloat16, ADA, None),
    ],
)
@pytest.mark.usefixtures("emulated")
def test_what_they_lack(
    monkeypatch: pytest.MonkeyPatch, length: int, dtype: torch.dtype, room: cuda_transform.Room, why: str | None
) -> None:
    monkeypatch.setattr(cuda_transform, "room_of", lambda device: room)
    z, u = torch.empty(3, 1, length, dtype=dtype), torch.empty(1, 1, length, dtype=dtype)
    taps, one = torch.empty(2, 1, 4), torch.empty(1)
    given = Convolution(z, u, taps, taps, one, one, torch.empty(3, 3), torch.empty(3), None)
    found = cuda_transform.convolution_lacks(given)
    assert (found is None) == (why is None)
    assert why is None or why in str(found)
