"""From a path a person typed to decoded text: finding files, decompressing, UTF-8, and what can be wrong with each."""

import codecs
import glob
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cramming.errors import UserError

READ_BYTES = 1 << 15
# zstd blocks can unfold a thousandfold; what one read of the compressed file unfolds to must stay small.
_ZSTD_READ_BYTES = 1 << 14
COMPRESSIONS = (".gz", ".xz", ".zst")


class TextChunk(NamedTuple):
    """Decoded text and where the (compressed) file was read to."""

    text: str
    position: int


def find(path: str) -> list[Path]:
    """The files a path means, in an order that never changes: a file, a folder (recursive) or a glob.

    Hidden files and folders are left out.

    Raises:
        UserError: nothing is there, or a folder cannot be read.
    """
    given = Path(path).expanduser()
    try:
        if given.is_file():
            return [given]
        if given.is_dir():
            found = sorted(path for path in _below(given) if path.is_file())
            if not found:
                raise UserError(
                    f"data.path={path} is a folder without files in it; name a file, folder or glob with text"
                )
            return found
        if given.exists():
            raise UserError(f"data.path={path} is neither a file nor a folder; copy its contents to a file first")
        if glob.has_magic(path):
            matches = (Path(p) for p in glob.glob(str(given), recursive=True))
            found = sorted(p for p in matches if p.is_file())
            if found:
                return found
            raise UserError(
                f"data.path={path}: no file matches; check the pattern (quote it for the shell, ** goes deep)"
            )
    except PermissionError as error:
        raise _unreadable(Path(error.filename or path), error) from error
    raise UserError(
        f"data.path={path} does not exist; it takes a file, a folder or a glob (relative to where you started)"
    )


def _below(folder: Path) -> Iterator[Path]:
    """All that is in a folder and the folders in it and not hidden; one that cannot be read is an error."""

    def refuse(error: OSError) -> None:
        raise error

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where, name) for name in names if not name.startswith("."))


def stem_suffix(path: Path) -> str:
    """The suffix that tells the format, below a compression's: ``a.jsonl.xz`` -> ``.jsonl``."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def chunks(path: Path, keep_ends: bool = False) -> Iterator[TextChunk]:
    """The decoded text of a file, in bounded chunks. Line ends become newlines unless ``keep_ends``.

    Raises:
        UserError: binary, unreadable, damaged, or not UTF-8 (with the byte offset in the decompressed text).
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    consumed = 0  # decompressed bytes handed to the decoder
    first = True
    held = ""  # a carriage return whose newline may follow in the next chunk
    for data, position in _decompressed(path):
        if first and b"\0" in data:
            raise UserError(f"{path} is binary (it holds zero bytes); give text in UTF-8 (UTF-16 must be converted)")
        pending = len(decoder.getstate()[0])
        try:
            text = held + decoder.decode(data)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, consumed - pending + error.start, error.object, error.start, first) from error
        if first:
            text = text.removeprefix("\ufeff")
        consumed += len(data)
        first = False
        held = ""
        if not keep_ends:
            if text.endswith("\r"):
                text, held = text[:-1], "\r"
            text = text.replace("\r\n", "\n")
        yield TextChunk(text, position)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, consumed - len(error.object), error.object, 0, False) from error
    if held:
        yield TextChunk(held, path.stat().st_size)


def _not_utf8(path: Path, offset: int, data: bytes, start: int, first: bool) -> UserError:
    """The message for undecodable bytes: a broken text, or no text at all."""
    controls = sum(byte < 32 and byte not in (9, 10, 12, 13) for byte in data)
    replaced = data.decode("utf-8", "replace").count("\ufffd")
    if first and controls + replaced > 0.1 * len(data) and len(data) > 16:
        return UserError(f"{path} is binary; give text, jsonl, csv or parquet (.gz, .xz, .zst)")
    return UserError(
        f"{path} is not valid UTF-8: byte 0x{data[start]:02x} at offset {offset} of its (decompressed) text; "
        "convert it, for example with: iconv -f latin1 -t utf-8"
    )


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror}; check its permissions")


def _decompressed(path: Path) -> Iterator[tuple[bytes, int]]:
    """Chunks of decompressed bytes, each with the number of raw bytes read so far."""
    damage: tuple[type[Exception], ...] = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
    compression = path.suffix.lower()
    try:
        with open(path, "rb") as raw:
            if compression == ".zst":
                yield from _zstd(path, raw)
                return
            with _open_compressed(raw, compression) as file:
                while data := file.read(READ_BYTES):
                    yield data, raw.tell()
    except damage as error:
        raise UserError(f"{path} is damaged ({error}); download or compress it again") from error
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_compressed(raw: BinaryIO, compression: str) -> BinaryIO:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if compression == ".xz":
        return lzma.LZMAFile(raw)  # type: ignore[return-value]
    return raw


def _zstd(path: Path, raw: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """zstd frames one after the other. (The library's own stream reader takes a truncated file for a whole one.)"""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    stream = decompressor.decompressobj()
    whole = True
    try:
        while data := raw.read(_ZSTD_READ_BYTES):
            while data:
                text = stream.decompress(data)
                if text:
                    yield text, raw.tell()
                whole = stream.eof
                data = stream.unused_data if whole else b""
                if whole:
                    stream = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise UserError(f"{path} is damaged ({error}); download or compress it again") from error
    if not whole:
        raise UserError(f"{path} is damaged (it ends in the middle of a zstd frame); download or compress it again")
