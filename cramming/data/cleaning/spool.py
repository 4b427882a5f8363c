"""The text that passed the filters, in parts on the disk: each made from one block of the source.

Where a block ends depends on the text alone, so a killed run finds the parts it finished and goes on behind them. A
document never spans two blocks, unless it is longer than ``JUDGED_CHARACTERS``: then it is judged by what is in the
first of them, and its number tells which of the others' text is its rest.

A part file: the length of its header (int64), the header (JSON), and, of as many as it says, little-endian:
``numbers`` int32 (which document of the part a text is; -1: the rest of one that began in an earlier part), ``sizes``
int64 (bytes of each text), ``owners`` int32 (documents with hashes), ``hashes`` uint64 (owners, hashes of each); last
the texts, UTF-8, one after the other, as one zstd frame.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard

from cramming import faults
from cramming.data.cleaning.config import JUDGED_CHARACTERS
from cramming.data.cleaning.equality import content_hash, solid
from cramming.data.sources.source import Piece, Source
from cramming.data.workers import Workers
from cramming.durable import write_file
from cramming.progress import ProgressSink

BLOCK_CHARACTERS = 1 << 20
KEPT, SAME = "kept", "same"
_ZSTD_LEVEL = 3


@dataclass
class Header:
    """What a part says of its block."""

    documents: int = 0  # that begin in it
    text_bytes: int = 0  # of all its text
    rest_bytes: int = 0  # of these, of a document that began in an earlier block
    kept_characters: int = 0  # of the text that is stored
    removed: dict[str, list[int]] = field(default_factory=dict)  # by stage: documents, bytes
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, of one core
    # The last document goes on in the next block: KEPT or the stage that removed it, or SAME, for the rest of one
    # that began earlier; ``None``: it ends here.
    unfinished: str | None = None
    position: float = 0.0  # how much of the source was read behind the block
    cursor: Any = None  # where the source goes on, if it can
    texts: int = 0
    owners: int = 0
    hashes: int = 0


@dataclass
class Part:
    """A part without its texts; see the module's docstring for the shapes."""

    header: Header
    numbers: np.ndarray
    sizes: np.ndarray
    owners: np.ndarray
    hashes: np.ndarray


@dataclass(frozen=True)
class Block:
    """Documents of the source, as a worker gets them."""

    number: int
    texts: list[str]
    continues: bool  # the first text is the rest of a document that began in an earlier block
    unfinished: bool  # the last text is not the end of its document
    digest: str | None  # the content hash of the document whose last rest the first text is
    position: float
    cursor: Any


def part_path(work: Path, number: int) -> Path:
    """The file of block ``number``."""
    return work / f"part-{number:06d}.bin"


def encode_part(header: Header, texts: list[tuple[int, bytes]], owners: list[int], hashes: np.ndarray) -> bytes:
    """A part file of ``texts``, each with its document's number, and the ``hashes`` (owners, hashes) of documents."""
    header.texts, header.owners, header.hashes = len(texts), len(owners), hashes.shape[1]
    encoded = json.dumps(asdict(header), sort_keys=True).encode()
    parts = [
        np.array([len(encoded)], dtype="<i8").tobytes(),
        encoded,
        np.array([number for number, _ in texts], dtype="<i4").tobytes(),
        np.array([len(text) for _, text in texts], dtype="<i8").tobytes(),
        np.array(owners, dtype="<i4").tobytes(),
        hashes.astype("<u8").tobytes(),
        zstandard.compress(b"".join(text for _, text in texts), _ZSTD_LEVEL),
    ]
    return b"".join(parts)


def read_header(path: Path) -> Header:
    """The header of a part file."""
    with open(path, "rb") as file:
        return _header(file)


def _header(file: IO[bytes]) -> Header:
    (length,) = np.frombuffer(file.read(8), dtype="<i8")
    return Header(**json.loads(file.read(int(length))))


def read_part(path: Path) -> Part:
    """A part file without its texts."""
    with open(path, "rb") as file:
        return _part(file)


def _part(file: IO[bytes]) -> Part:
    header = _header(file)

    def array(kind: str, count: int) -> np.ndarray:
        dtype = np.dtype(kind)
        return np.frombuffer(file.read(dtype.itemsize * count), dtype=dtype)

    numbers, sizes = array("<i4", header.texts), array("<i8", header.texts)
    owners = array("<i4", header.owners)
    hashes = array("<u8", header.owners * header.hashes).reshape(header.owners, header.hashes)
    return Part(header, numbers, sizes, owners, hashes)


