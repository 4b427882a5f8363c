"""Text to token ids, in blocks: each a file, so that a killed run goes on where it was.

Where a block ends depends on the text alone. A part file holds the ids of a block's text, without special tokens, and
where in them documents end; whether they become packed rows or one row each is decided later (``packing``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cramming import faults
from cramming.data.sources.source import Piece
from cramming.data.tokenizer import Tokenizer
from cramming.data.workers import Workers
from cramming.durable import write_file
from cramming.progress import ProgressSink

BLOCK_CHARACTERS = 1 << 20
# Words remembered with their ids, in each process: about 25 MB.
_REMEMBERED_WORDS = 100_000
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


class Encoder:
    """Ids of long texts, word by word from memory where the tokenizer allows it: about twice as fast.

    The reference is ``Tokenizer.encode_batch``, whose result this is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._by_word = tokenizer.separates_words
        self._memory: dict[str, list[int]] = {"": []}

    def encode(self, text: str) -> np.ndarray:
        """Token ids (T,) of a text, without special tokens."""
        if not self._by_word:
            return self._tokenizer.encode_batch([text])[0]
        # Only these: other characters that Python takes for white space mean something else to the tokenizer.
        words = text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")
        memory = self._memory
        unknown = list(dict.fromkeys(word for word in words if word not in memory))
        for word, ids in zip(unknown, self._tokenizer.encode_lists(unknown), strict=True):
            memory[word] = ids
        encoded = np.fromiter(chain.from_iterable(map(memory.__getitem__, words)), dtype=self._tokenizer.dtype)
        if len(memory) > _REMEMBERED_WORDS:  # full of words that came early, so mostly frequent ones: they stay
            for word in unknown:
                del memory[word]
        return encoded


def tokenize(
    pieces: Iterable[Piece],
    tokenizer_folder: Path,
    work: Path,
    *,
    max_tokens: int | None,
    workers: int,
    progress: ProgressSink,
) -> int:
    """Write the parts of all ``pieces`` into ``work``, skipping those that are there, and return their number.

    Stops where ``max_tokens`` tokens of text are certain.
    """
    parts = 0
    tokens = 0
    position = 0.0
    with Workers(workers) as pool:

        def tokenized(block: _Block) -> tuple[int, float]:
            """Make sure the block's part is on the disk; the number of its ids."""
            path = part_path(work, block.number)
            if not path.exists():
                request = {"tokenizer": str(tokenizer_folder), "texts": block.texts, "lasts": block.lasts}
                _, data = pool.call(f"{__name__}:encode_block", request)
                write_file(path, [data], "block")
                faults.point("block-written")
            return _header(path)[1], block.position

        for count, reached in pool.ordered(tokenized, _blocks(pieces)):
            parts += 1
            tokens += count
            progress.advance(reached - position if max_tokens is None else min(count, max_tokens))
            position = reached
            if max_tokens is not None and tokens >= max_tokens:
                break
    return parts


def _blocks(pieces: Iterable[Piece]) -> Iterator[_Block]:
    texts: list[str] = []
    lasts: list[bool] = []
    size = number = 0
    position = 0.0
    for text, last, position in pieces:
        texts.append(text)
        lasts.append(last)
        size += len(text)
        if size >= BLOCK_CHARACTERS:
            yield _Block(number, texts, lasts, position)
            texts, lasts, size, number = [], [], 0, number + 1
    if texts:
        yield _Block(number, texts, lasts, position)


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
    ends, ids, text_bytes = _header(path)
    data = path.read_bytes()[8 * _HEADER :]
    assert len(data) == 4 * ends + dtype.itemsize * ids, f"{path} has the wrong size"
    return Part(np.frombuffer(data, dtype, ids, 4 * ends), np.frombuffer(data, np.uint32, ends), text_bytes)
