"""Where the sources of the compiled kernels lie, and the library made of them.

A library's name carries a digest of the sources it was made of: one of others is not taken for theirs.
"""

import hashlib
import os
from pathlib import Path

CSRC = Path(__file__).resolve().parent / "csrc"
STEM = "cramming_kernels"
# The oldest torch the library runs with: its stable interface as of 2.11 and nothing newer.
TORCH_TARGET = "0x020b000000000000"


def units() -> list[Path]:
    """What is compiled: kernels, and what binds them to torch."""
    return sorted([*CSRC.glob("*.cu"), *CSRC.glob("*_bindings.cpp")])


def headers() -> list[Path]:
    """What they include of ours."""
    return sorted([*CSRC.glob("*.h"), *CSRC.glob("*.cuh")])


def digest() -> str:
    """Of everything a library is made of here."""
    return digest_of(TORCH_TARGET, *(f"{path.name}\0{path.read_text('utf-8')}" for path in (*headers(), *units())))


def digest_of(*parts: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:16]


def folders() -> tuple[Path, ...]:
    """Where a library may lie: beside the sources, or where those may not be written, among the user's caches."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return CSRC.parent / "lib", cache / "budget_bert" / "kernels"


def writable() -> Path:
    """The folder a library is made in, which exists then."""
    beside, cache = folders()
    if not os.access(beside if beside.exists() else beside.parent, os.W_OK):
        beside = cache
    beside.mkdir(parents=True, exist_ok=True)
    return beside


def library(folder: Path) -> Path:
    """The library of these sources in a folder; it may not be there."""
    return folder / f"{STEM}-{digest()}.so"


def found() -> Path | None:
    """The library of these sources, if there is one."""
    return next((path for path in map(library, folders()) if path.exists()), None)


def stale() -> Path | None:
    """A library of other sources, if there is one."""
    return next((path for folder in folders() for path in sorted(folder.glob(f"{STEM}-*.so"))), None)
