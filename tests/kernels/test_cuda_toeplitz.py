"""The Toeplitz kernels of ``gated_long_conv``, compiled for a processor, by way of the public function.

The whole of the cuda backend runs but torch's binding: what stands in its place calls the launchers.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cramming.kernels import cuda, cuda_convolution, cuda_toeplitz
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
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    """The cuda backend on a processor: its operations are emulated, and no device lacks anything."""
    ops = Emulated()
    monkeypatch.setattr(cuda, "ops", lambda: ops)
    monkeypatch.setattr(cuda, "lacks", lambda device: None)
    yield ops


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
    ConvolutionCase(channels=1, sequences=1, length=1024, taps=1024, masked=True),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_definition_and_nothing_unwritten(emulated: Emulated, case: ConvolutionCase) -> None:
    writes_everything(case, torch.bfloat16, "cuda")


@pytest.mark.parametrize("case", [CASES[1], CASES[8]], ids=str)
def test_half_precision(emulated: Emulated, case: ConvolutionCase) -> None:
    hold_convolution(case, torch.float16, "cuda")
