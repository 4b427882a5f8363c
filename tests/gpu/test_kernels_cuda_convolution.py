"""``gated_long_conv`` by the compiled kernels on an NVIDIA GPU, Toeplitz products and transforms alike.

Every law of ``tests/kernels/laws.py``, lengths to 16,384, graphs, streams, other devices, and NVIDIA's checkers of
memory and races over a run of both families.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cramming.kernels import cuda, cuda_convolution, cuda_toeplitz, gated_long_conv
from cramming.kernels.operands import Convolution
from tests.gpu.device_laws import replays_as_it_runs, waits_for_its_stream
from tests.kernels import laws
from tests.kernels.kernel_cases import BOUNDS, ConvolutionCase
from tests.kernels.laws import OPS

pytestmark = pytest.mark.gpu
REPOSITORY = Path(__file__).resolve().parents[2]
TYPES = (torch.float32, torch.bfloat16, torch.float16)

GRID = tuple(
    ConvolutionCase(channels, sequences, length, taps, masked=masked)
    for channels, sequences, length, taps, masked in (
        (5, 1, 100, 100, False),
        (4, 64, 128, 128, False),
        (3, 65, 128, 200, True),
        (3, 17, 255, 255, True),
        (3, 33, 256, 100, False),
        (3, 17, 384, 384, True),
        (3, 16, 512, 512, False),
        (3, 3, 511, 700, True),
        (3, 3, 513, 513, True),
        (3, 2, 1000, 1000, False),
        (2, 2, 4096, 4096, True),
        (2, 1, 8191, 8191, False),
        (2, 1, 16384, 16384, True),
    )
)
# Seen by the checkers: short enough for a program that is a hundred times slower under them.
CHECKED = """
import torch
from tests.kernels.kernel_cases import ConvolutionCase
from tests.kernels.laws import OPS, slopes_of
for dtype, length in ((torch.bfloat16, 136), (torch.bfloat16, 33), (torch.float32, 40), (torch.bfloat16, 600)):
    case = ConvolutionCase(channels=2, sequences=17, length=length, taps=length, masked=True)
    slopes_of(OPS[0], case.operands(dtype, "cuda"), "cuda")
torch.cuda.synchronize()
"""


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Skips where there is no library and none can be made."""
    why = cuda.ensure_built("cuda")
    if why is not None:
        pytest.skip(why)


def able(case: ConvolutionCase, dtype: torch.dtype) -> None:
    """Skips what this backend leaves to the next one on this device."""
    why = cuda_convolution.convolution_lacks(Convolution(*case.operands(dtype, "cuda")))  # type: ignore[arg-type]
    if why is not None:
        pytest.skip(why)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", GRID, ids=str)
def test_the_definition_and_nothing_unwritten(case: ConvolutionCase, dtype: torch.dtype) -> None:
    able(case, dtype)
    laws.writes_everything(case, dtype, "cuda", "cuda")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", laws.CONVOLUTIONS, ids=str)
def test_small_sizes(case: ConvolutionCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few 16-bit roundings most may go one way: their bounds are twice as wide."""
    if dtype != torch.float32:
        monkeypatch.setitem(BOUNDS, dtype, 2 * BOUNDS[dtype])
    laws.writes_everything(case, dtype, "cuda", "cuda")


@pytest.mark.parametrize("length", [600, 1024])
def test_toeplitz_products_beyond_the_lengths_they_are_asked_for(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_convolution, "family", lambda given: cuda_toeplitz)
    case = ConvolutionCase(channels=3, sequences=17, length=length, taps=length, masked=True)
    laws.writes_everything(case, torch.bfloat16, "cuda", "cuda")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_laws(dtype: torch.dtype) -> None:
    laws.does_the_same_twice(OPS[0], dtype, "cuda", "cuda")
    laws.leaves_operands_alone(OPS[0], dtype, "cuda", "cuda")
    laws.can_be_compiled(OPS[0], dtype, "cuda", "cuda")
    laws.torch_finds_it_in_order(OPS[0], dtype, "cuda", "cuda")
    laws.takes_kept_spectra(dtype, "cuda", "cuda")


def test_laws_of_other_types() -> None:
    laws.takes_autocasts_type(OPS[0], "cuda", "cuda")
    laws.can_be_differentiated_twice(OPS[0], "cuda", "cuda")
    laws.takes_nothing(OPS[0], "cuda", "cuda")


@pytest.mark.parametrize(("dtype", "length"), [(torch.bfloat16, 128), (torch.bfloat16, 200), (torch.float32, 300)])
def test_graphs_and_streams(dtype: torch.dtype, length: int) -> None:
    operands = ConvolutionCase(5, 33, length, length, masked=True).operands(dtype, "cuda")
    replays_as_it_runs(gated_long_conv, operands, "cuda")
    waits_for_its_stream(gated_long_conv, operands, "cuda")


@pytest.mark.parametrize("length", [128, 520])
def test_the_same_bits_many_times(length: int) -> None:
    """Of as many sequences as fill the device several times over: races that show at all show here."""
    operands = ConvolutionCase(96, 256, length, length, masked=True).operands(torch.bfloat16, "cuda")
    first = laws.slopes_of(OPS[0], operands, "cuda")
    for _ in range(10):
        again = laws.slopes_of(OPS[0], operands, "cuda")
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_device_of_its_operands() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    laws.hold(GRID[2], torch.bfloat16, "cuda", "cuda:1")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_nvidias_checkers_find_nothing(tool: str) -> None:
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("no compute-sanitizer")
    # Every tensor in memory of its own: what lies beside it is nobody's.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    words = [checker, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", CHECKED]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
