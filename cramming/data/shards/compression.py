"""Compressed shards: none, zstd, gz, br, bz2 and snappy, the first four with a level behind a colon (``zstd:7``)."""

import bz2
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cramming.data.shards.shard import Shard
from cramming.errors import UserError
from cramming.suggest import nearest

# Levels each may have and the one it has where none is given, as in the original library.
_LEVELS = {"zstd": (1, 22, 3), "gz": (0, 9, 9), "br": (0, 11, 11), "bz2": (1, 9, 9), "snappy": None}
_READ_BYTES = 1 << 20


def parse_compression(name: str, where: str) -> tuple[str, int]:
    """``zstd:7`` -> (``zstd``, 7). The first is the suffix of its files, too; snappy has level 0.

    Raises:
        UserError: no such compression, or no such level.
    """
    family, colon, level = name.partition(":")
    if family not in _LEVELS:
        raise UserError(f"{where}: compression {name!r} is not known{nearest(family, _LEVELS)}")
    levels = _LEVELS[family]
    if not colon:
        return family, levels[2] if levels else 0
    if levels is None:
        raise UserError(f"{where}: compression {name!r}: {family} has no levels")
    if not level.isascii() or not level.isdigit() or not levels[0] <= int(level) <= levels[1]:
        raise UserError(f"{where}: compression {name!r}: levels of {family} are {levels[0]} to {levels[1]}")
    return family, int(level)


def compress(name: str, data: bytes) -> bytes:
    """``data`` compressed; the same bytes whenever and wherever the same library versions do it."""
    family, level = parse_compression(name, "compression")
    if family == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=level).compress(data)
    if family == "gz":
        return gzip.compress(data, level, mtime=0)  # without the time of day
    if family == "bz2":
        return bz2.compress(data, level)
    import pyarrow

    codec = pyarrow.Codec("brotli", level) if family == "br" else pyarrow.Codec("snappy")
    return bytes(codec.compress(data, asbytes=True))


def decompressed(shard: Shard, compressed: Path, raw: Path) -> None:
    """Decompress a shard's file. ``raw`` appears when it is whole and as large as the index says, not before.

    Memory is constant, but for snappy, whose files are held whole.

    Raises:
        UserError: it is damaged.
    """
    assert shard.compression is not None, "it is not compressed"
    family, _ = parse_compression(shard.compression, str(compressed))
    unfinished = raw.with_name(f".{raw.name}.part")
    try:
        with damage(compressed), open(unfinished, "wb") as out:
            if family == "snappy":
                out.write(_unsnapped(compressed, shard.raw.size))
            else:
                with open(compressed, "rb") as file:
                    _copy(_stream(family, file), out, shard.raw.size)
        size = unfinished.stat().st_size
        if size != shard.raw.size:
            said = "more" if size > shard.raw.size else f"only {size:,} bytes"
            raise UserError(f"{compressed} is damaged: it holds {said}, the index says {shard.raw.size:,} bytes")
        os.replace(unfinished, raw)
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(source: BinaryIO, out: BinaryIO, most: int) -> None:
    """Copy at most one byte more than ``most``: a damaged file may unfold to anything."""
    left = most + 1
    while left and (data := source.read(min(_READ_BYTES, left))):
        out.write(data)
        left -= len(data)


def _stream(family: str, file: BinaryIO) -> BinaryIO:
    if family == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)  # type: ignore[return-value]
    if family == "gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if family == "bz2":
        return bz2.BZ2File(file)  # type: ignore[return-value]
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "brotli")  # type: ignore[no-any-return]


def _unsnapped(path: Path, size: int) -> bytes:
    import pyarrow

    return bytes(pyarrow.Codec("snappy").decompress(path.read_bytes(), size, asbytes=True))


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn what decompressors say of damaged data into the one error a person may see; a full disk passes.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow
    import zstandard

    try:
        yield
    except (EOFError, ValueError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
