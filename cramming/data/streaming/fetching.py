"""A file from where it lies to this machine: in pieces, and asked for again after what passes."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cramming.data.shards.shard import ShardFile
from cramming.errors import UserError
from cramming.remote import explained, filesystem, is_missing, is_past_end, join, local_path, passes

T = TypeVar("T")

CHUNK_BYTES = 8 << 20  # asked for at once: a cut connection costs no more, and a thread holds no more in memory
_MOST_INDEX_BYTES = 1 << 30
# Before asking again after so many failures in a row, times 0.5 to 1.5 by chance: many machines must not come back at
# the same moment. About two and a half minutes in all.
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 60.0)


class Patience:
    """Asks again after failures that pass.

    Args:
        sleep: waits so many seconds; tests count instead.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep

    def ask(self, request: Callable[[], T]) -> T:
        """The answer of ``request``, asked again for as long as ``WAITS_S`` says; its last error if there is none."""
        for wait in WAITS_S:
            try:
                return request()
            except Exception as error:
                if not passes(error):
                    raise
            self._sleep(wait * random.uniform(0.5, 1.5))
        return request()


def fetch(folder: str, file: ShardFile, target: Path, patience: Patience) -> None:
    """Bring a file of the folder at an address to ``target``. What arrived is still to be compared with the index.

    Raises:
        UserError: it is not there, may not be read, or cannot be reached.
        OSError: the disk is full.
    """
    address = join(folder, file.name)
    with explained(address):
        fs, path = filesystem(address)
        _download(fs, path, file.size, target, patience)


def read_small(folder: str, name: str, patience: Patience) -> bytes | None:
    """All of a file of the folder at an address; None: there is none.

    Raises:
        UserError: it may not be read, or cannot be reached, or the bucket is not there.
    """
    address = join(folder, name)
    here = local_path(address)
    if here is not None:
        try:
            return here.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{here} cannot be read: {error.strerror or error}") from error
    with explained(address):
        fs, path = filesystem(address)
        try:
            # As a part of it: asked for whole, S3's library asks for its size first, which is refused without a reason.
            return patience.ask(lambda: bytes(fs.cat_file(path, start=0, end=_MOST_INDEX_BYTES)))
        except Exception as error:
            if is_missing(error):
                return None
            raise


def _download(fs: Any, path: str, size: int, target: Path, patience: Patience) -> None:
    with open(target, "wb") as out:
        done = 0
        while done < size:
            end = min(done + CHUNK_BYTES, size)
            data = patience.ask(lambda done=done, end=end: _piece(fs, path, done, end, size))  # type: ignore[misc]
            if not data:
                return  # it ends before the index says so: the check that follows says it
            out.write(data)
            done += len(data)


def _piece(fs: Any, path: str, start: int, end: int, size: int) -> bytes:
    """Bytes ``start`` to ``end`` of a file, fewer where it ends before."""
    try:
        data: bytes = fs.cat_file(path, start=start, end=end)
    except OSError as error:
        if is_past_end(error):
            return b""
        raise
    # A server that gives no parts gives all.
    return data[start:end] if len(data) == size else data[: end - start]
