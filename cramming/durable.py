"""Files that are whole or absent, whatever moment the machine is stopped at."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cramming import faults
from cramming.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, or the person's share of it, is full."""
    return error.errno in _FULL


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn "disk full" inside the block into the one error a person may see; other errors pass.

    Raises:
        UserError: the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"no space left to write {path}; what was finished before is intact: make room (or set base_dir or "
            "data_dir to a folder on another disk) and run the same command again"
        ) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; the system may take fewer per call than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: Path, parts: Iterable[bytes], fault: str) -> None:
    """Replace ``path`` by ``parts``: a crash at any moment leaves the old content or the new, complete.

    Two processes must not do this to one file at the same time: hold a lock where they might.
    ``fault`` names this kind of file for the tests, which kill the process at ``<fault>-write``, ``-fsync`` and
    ``-rename``.

    Raises:
        UserError: the disk is full; the old file is untouched.
    """
    # A fixed name: what a killed process leaves behind is overwritten by the next one instead of piling up.
    unfinished = path.with_name(f".{path.name}.part")
    with room_for(path):
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            faults.point(f"{fault}-write")
            for part in parts:
                write_all(descriptor, part)
            faults.point(f"{fault}-fsync")
            os.fsync(descriptor)
        except OSError:
            unfinished.unlink()
            raise
        finally:
            os.close(descriptor)
        replace(unfinished, path, fault)


def write_atomically(path: Path, data: bytes) -> None:
    """``write_file`` of one piece; the points to be killed at are named for the file's stem.

    Raises:
        UserError: the disk is full; the old file is untouched.
    """
    write_file(path, [data], path.stem)


def replace(source: Path, target: Path, fault: str) -> None:
    """Rename a file or a folder for good; passes the point ``<fault>-rename``."""
    faults.point(f"{fault}-rename")
    os.replace(source, target)
    sync_folder(target.parent)


def sync(file: Path, fault: str) -> None:
    """Bring a written file to the disk; passes the point ``<fault>-fsync``."""
    faults.point(f"{fault}-fsync")
    _sync(file)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, not only the bytes behind them."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
