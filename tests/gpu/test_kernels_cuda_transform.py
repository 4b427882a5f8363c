"""The compiled transforms of ``gated_long_conv`` on an NVIDIA GPU: every size of transform, in every type."""

import pytest
import torch

from cramming.kernels import cuda, cuda_convolution, cuda_transform
from tests.kernels.kernel_cases import ConvolutionCase
from tests.kernels.laws import CONVOLUTIONS, OPS, hold, slopes_of, writes_everything

pytestmark = pytest.mark.gpu
LONG = (
    ConvolutionCase(channels=5, sequences=9, length=1024, taps=1024, masked=True),
    ConvolutionCase(channels=5, sequences=9, length=2047, taps=3000, masked=True, strided=True),
    ConvolutionCase(channels=5, sequences=3, length=4096, taps=4096),
    ConvolutionCase(channels=5, sequences=3, length=8191, taps=8191, masked=True),
    ConvolutionCase(channels=4, sequences=2, length=16384, taps=16384, masked=True),
)


@pytest.fixture(autouse=True)
def transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do everything that the cuda backend does."""
    why = cuda.ensure_built("cuda")
    if why is not None:
        pytest.skip(why)
    monkeypatch.setattr(cuda_convolution, "family", lambda given: cuda_transform)


def _skip_where_too_long(case: ConvolutionCase) -> None:
    room = cuda_transform.room_of(torch.device("cuda")).block
    if cuda.ops().transform_bytes(case.length, 2, True, 0, False) > room:
        pytest.skip(f"{case.length} positions are too many for {room} bytes of shared memory")


@pytest.mark.parametrize("dtype", cuda_transform.DTYPES)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_the_definition_of_long_sequences(case: ConvolutionCase, dtype: torch.dtype) -> None:
    _skip_where_too_long(case)
    writes_everything(case, dtype, "cuda", "cuda")


@pytest.mark.parametrize("case", [case for case in CONVOLUTIONS if case.channels > 2], ids=str)
def test_the_definition_of_short_ones(case: ConvolutionCase) -> None:
    hold(case, torch.float32, "cuda", "cuda")


@pytest.mark.parametrize("case", LONG, ids=str)
def test_the_same_bits_wherever_spectra_lie(case: ConvolutionCase, monkeypatch: pytest.MonkeyPatch) -> None:
    _skip_where_too_long(case)
    operands = case.operands(torch.bfloat16, "cuda")
    first = slopes_of(OPS[0], operands, "cuda")
    again = slopes_of(OPS[0], operands, "cuda")
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    room = cuda_transform.room_of(torch.device("cuda"))
    least = cuda.ops().transform_bytes(case.length, 2, True, 0, False)
    monkeypatch.setattr(cuda_transform, "room_of", lambda device: room._replace(block=least, multiprocessor=least))
    elsewhere = slopes_of(OPS[0], operands, "cuda")
    assert all(torch.equal(one, other) for one, other in zip(first, elsewhere, strict=True))
