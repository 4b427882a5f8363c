"""Where the sources of the compiled kernels lie, and the library made of them.

A library's name carries a digest of the sources it was made of: one of others is not taken for theirs.
"""

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cramming.errors import UserError

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


@functools.cache
def digest() -> str:
    """Of everything a library is made of here; read once in a process, until a build forgets it."""
    return digest_of(TORCH_TARGET, *(f"{path.name}\0{path.read_text('utf-8')}" for path in (*headers(), *units())))


def digest_of(*parts: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:16]


def folders() -> tuple[Path, ...]:
    """Where a library may lie: beside the sources, or where those may not be written, among the user's caches."""
    beside = CSRC.parent / "lib"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return (beside,)
    return beside, cache / "budget_bert" / "kernels"


def is_shared(folder: Path) -> bool:
    """Whether other installations may keep their libraries in a folder, too: all of a user's have one cache."""
    return folder != folders()[0]


def writable() -> Path:
    """The folder a library is made in, which exists then: the first that takes a file.

    Raises:
        UserError: none does.
    """
    refused = []
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # permissions do not tell: of root, or of a disk that is read only
                return folder
        except OSError as error:
            refused.append(f"{folder}: {error.strerror}")
    raise UserError(f"nowhere to build the kernels ({'; '.join(refused)}): set XDG_CACHE_HOME to a folder of yours")


def library(folder: Path) -> Path:
    """The library of these sources in a folder; it may not be there."""
    return folder / f"{STEM}-{digest()}.so"


def found() -> Path | None:
    """The library of these sources, if there is one; of two the one made last, which has code for more."""
    there = {path: made for path in map(library, folders()) if (made := _modified(path)) is not None}
    return max(there, key=there.__getitem__, default=None)


def stale() -> Path | None:
    """A library of other sources, if there is one."""
    for folder in folders():
        with suppress(OSError):  # what may not be read is not there
            for path in sorted(folder.glob(f"{STEM}-*.so")):
                return path
    return None


def facts_file(library: Path) -> Path:
    """Where it stands what a library was made of."""
    return library.with_suffix(".json")


def facts(library: Path) -> dict[str, Any]:
    """What a library was made of: ``archs``, ``compiler``, ``objects``; nothing where that cannot be read."""
    try:
        found = json.loads(facts_file(library).read_text("utf-8"))
    except (OSError, ValueError):  # there is none, or half of it
        return {}
    return found if isinstance(found, dict) else {}


def architectures() -> list[str]:
    """What the library of these sources has code for, as far as is known."""
    path = found()
    archs = facts(path).get("archs") if path is not None else None
    return [name for name in archs if re.fullmatch(r"sm_\d{2,3}", str(name))] if isinstance(archs, list) else []


def runs_on(arch: str, archs: Sequence[str]) -> bool:
    """Whether code for ``archs`` runs on a GPU of architecture ``arch``, all of the form ``sm_90``.

    Machine code does on later GPUs of its generation (same major version), and the last one's intermediate code on
    all later ones (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").
    """
    own, built = int(arch[3:]), [int(name[3:]) for name in archs]
    return bool(built) and (max(built) <= own or any(n <= own and n // 10 == own // 10 for n in built))


def mark_used(library: Path) -> None:
    """Note that a library is in use, so that it does not count as old among those of other installations."""
    with suppress(OSError):
        os.utime(facts_file(library))


def last_used(path: Path) -> float:
    """When a file was made, or the library it belongs to used: seconds since 1970."""
    return max(_modified(path) or 0.0, _modified(facts_file(path)) or 0.0)


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
