"""A token store as shards: rows of token ids, all of one length, with the tokenizer they were made with beside them.

Shape legend: n rows of a shard, S positions.

A folder with ``rows.json``, ``tokenizer.json`` and shards; a shard is its rows one after the other, (n, S)
little-endian uint16 or uint32, and nothing else. Every file has a SHA-256 in the index.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cramming.data.fingerprint import fingerprint
from cramming.data.shards.listing import content_facts, field, listed_shards, parse_object, shard_file
from cramming.data.shards.shard import Shard, ShardFile
from cramming.data.shards.writing import Finished, Packing
from cramming.errors import UserError

FORMAT, VERSION = "rows", 1
INDEX, TOKENIZER, TOKENS = "rows.json", "tokenizer.json", "tokens"
SIZE_LIMIT = 1 << 23
_DTYPES = ("uint16", "uint32")
_CHECKSUM = "sha256"


@dataclass(frozen=True)
class RowsIndex:
    """The index of a folder of rows."""

    shards: Sequence[Shard]
    columns: Mapping[str, str]
    fingerprint: str
    seq_length: int  # S
    dtype: str
    tokenizer: ShardFile

    @staticmethod
    def parse(text: str, where: str) -> "RowsIndex":
        """The index ``text`` is; ``where`` names it in messages.

        Raises:
            UserError: it is damaged, of another version, or names files outside its folder.
        """
        node = parse_object(text, where)
        if node.get("format") != FORMAT or node.get("version") != VERSION:
            raise UserError(
                f"{where} is of format {node.get('format')!r}, version {node.get('version')!r}; "
                f"this program reads {FORMAT}, version {VERSION}: convert the corpus again"
            )
        length, dtype = field(node, "seq_length", int, where), field(node, "dtype", str, where)
        if dtype not in _DTYPES or length < 1:
            raise UserError(f"{where}: rows of {length} {dtype} are no rows of token ids: the index is damaged")
        shards = listed_shards(node, where)
        width = length * np.dtype(dtype).itemsize
        for shard in shards:
            if shard.raw.size != shard.samples * width:
                raise UserError(
                    f"{where}: shard {shard.number} has {shard.samples:,} rows of {width} bytes and "
                    f"{shard.raw.size:,} bytes: the index is damaged"
                )
        tokenizer = shard_file(field(node, "tokenizer", dict, where), where)
        columns = {TOKENS: f"ndarray:{dtype}:{length}"}
        facts = [columns, dict(tokenizer.hashes), content_facts(shards)]
        return RowsIndex(shards, columns, fingerprint(FORMAT, facts), length, dtype, tokenizer)

    def open(self, shard: Shard, raw: Path) -> "RowsReader":
        """See ``ShardIndex.open``."""
        return RowsReader(raw, shard, self.seq_length, self.dtype)


class RowsReader:
    """The rows of a shard, mapped into memory.

    Raises:
        UserError: the file is not there or not as large as the index says.
    """

    def __init__(self, path: Path, shard: Shard, seq_length: int, dtype: str) -> None:
        try:
            size = path.stat().st_size
            if size != shard.raw.size:
                raise UserError(f"{path} is damaged: it has {size:,} bytes, the index says {shard.raw.size:,}")
            kind, shape = np.dtype(dtype).newbyteorder("<"), (shard.samples, seq_length)
            self._rows: np.ndarray = np.memmap(path, kind, "r", shape=shape) if shard.samples else np.empty(shape, kind)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error

    def __len__(self) -> int:
        """How many rows."""
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """See ``ShardReader``: a copy of one row, (S,)."""
        return {TOKENS: np.array(self._rows[number])}

    def close(self) -> None:
        """See ``ShardReader``."""
        self._rows = np.empty(0)  # the last reference to the mapping goes


class RowsWriter:
    """Rows in, shards out: a ``ShardWriter``. A sample is ``{"tokens": (S,) of the type}``.

    Args:
        seq_length: S.
        dtype: uint16 or uint32.
        tokenizer: the content of ``tokenizer.json``, which whoever keeps the shards keeps beside them.
        compression, hashes: see ``Packing``; SHA-256 is always there.
        size_limit: bytes of a decompressed shard.
        number: of the first shard it makes.
    """

    def __init__(
        self,
        seq_length: int,
        dtype: str,
        tokenizer: bytes,
        *,
        compression: str | None = None,
        hashes: Sequence[str] = (),
        size_limit: int | None = SIZE_LIMIT,
        number: int = 0,
    ) -> None:
        self._packing = Packing(compression, [_CHECKSUM, *hashes])
        self._head = {
            "format": FORMAT,
            "version": VERSION,
            "seq_length": seq_length,
            "dtype": dtype,
            "tokenizer": self._packing.described(TOKENIZER, tokenizer),
        }
        self._type = np.dtype(dtype).newbyteorder("<")
        self._most = max(1, (size_limit or SIZE_LIMIT) // (seq_length * self._type.itemsize))  # rows
        self._number = number
        self._rows: list[bytes] = []

    def add(self, sample: Mapping[str, Any]) -> Finished | None:
        """See ``ShardWriter``."""
        full = self._finished() if len(self._rows) == self._most else None
        self._rows.append(np.asarray(sample[TOKENS], self._type).tobytes())
        return full

    def finish(self) -> Finished | None:
        """See ``ShardWriter``."""
        return self._finished() if self._rows else None

    def index(self, entries: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
        """See ``ShardWriter``."""
        return INDEX, json.dumps({**self._head, "shards": entries}, sort_keys=True).encode()

    def _finished(self) -> Finished:
        more = {"compression": self._packing.compression}
        name = f"rows.{self._number:05}.bin"
        finished = self._packing.finished(name, b"".join(self._rows), len(self._rows), more)
        self._number += 1
        self._rows = []
        return finished
