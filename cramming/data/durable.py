"""Files that are whole or absent, whatever moment the machine is stopped at."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cramming import faults
from cramming.errors import UserError


def write_file(path: Path, parts: Iterable[bytes], fault: str) -> None:
    """Write ``parts`` to ``path``: a temporary file, synced, renamed.

    ``fault`` names this kind of file for the kill tests, which stop at ``<fault>-fsync`` and ``<fault>-rename``.

    Raises:
        UserError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_full_named(path), open(temporary, "wb") as file:
        for part in parts:
            file.write(part)
        sync(file.fileno(), fault)
    replace(temporary, path, fault)


def sync(descriptor: int, fault: str) -> None:
    """Bring an open file to the disk."""
    faults.point(f"{fault}-fsync")
    os.fsync(descriptor)


def replace(source: Path, target: Path, fault: str) -> None:
    """Rename ``source`` to ``target`` for good."""
    faults.point(f"{fault}-rename")
    os.replace(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn "no space left" into one line; other errors pass.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full while writing {path}; nothing finished is lost: "
                "make room (or set data_dir to another disk) and run the same command again"
            ) from error
        raise
