"""What the emulator says a kernel computes, a GPU computes: the kernels of emulated.cu on both, bit by bit."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.kernels import cuda, toolchain
from tests.kernels.emulation import CSRC, flag, library, pointer, run, size

pytestmark = pytest.mark.gpu
KERNELS = Path(__file__).resolve().parents[1] / "kernels"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels as nvcc compiles them for this GPU."""
    try:
        nvcc = toolchain.located()
    except UserError as error:
        pytest.skip(str(error))
    made = tmp_path_factory.mktemp("real") / "emulated.so"
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    words = [str(nvcc), "-std=c++17", "-O3", f"-arch={arch}", "-Xcompiler", "-fPIC", "-shared", "-I", str(CSRC)]
    words += [word for root in (nvcc.parents[1] / "lib64", nvcc.parents[1] / "lib") for word in ("-L", str(root))]
    done = subprocess.run(
        [*words, "-o", str(made), str(KERNELS / "emulated.cu")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


def permuted(count: int, seed: int) -> Tensor:
    """Whole numbers around zero, every one another."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)) - count // 2


def both(real: ctypes.CDLL, launcher: str, tensors: list[Tensor], *more: object) -> None:
    """Run a launcher here and there on the same tensors; what it leaves in them is the same."""
    emulated = library(("emulated",), KERNELS)
    on_gpu = [tensor.cuda() for tensor in tensors]
    run(getattr(emulated, launcher), *map(pointer, tensors), *more, None)
    run(getattr(real, launcher), *map(pointer, on_gpu), *more, None)
    torch.cuda.synchronize()
    for ours, theirs in zip(tensors, on_gpu, strict=True):
        assert torch.equal(ours.nan_to_num(7.0), theirs.cpu().nan_to_num(7.0))


def test_shuffles_and_votes(real: ctypes.CDLL) -> None:
    both(real, "shuffles_launch", [permuted(32, 0).int(), torch.full((240,), -1, dtype=torch.int32)])


def test_barriers(real: ctypes.CDLL) -> None:
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    both(real, "tree_launch", [x, torch.zeros(3)], size(3), flag(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrix_products(real: ctypes.CDLL, dtype: torch.dtype) -> None:
    a, b = permuted(256, 1).to(dtype), permuted(128, 2).to(dtype)
    c = torch.arange(128.0) * 1000
    both(real, "product_launch", [a, b, c, torch.zeros(128)], flag(dtype == torch.float16))


def test_matrices_read_from_shared_memory(real: ctypes.CDLL) -> None:
    both(real, "loaded_product_launch", [permuted(256, 3).bfloat16(), permuted(128, 4).bfloat16(), torch.zeros(16, 8)])


def test_copies_under_way(real: ctypes.CDLL) -> None:
    x = torch.randn(130, 4, generator=torch.Generator().manual_seed(0))
    both(real, "pipelined_launch", [x, torch.zeros(32)], size(130), flag(32), flag(5), flag(0))


def test_conversions(real: ctypes.CDLL) -> None:
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(5)).int().view(torch.float32)
    x = torch.cat([bits[~bits.isnan()], torch.arange(-70000, 70000, 13) / 2.0])
    n = len(x)
    results = [torch.zeros(n, dtype=torch.int16), torch.zeros(n, dtype=torch.int16), torch.zeros(n, 2)]
    both(real, "converted_launch", [x, *results, torch.zeros(n, dtype=torch.int32)], size(n))


def test_the_compiled_library_runs_on_this_device_and_on_a_stream_of_its_own() -> None:
    why = cuda.ensure_built("cuda")
    if why is not None:
        pytest.skip(why)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert cuda.ops().probe(torch.cuda.current_device()) == ""
    assert "nvcc" in cuda.ops().build_info()
