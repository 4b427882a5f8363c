"""The kernels of ``triton_convolution`` compile, without a GPU, as they would be launched, and keep to registers.

Interpreted functions cannot be compiled, so this has a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton")

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = {80: 163, 90: 227, 120: 99}  # KB that a program may have
SIZES = ((128, "bfloat16"), (512, "bfloat16"), (2048, "bfloat16"), (33, "float16"), (128, "float32"))


class Launch(NamedTuple):
    """A kernel and what it would be launched with."""

    kernel: Any
    given: tuple[Any, ...]
    options: dict[str, Any]


class Recorded:
    """In a kernel's place."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **options: self.launches.append(Launch(self.kernel, given, options))


def launches(length: int, dtype: str, masked: bool) -> Iterator[Launch]:
    """Forward and backward, of every kernel once for each way it is used."""
    import torch

    from cramming.kernels import triton_convolution
    from cramming.kernels.operands import Convolution

    found: list[Launch] = []
    before = triton_convolution.kernels, triton_convolution.sums
    for name, module in zip(("kernels", "sums"), before, strict=True):
        kernels = {key: value for key, value in vars(module).items() if isinstance(value, type(before[0].mix))}
        stand_in = vars(module) | {key: Recorded(kernel, found) for key, kernel in kernels.items()}
        setattr(triton_convolution, name, type("Module", (), stand_in))
    shapes = (48, 128, length), (16, 128, length), (2, 16, length), (2, 16, length), (16,), (16,), (48, 3), (48,)
    wide = (torch.float32,) * 6
    types = (getattr(torch, dtype),) * 2 + wide
    parts = [torch.empty(shape, dtype=kind) for shape, kind in zip(shapes, types, strict=True)]
    given = Convolution(*parts, torch.ones(128, length, dtype=torch.bool) if masked else None)
    triton_convolution.convolve_back(given, triton_convolution.convolve(given))
    triton_convolution.kernels, triton_convolution.sums = before
    once = {(launch.kernel.__name__, str(launch.options)): launch for launch in found}
    yield from once.values()


def usage(architecture: int, launch: Launch) -> dict[str, Any]:
    """Registers, bytes of stack and of shared memory of a kernel as compiled."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8"}
    options = {"num_warps": 4} | {key: value for key, value in launch.options.items() if key.startswith("num_")}
    constants = {key: value for key, value in launch.options.items() if not key.startswith("num_")}
    signature = dict.fromkeys(constants, "constexpr")
    aligned = {}
    for place, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.given, strict=False)):
        if isinstance(value, int) and value == 1:
            constants[name], signature[name] = 1, "constexpr"
        else:
            signature[name] = "i32" if isinstance(value, int) else names[value.dtype]
            if not isinstance(value, int) or value % 16 == 0:
                aligned[place,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(made.asm["cubin"])
        said = subprocess.run([tools / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
    registers, stack = (int(re.search(rf"{word}:(\d+)", said.stdout)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    return {
        "kernel": launch.kernel.__name__,
        "threads": 32 * options["num_warps"],
        "registers": registers,
        "stack": stack,
        "shared": made.metadata.shared,
    }


def every(architecture: int) -> list[dict[str, Any]]:
    """All kernels of all sizes, with a mask; those of the first size without one, too."""
    asked = [(*size, True) for size in SIZES] + [(*SIZES[0], False)]
    return [
        {"length": length, "type": dtype, "masked": masked, **usage(architecture, launch)}
        for length, dtype, masked in asked
        for launch in launches(length, dtype, masked)
    ]


@pytest.mark.full
@pytest.mark.parametrize("architecture", SHARED)
def test_every_kernel_compiles_and_fits(architecture: int, tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_triton_convolution_compiled", str(architecture)],
        cwd=REPOSITORY,
        env=plain | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    kernels = {"lay_out_taps", "gate", "mix", "slopes", "sum_short", "lag_products", "sum_lags"}
    assert {one["kernel"] for one in found} == kernels
    for one in found:
        assert one["shared"] <= SHARED[architecture] * 1024, one
        assert one["stack"] <= 64, f"registers are spilled: {one}"
        assert one["threads"] * one["registers"] <= 2**16, one


if __name__ == "__main__":
    print(json.dumps(every(int(sys.argv[1]))))