def read_texts(path: Path) -> tuple[Part, list[bytes]]:
    """A part file with its texts, UTF-8."""
    with open(path, "rb") as file:
        part = _part(file)
        data = zstandard.decompress(file.read())
    ends = np.cumsum(part.sizes)
    return part, [data[end - size : end] for end, size in zip(ends.tolist(), part.sizes.tolist(), strict=True)]


def fill(
    source: Source,
    work: Path,
    request: dict[str, Any],
    *,
    max_documents: int | None,
    max_characters: int | None,
    workers: int,
    progress: ProgressSink,
) -> int:
    """Write the parts of ``source`` into ``work``, but for those that are there, and return how many there are.

    Args:
        request: what ``judging.judge_block`` is to do.
        max_documents: documents to read.
        max_characters: of text that passes the filters; what is behind the block that reaches it is not read.
    """
    parts = documents = kept = 0
    cursor, position = None, 0.0
    for header in _resumable(work):
        parts += 1
        documents += header.documents
        kept += header.kept_characters
        cursor, position = header.cursor, header.position
        if max_characters is not None and kept >= max_characters:
            break
    progress.advance(position if max_characters is None else kept)
    if (max_characters is not None and kept >= max_characters) or documents == max_documents:
        return parts
    left = None if max_documents is None else max_documents - documents
    with Workers(workers) as pool:

        def judged(block: Block) -> Header:
            """Make sure the block's part is on the disk."""
            path = part_path(work, block.number)
            if not path.exists():
                _, data = pool.call("cramming.data.cleaning.judging:judge_block", {**request, **asdict(block)})
                write_file(path, [data], "clean-part")
                faults.point("clean-part-written")
            return read_header(path)

        for header in pool.ordered(judged, blocks(source.pieces(cursor), parts, left)):
            parts += 1
            kept += header.kept_characters
            progress.advance(header.position - position if max_characters is None else header.kept_characters)
            position = header.position
            if max_characters is not None and kept >= max_characters:
                break
    return parts


def _resumable(work: Path) -> list[Header]:
    """The headers of the first parts that need not be read again: all are there, and the source can go on behind."""
    headers: list[Header] = []
    there = 0
    while (path := part_path(work, len(headers))).exists():
        headers.append(read_header(path))
        if headers[-1].cursor is not None:
            there = len(headers)
    return headers[:there]


def latest_cursor(work: Path, parts: int) -> Any:
    """The source's cursor behind the latest of the first ``parts`` parts that has one."""
    cursors = (read_header(part_path(work, number)).cursor for number in reversed(range(parts)))
    return next((cursor for cursor in cursors if cursor is not None), None)


def blocks(pieces: Iterable[Piece], number: int, max_documents: int | None = None) -> Iterator[Block]:
    """The first ``max_documents`` documents of ``pieces`` in blocks, the first of them ``number``."""
    texts: list[str] = []
    parts: list[str] = []  # of the document that is being read, in this block
    size = length = documents = 0  # characters of the block, and of its last document; documents that ended
    continues, digest = False, None
    long = None  # the content hash so far of a document that began in an earlier block
    for piece in pieces:
        parts.append(piece.text)
        size += len(piece.text)
        length += len(piece.text)
        if long is not None:
            long.update(solid(piece.text))
        if piece.last:
            documents += 1
            texts.append("".join(parts))
            if long is not None:
                digest, long = long.hexdigest(), None
            parts, length = [], 0
            full = size >= BLOCK_CHARACTERS
        else:
            full = length >= (JUDGED_CHARACTERS if long is None else BLOCK_CHARACTERS)
            if full:
                texts.append("".join(parts))
                long = content_hash(texts[-1]) if long is None else long
        if full or (piece.last and documents == max_documents):
            yield Block(number, texts, continues, not piece.last, digest, piece.position, piece.cursor)
            texts, parts, size, length, number = [], [], 0, 0, number + 1
            continues, digest = not piece.last, None
        if piece.last and documents == max_documents:
            return
    if texts:
        yield Block(number, texts, continues, False, digest, piece.position, piece.cursor)
