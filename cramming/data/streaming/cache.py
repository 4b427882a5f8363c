"""The folder shards are kept in on this machine: a limited size, the least recently used go first, shared by processes.

A file in it is whole or absent. Processes agree by locks of the operating system (flock), which vanish with a process:

* who uses a file holds it open with a shared lock; who wants to delete it tries for an exclusive one, and leaves it;
* who makes a file holds ``<name>.making`` exclusively, a placeholder as large as all it may need while it is made;
* room is counted and made under the lock of the folder, ``.lock``.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cramming.durable import is_full
from cramming.errors import UserError
from cramming.text import quantity

KEPT, MAKING, WORK = ".rows", ".making", ".work"
_PATIENCE = 600  # times that room is looked for ...
_WAIT_S = 0.2  # ... with so long between: what other processes are reading is given back within a step


class ShardCache:
    """Files by name, below ``limit`` bytes together.

    Args:
        folder: made if it is not there.
        limit: bytes.
        sleep: waits so many seconds.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, limit: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self.folder = folder
        self.limit = limit
        self._sleep = sleep
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        except OSError as error:
            raise UserError(
                f"data.cache_dir={folder} cannot be written ({error.strerror}); set it to a folder of your own"
            ) from error

    def obtain(self, name: str, size: int, needed: int, make: Callable[[Path], Path]) -> BinaryIO:
        """The file ``name``, open and safe from deletion until it is closed.

        Args:
            name: one word.
            size: its bytes; one of another size is damaged and made again.
            needed: bytes on the disk while it is made, its own included.
            make: makes it in the empty folder it is given and says where it lies there; not called if it is kept.

        Raises:
            UserError: there is no room, within the limit or on the disk.
        """
        while True:
            kept = self._kept(name, size)
            if kept is not None:
                return kept
            with self._making(name) as mine:
                if mine is None:
                    continue  # another made it meanwhile
                self._reserve(name, needed, mine)
                try:
                    return self._made(name, make, mine)
                except OSError as error:
                    if not is_full(error):
                        raise
                    if not self._free(needed, name):
                        raise UserError(
                            f"no space left in data.cache_dir={self.folder} for {quantity(needed, 'B')} more; make "
                            "room, or set data.cache_dir to another disk; what was trained is not lost"
                        ) from error

    def size(self) -> int:
        """Bytes of all files, those reserved for files being made included."""
        return sum(status.st_size for _, status in self._entries())

    def _entries(self) -> list[tuple[str, os.stat_result]]:
        """Name and state of every file that is counted, as far as it is still there."""
        found = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith((KEPT, MAKING)):
                with suppress(FileNotFoundError):  # its maker has ended meanwhile
                    found.append((entry.name, entry.stat()))
        return found

    def _kept(self, name: str, size: int) -> BinaryIO | None:
        path = self.folder / f"{name}{KEPT}"
        try:
            file = open(path, "rb")  # noqa: SIM115 (stays open while it is used)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        status = os.fstat(file.fileno())
        if status.st_nlink == 0 or status.st_size != size:  # deleted between the two calls, or by a power cut
            if status.st_nlink:
                path.unlink(missing_ok=True)
            file.close()
            return None
        os.utime(file.fileno())
        return file

    @contextmanager
    def _making(self, name: str) -> Iterator[BinaryIO | None]:
        """The placeholder of a file nobody else is making now; None if another was, and has ended."""
        path = self.folder / f"{name}{MAKING}"
        with open(path, "ab") as placeholder:
            fcntl.flock(placeholder, fcntl.LOCK_EX)  # waits for who is making it
            gone = os.fstat(placeholder.fileno()).st_nlink == 0  # what lies there now is another's
            if gone or (self.folder / f"{name}{KEPT}").exists():
                if not gone:
                    path.unlink(missing_ok=True)
                yield None
                return
            try:
                yield placeholder
            finally:
                shutil.rmtree(self.folder / f"{name}{WORK}", ignore_errors=True)
                path.unlink(missing_ok=True)

    def _made(self, name: str, make: Callable[[Path], Path], placeholder: BinaryIO) -> BinaryIO:
        work = self.folder / f"{name}{WORK}"
        shutil.rmtree(work, ignore_errors=True)  # of one that was killed
        work.mkdir()
        path = make(work)
        file = open(path, "rb")  # noqa: SIM115 (stays open while it is used)
        try:
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_SH)  # held before anyone can find it
            with self._locked():
                os.replace(path, self.folder / f"{name}{KEPT}")
                placeholder.truncate(0)
        except BaseException:
            file.close()
            raise
        return file

    def _reserve(self, name: str, needed: int, placeholder: BinaryIO) -> None:
        for _ in range(_PATIENCE):
            with self._locked():
                over = self.size() + needed - self.limit
                if over <= 0 or self._delete(over, name) >= over:
                    placeholder.truncate(needed)  # takes no room, but is counted
                    return
            self._sleep(_WAIT_S)
        raise UserError(
            f"data.cache_limit={quantity(self.limit, 'B')} of {self.folder} is held by shards in use, and "
            f"{quantity(needed, 'B')} more are needed; raise it, or give each run a data.cache_dir of its own"
        )

    def _free(self, wanted: int, name: str) -> int:
        with self._locked():
            return self._delete(wanted, name)

    def _delete(self, wanted: int, name: str) -> int:
        """Delete what nobody uses, the least recently used first, until ``wanted`` bytes are free: how many are."""
        freed = 0
        # What was left by those who were killed while they made it goes first.
        order = sorted((name.endswith(KEPT), status.st_mtime_ns, name) for name, status in self._entries())
        for _, _, found in order:
            if freed >= wanted:
                break
            if found != f"{name}{MAKING}":
                freed += self._delete_unused(self.folder / found)
        return freed

    def _delete_unused(self, path: Path) -> int:
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = os.fstat(file.fileno()).st_size
                shutil.rmtree(path.with_suffix(WORK), ignore_errors=True)
                path.unlink()
                return size
        except (FileNotFoundError, BlockingIOError):
            return 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
