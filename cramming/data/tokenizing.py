"""Text to token ids, in blocks: each a file, so that a killed run goes on where it was.

A source that can go on in the middle (a corpus read over the network) is asked to: beside the part of a block lies the
source's cursor behind it. Other sources are read again from their beginning, and the blocks that are there are skipped.

Where a block ends depends on the text alone. A part file holds the ids of a block's text, without special tokens, and
where in them documents end; whether they become packed rows or one row each is decided later (``packing``).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cramming import faults
from cramming.data.sources.source import Piece, Source
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_words import APART, SPACED
from cramming.data.workers import Workers
from cramming.durable import write_file
from cramming.progress import ProgressSink

BLOCK_CHARACTERS = 1 << 20
# Words remembered with their ids, in each process: about 25 MB.
_REMEMBERED_WORDS = 100_000
_REMEMBERED_CHARACTERS = 32  # of a word; longer ones are not
_HEADER = 3  # int64 numbers at the start of a part: document ends, ids, bytes of text


@dataclass(frozen=True)
class Part:
    """The ids of one block."""

    ids: np.ndarray  # (T,) uint16 or uint32
    ends: np.ndarray  # (D,) uint32: how many of the ids come before the end of a document
    text_bytes: int


@dataclass(frozen=True)
class _Block:
    number: int
    texts: list[str]
    lasts: list[bool]
    position: float
    cursor: Any  # of the last piece: where the source goes on, if it can


class Encoder:
    """Ids of long texts, word by word from memory where the tokenizer allows it: up to twice as fast.

    The reference is ``Tokenizer.encode_batch``, whose result this is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rule = tokenizer.word_rule
        self._memory: dict[str, list[int]] = {}

    def encode(self, text: str) -> np.ndarray:
        """Token ids (T,) of a text, without special tokens."""
        if self._rule == APART:
            # Only these: other characters that Python takes for white space mean something else to the tokenizer.
            words = text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")
            return self._from_memory([], words, self._tokenizer.encode_lists)
        if self._rule == SPACED:
            first, *words = _spaced(self._tokenizer.normalize(text))
            return self._from_memory(self._tokenizer.encode_normalized([first])[0], words, self._encode_spaced)
        return self._tokenizer.encode_batch([text])[0]

    def _from_memory(
        self, before: list[int], words: list[str], encode: Callable[[list[str]], list[list[int]]]
    ) -> np.ndarray:
        """Ids ``before``, then those of words; ``encode`` gives the ids of words that are not in the memory."""
        memory = self._memory
        unknown = [word for word in dict.fromkeys(words) if word not in memory]
        memory.update(zip(unknown, encode(unknown), strict=True))
        ids = chain(before, chain.from_iterable(map(memory.__getitem__, words)))
        encoded = np.fromiter(ids, dtype=self._tokenizer.dtype)
        # Full of words that came early, so mostly of frequent ones: they stay. What is long, such as the clauses of a
        # language without spaces, does not come again.
        full = len(memory) > _REMEMBERED_WORDS
        for word in unknown:
            if full or len(word) > _REMEMBERED_CHARACTERS:
                del memory[word]
        return encoded

    def _encode_spaced(self, words: list[str]) -> list[list[int]]:
        return self._tokenizer.encode_normalized([f" {word}" for word in words])


def _spaced(text: str) -> list[str]:
    """A text cut at spaces that follow a word, without these spaces: each part can be tokenized by itself.

    White space after white space is not cut off: tokenizers take runs of it as one word.
    """
    words = text.split(" ")
    if not any(not word or word[-1].isspace() for word in words):
        return words
    whole: list[str] = []
    begun: str | None = None
    for word in words:
        joined = word if begun is None else f"{begun} {word}"
        begun = joined if not word or word[-1].isspace() else None
        if begun is None:
            whole.append(joined)
    return whole if begun is None else [*whole, begun]


