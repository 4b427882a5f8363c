"""The kernels of ``triton_glu`` compile, without a GPU, for every one they are meant for, as they would be launched.

Interpreted functions cannot be compiled, so this has a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB that a program may have
WIDTHS = {"80M": 192, "110M": 240, "341M": 448}


class Recorded:
    """In a kernel's place: writes down what it would be launched with."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, tuple, dict[str, Any]]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **options: self.launches.append((self.kernel, given, options))


def launches(architecture: int, width: int, dtype: Any, keep: bool) -> list[tuple[Any, tuple, dict[str, Any]]]:
    """What a GPU of an architecture is asked to do, forward and, if ``keep``, backward."""
    import torch

    from cramming.kernels import triton_glu
    from cramming.kernels.operands import Glu

    found: list[tuple[Any, tuple, dict[str, Any]]] = []
    properties = type("Properties", (), {"shared_memory_per_block_optin": SHARED[architecture] * 1024})
    torch.cuda.get_device_properties = lambda device: properties
    torch.cuda.get_device_capability = lambda device: divmod(architecture, 10)
    for name in ("through", "between", "back"):
        kernel = getattr(triton_glu, name)
        setattr(triton_glu, name, Recorded(kernel.kernel if isinstance(kernel, Recorded) else kernel, found))
    shapes = ((8, 4 * width), (2, 8 * width, width), (2, 8 * width, width), (4, width, 4 * width), (4 * width,))
    triton_glu.FEW = 0
    given = Glu(*(torch.zeros(shape, dtype=dtype) for shape in shapes))
    out, kept = triton_glu.glu_forward(given, keep)
    if keep:
        triton_glu.glu_back(given, kept, out)
    return found


def usage(architecture: int, launch: tuple[Any, tuple, dict[str, Any]]) -> dict[str, Any]:
    """Registers, bytes of stack and of shared memory of a kernel as compiled."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, given, options = launch
    names = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
    signature, constants, aligned = {}, {}, {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, given, strict=True)):
        signature[name] = "i32" if name == "tokens" else "constexpr"
        if isinstance(value, torch.Tensor):
            signature[name] = names[value.dtype]
            aligned[place,] = [["tt.divisibility", 16]]
        elif name != "tokens":
            constants[name] = value
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(made.asm["cubin"])
        said = subprocess.run([tools / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
    registers, stack = (int(re.search(rf"{word}:(\d+)", said.stdout)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    return {
        "kernel": kernel.__name__,
        "threads": 32 * options["num_warps"],
        "registers": registers,
        "stack": stack,
        "shared": made.metadata.shared,
    }


def every(architecture: int) -> list[dict[str, Any]]:
    """All kernels of all sizes, in 16 bits kept and not, and in float32."""
    import torch

    asked = [(width, torch.bfloat16, keep) for width in WIDTHS.values() for keep in (False, True)]
    asked += [(WIDTHS["80M"], torch.float32, True), (17, torch.float16, True)]
    return [
        {"width": width, "type": str(dtype), "keep": keep, **usage(architecture, launch)}
        for width, dtype, keep in asked
        for launch in launches(architecture, width, dtype, keep)
    ]


@pytest.mark.full
@pytest.mark.parametrize("architecture", SHARED)
def test_every_kernel_compiles_and_fits(architecture: int, tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_triton_glu_compiled", str(architecture)],
        cwd=REPOSITORY,
        env=plain | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert {one["kernel"] for one in found} == {"through", "between", "back"}
    for one in found:
        assert one["shared"] <= SHARED[architecture] * 1024, one
        assert one["stack"] <= 64, f"registers are spilled: {one}"
        if one["kernel"] == "back":
            assert 2 * one["threads"] * one["registers"] <= 2**16, f"two programs do not fit: {one}"


if __name__ == "__main__":
    print(json.dumps(every(int(sys.argv[1]))))
