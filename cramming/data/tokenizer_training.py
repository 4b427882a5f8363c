"""From a source of text to a tokenizer: what it is trained on, of which kind, and what it must have when it is done."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from cramming.data.config import SMALLEST_BYTE_VOCABULARY, SMALLEST_VOCABULARY
from cramming.data.sources.source import Piece, Source
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_kinds import trained
from cramming.errors import UserError
from cramming.progress import ProgressSink

TRAINING_VERSION = 2  # of the code that decides a vocabulary; part of every fingerprint
SAMPLED_TEXT = 1_000_000_000  # characters: the sample is taken from at most so much of the corpus

_SEED = b"tokenizer sample"


def sample(source: Source, progress: ProgressSink) -> list[str]:
    """About ``source.sample_bytes`` of text for training: a function of the corpus, not of limits set to it.

    Raises:
        UserError: there is no text.
    """
    progress.stage("reading a sample for the tokenizer", source.total, source.unit)
    chosen = _head(source, progress) if source.shuffled else _lowest(source, progress)
    progress.done()
    if not chosen:
        raise UserError(f"{source.name} holds no text; name a file, folder or glob with some")
    return chosen


def _head(source: Source, progress: ProgressSink) -> list[str]:
    texts: list[str] = []
    size = 0
    position = 0.0
    for piece in _pieces(source):
        texts.append(piece.text)
        size += _bytes(piece.text)
        progress.advance(piece.position - position)
        position = piece.position
        if size >= source.sample_bytes:
            break
    return texts


def _lowest(source: Source, progress: ProgressSink) -> list[str]:
    """The pieces whose numbers hash lowest, as many as fit: a fair sample in constant memory, in corpus order."""
    heap: list[tuple[int, int, int, str]] = []  # hash (negated: the highest is on top), number, bytes, text
    size = 0
    read = 0
    position = 0.0
    for number, piece in enumerate(_pieces(source)):
        read += len(piece.text)
        if read > SAMPLED_TEXT:
            break
        digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=_SEED).digest()
        entry = (-int.from_bytes(digest, "little"), number, _bytes(piece.text), piece.text)
        if size < source.sample_bytes or entry[0] > heap[0][0]:
            heapq.heappush(heap, entry)
            size += entry[2]
            while size - heap[0][2] >= source.sample_bytes:
                size -= heapq.heappop(heap)[2]
        progress.advance(piece.position - position)
        position = piece.position
    return [text for _, _, _, text in sorted(heap, key=lambda entry: entry[1])]


def _pieces(source: Source) -> Iterator[Piece]:
    """The source's text in the order that suits a sample best, if it has one of its own."""
    pieces: Any = getattr(source, "sample_pieces", source.pieces)
    return iter(pieces())


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def train(
    texts: list[str], vocab_size: int, what: str, kind: str = "wordpiece", normalize: Sequence[str] | None = None
) -> Tokenizer:
    """A tokenizer of exactly ``vocab_size`` pieces from ``texts``; the same wherever it is made.

    Args:
        texts: what to learn from.
        vocab_size: special tokens included.
        what: the text's name, for messages.
        kind: wordpiece, bpe or unigram.
        normalize: steps as in ``data.normalize``; ``None`` for those the kind usually has.

    Raises:
        UserError: the text does not support so many pieces, or the kind needs more.
    """
    smallest = smallest_vocabulary(kind)
    if kind != "wordpiece" and vocab_size < smallest:
        raise UserError(
            f"data.vocab_size={vocab_size} is too small for data.tokenizer_kind={kind}, which suits {what}; "
            f"it takes {smallest} or more, usually 8192 or 32768"
        )
    backend, size = trained(kind, texts, vocab_size, normalize)
    if size < min(vocab_size, smallest):
        raise UserError(
            f"{what} supports a vocabulary of {size} pieces only; use more text, "
            "or a ready tokenizer with data.tokenizer=<folder or vocabulary file>"
        )
    if size != vocab_size:
        raise UserError(
            f"data.vocab_size={vocab_size} is more than {what} supports ({size} pieces); "
            f"set data.vocab_size={size} or lower, or use more text"
        )
    return Tokenizer(backend)


def smallest_vocabulary(kind: str) -> int:
    """The smallest ``data.vocab_size`` that makes sense for a kind of tokenizer."""
    return SMALLEST_VOCABULARY if kind == "wordpiece" else SMALLEST_BYTE_VOCABULARY


def throwaway(texts: list[str], vocab_size: int, kind: str, normalize: Sequence[str] | None) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` pieces, for estimates. BPE stands in for Unigram: it is trained at once."""
    kind = "bpe" if kind == "unigram" else kind
    return Tokenizer(trained(kind, texts, max(vocab_size, smallest_vocabulary(kind)), normalize)[0])
