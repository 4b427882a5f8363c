"""Strict JSON and files that are either the old one or the new one, never half of each."""

import errno
import json
import math
import numbers
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cramming import faults
from cramming.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, or the person's share of it, is full."""
    return error.errno in _FULL


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn "disk full" inside the block into the one error a person may see.

    Raises:
        UserError: the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"no space left to write {path}; what was written before is intact: free some space and run the same "
            "command again"
        ) from error


def strict(value: Any, where: str = "") -> Any:
    """The same value in types every JSON reader accepts: NaN and infinities become null, tuples lists, numpy plain.

    Raises:
        TypeError: a leaf that JSON has no word for; its place is named.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): strict(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(
        f"{where.lstrip('.') or 'the value'} is a {type(value).__name__}, which JSON cannot hold: {value!r}"
    )


def dumps(value: Any, indent: int | None = None) -> str:
    """``value`` as strict JSON; keys keep their order."""
    return json.dumps(strict(value), indent=indent, allow_nan=False, ensure_ascii=False)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; the system may take fewer per call than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a crash at any moment leaves the old content or the new, complete.

    Passes the points ``<stem>-write``, ``-fsync`` and ``-rename`` at which a test can kill the process.

    Raises:
        UserError: the disk is full; the old file is untouched.
    """
    # A fixed name: what a killed process leaves behind is overwritten by the next one instead of piling up.
    part = path.with_name(f".{path.name}.part")
    with room_for(path):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            faults.point(f"{path.stem}-write")
            write_all(descriptor, data)
            faults.point(f"{path.stem}-fsync")
            os.fsync(descriptor)
        except OSError:
            part.unlink()
            raise
        finally:
            os.close(descriptor)
        faults.point(f"{path.stem}-rename")
        os.replace(part, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, not only the bytes behind them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
