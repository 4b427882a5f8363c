"""One process at a time for what several may want to make."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from cramming.progress import ProgressSink


@contextmanager
def locked(path: Path, progress: ProgressSink | None = None) -> Iterator[None]:
    """Hold the lock of ``path`` against other processes; the operating system frees it when this one dies.

    With ``progress``, waiting for another process is said.
    """
    lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if progress is not None:
            progress.note(f"another process is making {path.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
