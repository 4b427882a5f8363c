"""Reading an archive or a compressed file of others as a stream: nothing is unpacked, no name in it becomes a path."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cramming.errors import UserError
from cramming.progress import ProgressSink

_READ_BYTES = 1 << 20
_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"BZh": bz2.open,
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ": lzma.open,
}
#: What reading a damaged archive raises; its OSErrors have no number, those of a disk do.
DAMAGE = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error)


def archive_files(source: Path, progress: ProgressSink) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """The plain files of a tar archive, compressed or not, in the order they lie there.

    Each is read before the next one is asked for; ``progress`` is told the bytes read of ``source``.

    Raises:
        UserError: a damaged archive, or one with links, devices or names that lead out of a folder.
    """
    try:
        with open(source, "rb") as raw:
            opener = next((opener for magic, opener in _OPENERS.items() if raw.peek(8).startswith(magic)), None)
            counted = Counted(raw, progress)
            with opener(counted) if opener else counted as plain:
                yield from _plain_files(plain, source)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{source} is damaged or no tar archive ({error}); download it again") from error


def _plain_files(plain: Any, source: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with tarfile.open(fileobj=plain, mode="r|", bufsize=_READ_BYTES) as archive:
        for entry in archive:
            path = PurePosixPath(entry.name)
            if path.is_absolute() or ".." in path.parts or "\\" in entry.name:
                raise UserError(f"{source} has a file {entry.name!r} whose name leads out of its folder: do not use it")
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                raise UserError(f"{source}: {entry.name!r} is a link or a device, not a plain file: do not use it")
            file = archive.extractfile(entry)
            assert file is not None, "a plain file has content"
            yield path, file


class Counted(io.RawIOBase):
    """A file whose reading is told."""

    def __init__(self, file: IO[bytes], progress: ProgressSink) -> None:
        super().__init__()
        self._file = file
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._progress.advance(count)
        return int(count)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress.advance(len(data))
        return data
