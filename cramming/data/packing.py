"""Token ids of documents to rows of fixed length: the last stage of preparing.

Shape legend: N rows, S positions, T tokens, D documents.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cramming import faults
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizing import Part
from cramming.durable import room_for, sync

_ROWS_AT_A_TIME = 8192


@dataclass
class Packed:
    """What was written."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0  # of text, [SEP] after each document included
    text_bytes: int = 0  # of the parts that were read
    sha256: str = ""  # of tokens.bin


def pack(
    parts: Iterable[Part],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    seq_length: int,
    layout: str,
    row_cls: bool,
    max_tokens: int | None,
) -> Packed:
    """Write ``tokens.bin`` (N, S), and for the document layout ``lengths.bin`` (N,) int32, into ``folder``."""
    packed = Packed()
    digest = hashlib.sha256()
    documents = _documents(parts, tokenizer, max_tokens, packed)
    rows: Iterator[tuple[np.ndarray, np.ndarray | None]]
    if layout == "packed":
        rows = ((block, None) for block in _packed_rows(documents, tokenizer, seq_length, row_cls))
    else:
        rows = _document_rows(documents, tokenizer, seq_length)
    tokens_path, lengths_path = folder / "tokens.bin", folder / "lengths.bin"
    with room_for(tokens_path):
        with open(tokens_path, "wb") as tokens, open(lengths_path, "wb") as lengths:
            for block, block_lengths in rows:
                data = np.ascontiguousarray(block, dtype=tokenizer.dtype).tobytes()
                tokens.write(data)
                digest.update(data)
                packed.rows += len(block)
                if block_lengths is not None:
                    lengths.write(block_lengths.astype(np.int32).tobytes())
                faults.point("pack-row-chunk")
        sync(tokens_path, "store")
        sync(lengths_path, "store")
    if layout == "packed":
        lengths_path.unlink()
    packed.sha256 = digest.hexdigest()
    return packed


def _documents(
    parts: Iterable[Part], tokenizer: Tokenizer, max_tokens: int | None, packed: Packed
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The text as one stream, document ends marked by [SEP] and blank documents gone, up to ``max_tokens``.

    Yields (ids (T,), places of the [SEP]s in them (D,)).
    """
    open_document = False  # tokens of an unfinished document came before
    for part in parts:
        ends = part.ends.astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        keep = lengths > 0
        if len(ends) and open_document:
            keep[0] = True
        begun_after_last_end = len(part.ids) > (int(ends[-1]) if len(ends) else 0)
        open_document = begun_after_last_end or (open_document and not len(ends))
        ends = ends[keep]
        ids = np.insert(part.ids, ends, tokenizer.sep_id)
        places = ends + np.arange(len(ends))
        packed.text_bytes += part.text_bytes
        if max_tokens is not None and packed.tokens + len(ids) >= max_tokens:
            ids = ids[: max_tokens - packed.tokens]
            places = places[places < len(ids)]
            packed.tokens = max_tokens
            # A document that the limit cut in the middle counts.
            packed.documents += len(places) + int(bool(len(ids)) and (not len(places) or places[-1] < len(ids) - 1))
            yield ids, places
            return
        packed.tokens += len(ids)
        packed.documents += len(places)
        yield ids, places


def _packed_rows(
    documents: Iterable[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer, seq_length: int, row_cls: bool
) -> Iterator[np.ndarray]:
    """The stream cut into rows; what does not fill the last one is dropped."""
    width = seq_length - int(row_cls)
    rest = np.empty(0, dtype=tokenizer.dtype)
    for ids, _ in documents:
        rest = np.concatenate([rest, ids])
        count = len(rest) // width
        rows = np.full((count, seq_length), tokenizer.cls_id, dtype=tokenizer.dtype)
        rows[:, int(row_cls) :] = rest[: count * width].reshape(count, width)
        rest = rest[count * width :]
        yield rows


def _document_rows(
    documents: Iterable[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer, seq_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One row a document: [CLS], its first S - 2 tokens, [SEP], padding; with the lengths (N,) without padding."""
    rest = np.empty(0, dtype=tokenizer.dtype)  # the beginning of a document that goes on in the next part
    for ids, places in documents:
        stream = np.concatenate([rest, ids])
        ends = places + len(rest)
        starts = np.concatenate([[0], ends + 1])
        for at in range(0, len(ends), _ROWS_AT_A_TIME):
            piece = slice(at, at + _ROWS_AT_A_TIME)
            yield _one_row_each(stream, starts[:-1][piece], ends[piece], tokenizer, seq_length)
        # No more of it than a row can hold is ever needed.
        rest = stream[starts[-1] :][:seq_length]
    if len(rest):  # cut by max_tokens before its end
        yield _one_row_each(rest, np.array([0]), np.array([len(rest)]), tokenizer, seq_length)


def _one_row_each(
    stream: np.ndarray, starts: np.ndarray, ends: np.ndarray, tokenizer: Tokenizer, seq_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (D, S) of the documents between ``starts`` and ``ends`` (D,), and their lengths (D,)."""
    counts = np.minimum(ends - starts, seq_length - 2)
    columns = np.arange(seq_length - 2)
    inside = columns < counts[:, None]
    source = np.minimum(starts[:, None] + columns, len(stream) - 1)
    rows = np.full((len(starts), seq_length), tokenizer.pad_id, dtype=tokenizer.dtype)
    rows[:, 0] = tokenizer.cls_id
    rows[:, 1:-1] = np.where(inside, stream[source], tokenizer.pad_id)
    rows[np.arange(len(starts)), counts + 1] = tokenizer.sep_id
    return rows, counts + 2
