"""Shards in MosaicML's format MDS, version 2, byte for byte as the original library writes them (see ``mds``).

Two things differ on purpose: gzip files do not carry the time of day, and a first sample larger than ``size_limit``
does not leave an empty shard before it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramming.data.shards.encodings import encoding
from cramming.data.shards.mds import INDEX, VERSION
from cramming.data.shards.writing import Finished, Packing, write_folder
from cramming.errors import UserError

SIZE_LIMIT = 1 << 26  # bytes of a decompressed shard, as in the original library
_MOST = 1 << 32  # offsets are uint32
_OFFSET_BYTES = 4  # each sample has one


class MdsWriter:
    """Samples in, shards out: a ``ShardWriter``.

    Args:
        columns: name -> encoding.
        compression: none, zstd, gz, br, bz2 (each possibly with ``:level``) or snappy.
        hashes: of each file, for the index.
        size_limit: bytes of a decompressed shard; None: everything in one.
        number: of the first shard it makes.

    Raises:
        UserError: one of them is not known or out of range.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        *,
        compression: str | None = None,
        hashes: Sequence[str] = (),
        size_limit: int | None = SIZE_LIMIT,
        number: int = 0,
    ) -> None:
        self._packing = Packing(compression, hashes)
        if size_limit is not None and not 0 < size_limit < _MOST:
            raise UserError(f"size_limit={size_limit} is out of range; a shard has 1 to {_MOST - 1:,} bytes")
        self._columns = [(name, encoding(columns[name], f"column {name!r}")) for name in sorted(columns)]
        self._settings = {
            "version": VERSION,
            "format": "mds",
            "compression": compression,
            "hashes": self._packing.hashes,
            "size_limit": size_limit,
            "column_names": [name for name, _ in self._columns],
            "column_encodings": [columns[name] for name, _ in self._columns],
            "column_sizes": [kind.size for _, kind in self._columns],
        }
        self._head = json.dumps(self._settings, sort_keys=True).encode()
        self._limit = _MOST - 1 if size_limit is None else size_limit
        self._number = number
        self._begin()

    def _begin(self) -> None:
        self._samples: list[bytes] = []
        self._size = 4 + _OFFSET_BYTES + len(self._head)

    def add(self, sample: Mapping[str, Any]) -> Finished | None:
        """Take a sample; the shard before it, if that one is full.

        Raises:
            UserError: a sample that no shard can hold.
        """
        data = self._encoded(sample)
        grown = len(data) + _OFFSET_BYTES
        full = self._finished() if self._samples and self._size + grown > self._limit else None
        if self._size + grown >= _MOST:
            raise UserError(f"a sample of {len(data):,} bytes is too large for MDS; cut the document")
        self._samples.append(data)
        self._size += grown
        return full

    def finish(self) -> Finished | None:
        """The last shard, if any sample is left."""
        return self._finished() if self._samples else None

    def index(self, entries: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
        """Name and content of the index of shards with these entries."""
        return INDEX, json.dumps({"version": VERSION, "shards": entries}, sort_keys=True).encode()

    def _encoded(self, sample: Mapping[str, Any]) -> bytes:
        values = [kind.encode(sample[name]) for name, kind in self._columns]
        sizes = [len(value) for value, (_, kind) in zip(values, self._columns, strict=True) if kind.size is None]
        return b"".join([np.array(sizes, "<u4").tobytes(), *values])

    def _finished(self) -> Finished:
        offsets = np.cumsum([4 + _OFFSET_BYTES * (len(self._samples) + 1) + len(self._head), *map(len, self._samples)])
        count = np.array(len(self._samples), "<u4").tobytes()
        raw = b"".join([count, offsets.astype("<u4").tobytes(), self._head, *self._samples])
        finished = self._packing.finished(f"shard.{self._number:05}.mds", raw, len(self._samples), self._settings)
        self._number += 1
        self._begin()
        return finished


def write_mds(
    folder: Path,
    columns: Mapping[str, str],
    samples: Iterable[Mapping[str, Any]],
    *,
    compression: str | None = None,
    hashes: Sequence[str] = (),
    size_limit: int | None = SIZE_LIMIT,
) -> None:
    """Write samples as an MDS folder; the index comes last.

    Raises:
        UserError: see ``MdsWriter``; or the disk is full.
    """
    write_folder(folder, MdsWriter(columns, compression=compression, hashes=hashes, size_limit=size_limit), samples)