def tokenize(
    source: Source,
    tokenizer_folder: Path,
    work: Path,
    *,
    max_documents: int | None,
    max_tokens: int | None,
    workers: int,
    progress: ProgressSink,
) -> int:
    """Write the parts of all text of ``source`` into ``work``, skipping those that are there, and return their number.

    Stops where ``max_tokens`` tokens of text are certain, or after ``max_documents``.
    """
    there = _resumable(work)
    headers = [_header(part_path(work, number)) for number in range(there)]
    parts = there
    tokens = sum(ids for _, ids, _ in headers)
    documents = sum(ends for ends, _, _ in headers)
    cursor, position = (None, 0.0) if there == 0 else _behind(work, there - 1)
    progress.advance(position if max_tokens is None else min(tokens, max_tokens))
    if (max_tokens is not None and tokens >= max_tokens) or (max_documents is not None and documents >= max_documents):
        return parts
    pieces = _first_documents(source.pieces(cursor), None if max_documents is None else max_documents - documents)
    with Workers(workers) as pool:

        def tokenized(block: _Block) -> tuple[int, float]:
            """Make sure the block's part is on the disk; the number of its ids."""
            path = part_path(work, block.number)
            if not path.exists():
                request = {"tokenizer": str(tokenizer_folder), "texts": block.texts, "lasts": block.lasts}
                _, data = pool.call(f"{__name__}:encode_block", request)
                write_file(path, [data], "block")
                faults.point("block-written")
            if block.cursor is not None and not (behind := _cursor_path(work, block.number)).exists():
                write_file(behind, [json.dumps([block.cursor, block.position]).encode()], "cursor")
                faults.point("cursor-written")
            return _header(path)[1], block.position

        for count, reached in pool.ordered(tokenized, _blocks(pieces, there)):
            parts += 1
            tokens += count
            progress.advance(reached - position if max_tokens is None else min(count, max_tokens))
            position = reached
            if max_tokens is not None and tokens >= max_tokens:
                break
    return parts


def _first_documents(pieces: Iterable[Piece], limit: int | None) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        if limit is not None and piece.last:
            limit -= 1
            if limit == 0:
                return


def _blocks(pieces: Iterable[Piece], number: int) -> Iterator[_Block]:
    """``pieces`` in blocks, the first of them ``number``."""
    texts: list[str] = []
    lasts: list[bool] = []
    size = 0
    piece = None
    for piece in pieces:
        texts.append(piece.text)
        lasts.append(piece.last)
        size += len(piece.text)
        if size >= BLOCK_CHARACTERS:
            yield _Block(number, texts, lasts, piece.position, piece.cursor)
            texts, lasts, size, number = [], [], 0, number + 1
    if texts and piece is not None:
        yield _Block(number, texts, lasts, piece.position, piece.cursor)


def _resumable(work: Path) -> int:
    """How many of the first parts need not be read again: all are there, and the source can go on behind them."""
    there = 0
    number = 0
    while part_path(work, number).exists():
        number += 1
        if _cursor_path(work, number - 1).exists():
            there = number
    return there


def latest_cursor(work: Path, count: int) -> Any:
    """The source's cursor behind the latest of the first ``count`` blocks that has one."""
    number = next((number for number in reversed(range(count)) if _cursor_path(work, number).exists()), None)
    return None if number is None else _behind(work, number)[0]


def _cursor_path(work: Path, number: int) -> Path:
    return work / f"part-{number:06d}.json"


def _behind(work: Path, number: int) -> tuple[Any, float]:
    """The cursor behind block ``number``, and the position in the source there."""
    cursor, position = json.loads(_cursor_path(work, number).read_text(encoding="utf-8"))
    return cursor, float(position)


def encode_block(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Worker task: the part file of a block of texts."""
    encoder = _encoder(request["tokenizer"])
    encoded: list[np.ndarray] = []
    ends: list[int] = []
    total = text_bytes = 0
    for text, last in zip(request["texts"], request["lasts"], strict=True):
        ids = encoder.encode(text)
        encoded.append(ids)
        total += len(ids)
        text_bytes += len(text.encode())
        if last:
            ends.append(total)
    header = np.array([len(ends), total, text_bytes], dtype=np.int64)
    data = [header.tobytes(), np.array(ends, dtype=np.uint32).tobytes(), *(ids.tobytes() for ids in encoded)]
    return {}, b"".join(data)


@lru_cache(maxsize=1)
def _encoder(folder: str) -> Encoder:
    return Encoder(Tokenizer.load(Path(folder)))


def part_path(work: Path, number: int) -> Path:
    """The file of block ``number``."""
    return work / f"part-{number:06d}.bin"


def _header(path: Path) -> tuple[int, int, int]:
    ends, ids, text_bytes = np.fromfile(path, dtype=np.int64, count=_HEADER)
    return int(ends), int(ids), int(text_bytes)


def read_part(path: Path, dtype: np.dtype[np.unsignedinteger]) -> Part:
    """A part from the disk."""
    return parse_part(path.read_bytes(), dtype)


def parse_part(data: bytes, dtype: np.dtype[np.unsignedinteger]) -> Part:
    """What ``encode_block`` made."""
    ends, ids, text_bytes = np.frombuffer(data, np.int64, _HEADER).tolist()
    begin = 8 * _HEADER
    assert len(data) == begin + 4 * ends + dtype.itemsize * ids, "a part of the wrong size"
    numbers = np.frombuffer(data, np.uint32, ends, begin)
    return Part(np.frombuffer(data, dtype, ids, begin + 4 * ends), numbers, text_bytes)
