"""Compiled kernels run, checked, on a processor: a C++ compiler makes them of their sources, csrc/host stands for CUDA.

    made = library(("toeplitz",))
    out = torch.full_like(x, float("nan"))
    run(made.toeplitz_forward, pointer(x), pointer(out), size(64), None)

The launcher's own types are not declared anywhere: numbers are passed as ``size`` (int64_t), ``flag`` (int) or
``real`` (float), tensors by ``pointer``; every launch has a stream last, which here is None.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
CSRC = REPOSITORY / "cramming" / "kernels" / "csrc"
CACHE = REPOSITORY / ".pytest_cache" / "kernels"
FLAGS = (
    "-std=c++17", "-O2", "-g1", "-fPIC", "-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas", "-Werror",
    "-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error",
)  # fmt: skip
# Of kernels, not of the emulator, which is what its calls reach.
WATCHED = ("-fsanitize=thread",)
size, flag, real = ctypes.c_int64, ctypes.c_int, ctypes.c_float


@cache
def library(names: tuple[str, ...], folder: Path = CSRC) -> ctypes.CDLL:
    """Sources ``folder``/<name>.cu as one library of their launchers; compiled once for all tests and runs.

    Skips the test, visibly, where there is no C++ compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++, clang++, or the one that CXX names)")
    sources = [folder / f"{name}.cu" for name in names]
    CACHE.mkdir(parents=True, exist_ok=True)
    parts = [_object(compiler, source) for source in (*sources, *sorted((CSRC / "host").glob("*.cpp")))]
    made = CACHE / f"{'_'.join(names)}-{_digest(*(part.name for part in parts))}.so"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            fresh = made.with_suffix(".new")
            _call([compiler, "-shared", "-Wl,-Bsymbolic", "-o", str(fresh), *map(str, parts)])
            fresh.replace(made)
    loaded = ctypes.CDLL(str(made))
    loaded.simt_fenced.restype = loaded.simt_fenced_begin.restype = ctypes.c_void_p
    return loaded


def _object(compiler: str, source: Path) -> Path:
    """A source compiled, under a name that says of what: the folder's headers, the source, compiler and options."""
    headers = sorted({*CSRC.glob("*.h"), *CSRC.glob("*.cuh"), *CSRC.glob("host/*.h"), *source.parent.glob("*.h")})
    written = [path.read_text(encoding="utf-8") for path in (*headers, source)]
    flags = FLAGS if source.suffix == ".cpp" else (*FLAGS, *WATCHED)
    made = CACHE / f"{source.stem}-{_digest(compiler, *flags, str(source), *written)}.o"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            fresh = made.with_suffix(".new")
            words = [compiler, *flags, "-I", str(CSRC), "-x", "c++", "-c", str(source), "-o", str(fresh)]
            if "clang" not in compiler:
                words.insert(1, "-fno-gnu-unique")
            _call(words)
            fresh.replace(made)
    return made


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _call(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Of a tensor's first element; null for None."""
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def run(launcher: Any, *arguments: Any) -> None:
    """Call a launcher; what it, or the emulator, says is wrong fails the test."""
    launcher.restype = ctypes.c_char_p
    why = launcher(*arguments)
    assert why is None, located(why.decode())


def located(why: str) -> str:
    """A message with source lines in place of instructions' addresses, where binutils are at hand."""
    tool = shutil.which("addr2line")

    def line(found: re.Match[str]) -> str:
        words = [str(tool), "-i", "-s", "-e", *found.groups()]  # and what it was inlined into
        lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split("\n")
        return f"({next((line for line in lines if line and not line.startswith('simt.')), lines[0])})"

    return why if tool is None else re.sub(r"\[(\S+)\+(0x[0-9a-f]+)\]", line, why)


def fenced(made: ctypes.CDLL, tensor: Tensor) -> Tensor:
    """The same values, contiguous, ending at a page that nothing may touch: to read or write behind them is found."""
    count = tensor.numel() * tensor.element_size()
    place = ctypes.c_void_p(made.simt_fenced(ctypes.c_uint64(count)))
    memory = (ctypes.c_uint8 * max(count, 1)).from_address(made.simt_fenced_begin(place))
    weakref.finalize(memory, made.simt_fenced_end, place)
    flat = torch.frombuffer(memory, dtype=torch.uint8, count=count)
    return flat.view(tensor.dtype).view(tensor.shape).copy_(tensor)


@contextmanager
def seeded(made: ctypes.CDLL, seed: int) -> Iterator[None]:
    """Threads and blocks take turns in the order of this seed, 1 otherwise."""
    made.simt_seed(ctypes.c_uint64(seed))
    try:
        yield
    finally:
        made.simt_seed(ctypes.c_uint64(1))
