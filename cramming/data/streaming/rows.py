"""Samples of a shard to rows of token ids, all of one length.

Shape legend: n samples, S positions.

A kept file is tokens (n, S) in the tokenizer's type, then, of documents, lengths (n,) int32.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cramming.data.shards.shard import ShardReader
from cramming.data.sources.source import bounded
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError

ROWS_VERSION = 1  # of the code that makes rows of samples; part of every fingerprint
TOKENS, TEXT = "tokens", "text"
_AT_A_TIME = 1024  # samples
_STORED = np.dtype("<i8")  # what bytes of a token column are

Rows = tuple[NDArray[np.unsignedinteger], NDArray[np.int32] | None]


@dataclass(frozen=True)
class RowForm:
    """How a sample becomes a row.

    Attributes:
        column: what is read of a sample: ``tokens``, a row as it is; or a text, one document a row, cut or padded.
        seq_length: S.
        tokenizer: of the text; the ids of the tokens are its.
    """

    column: str
    is_text: bool
    seq_length: int
    tokenizer: Tokenizer

    @property
    def facts(self) -> tuple[object, ...]:
        """What decides the rows, beside the samples."""
        return self.column, self.is_text, self.seq_length, self.tokenizer.sha256

    @property
    def layout(self) -> str:
        """As of a ``TokenStore``."""
        return "document" if self.is_text else "packed"

    def kept_bytes(self, samples: int) -> int:
        """Of a kept file."""
        return samples * (self.seq_length * self.tokenizer.dtype.itemsize + 4 * self.is_text)

    def rows(self, samples: Sequence[Mapping[str, Any]], where: str) -> Rows:
        """Samples as rows: tokens (n, S), lengths (n,) of documents; ``where`` names the shard in messages.

        Raises:
            UserError: they are not rows of S ids of the tokenizer, or no text.
        """
        values = [sample[self.column] for sample in samples]
        return self._documents(values, where) if self.is_text else (self._tokens(values, where), None)

    def write(self, reader: ShardReader, path: Path, where: str) -> None:
        """All samples of a shard as a kept file.

        Raises:
            UserError: see ``rows``.
        """
        lengths = []
        with open(path, "wb") as file:
            for start in range(0, len(reader), _AT_A_TIME):
                samples = [reader[number] for number in range(start, min(start + _AT_A_TIME, len(reader)))]
                tokens, filled = self.rows(samples, where)
                file.write(tokens.tobytes())
                if filled is not None:
                    lengths.append(filled.astype("<i4").tobytes())
            file.writelines(lengths)

    def _tokens(self, values: Iterable[Any], where: str) -> NDArray[np.unsignedinteger]:
        found = [_ids(value, where) for value in values]
        for row in found:
            if len(row) != self.seq_length:
                raise UserError(
                    f"{where} holds rows of {len(row)} tokens, and data.seq_length={self.seq_length}; "
                    f"use data.seq_length={len(row)}, or convert the corpus with concat_tokens={self.seq_length}"
                )
        rows = np.stack(found) if found else np.empty((0, self.seq_length), _STORED)
        size = self.tokenizer.vocab_size
        if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= size):
            wrong = int(rows.min()) if int(rows.min()) < 0 else int(rows.max())
            raise UserError(
                f"{where} has the token id {wrong}, and the tokenizer has {size} pieces; "
                "set data.tokenizer to the one the corpus was made with"
            )
        return rows.astype(self.tokenizer.dtype)

    def _documents(self, values: Sequence[Any], where: str) -> Rows:
        texts = []
        for value in values:
            if not isinstance(value, str | None):  # parquet has empty places
                raise UserError(f"{where}: column {self.column} holds {type(value).__name__}, not text")
            texts.append(next(bounded(value or "")))  # no row has room for more
        tokenizer, room = self.tokenizer, self.seq_length - 2
        tokens = np.full((len(texts), self.seq_length), tokenizer.pad_id, tokenizer.dtype)
        lengths = np.empty(len(texts), np.int32)
        for number, ids in enumerate(tokenizer.encode_batch(texts)):
            kept = ids[:room]
            tokens[number, 0] = tokenizer.cls_id
            tokens[number, 1 : len(kept) + 1] = kept
            tokens[number, len(kept) + 1] = tokenizer.sep_id
            lengths[number] = len(kept) + 2
        return tokens, lengths


def _ids(value: Any, where: str) -> NDArray[np.integer]:
    """One row as it is stored: bytes of int64, an array or a list of whole numbers."""
    if isinstance(value, bytes):
        if len(value) % _STORED.itemsize:
            raise UserError(f"{where} holds rows of {len(value)} bytes, which are no 8-byte token ids")
        return np.frombuffer(value, _STORED)
    row = np.asarray(value)
    if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
        raise UserError(f"{where} holds {row.dtype} values of shape {row.shape}, not rows of token ids")
    return row


class KeptRows:
    """The rows of a kept file, mapped into memory; the file stays open, which keeps it from being deleted."""

    def __init__(self, file: BinaryIO, form: RowForm, samples: int) -> None:
        self._file = file
        dtype, length = form.tokenizer.dtype, form.seq_length
        self._tokens = np.memmap(file, dtype, "r", shape=(samples, length))
        self._lengths: np.ndarray | None = None
        if form.is_text:
            self._lengths = np.memmap(file, np.int32, "r", offset=self._tokens.nbytes, shape=(samples,))

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        """Rows by their numbers in the shard, (n,) -> tokens (n, S), lengths (n,)."""
        lengths = None if self._lengths is None else np.asarray(self._lengths[numbers])
        return np.asarray(self._tokens[numbers]), lengths

    def close(self) -> None:
        """The file may be deleted now."""
        self._file.close()


class PlacedRows:
    """The rows of a shard that is read where it lies."""

    def __init__(self, reader: ShardReader, form: RowForm, where: str) -> None:
        self._reader = reader
        self._form = form
        self._where = where

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        """See ``KeptRows.read``."""
        return self._form.rows([self._reader[number] for number in numbers.tolist()], self._where)

    def close(self) -> None:
        """Give the file back."""
        self._reader.close()
