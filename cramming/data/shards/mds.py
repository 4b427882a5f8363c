"""MosaicML's format MDS, version 2: read here, written by ``mds_writer``.

A folder with ``index.json`` and shards, each possibly compressed. A shard holds N samples::

    uint32 N | uint32[N + 1] where each sample begins in the file, and the end | JSON | samples

and a sample its columns in the order of their names::

    uint32 for each column of varying size: its bytes | the columns' bytes

Numbers are little-endian. The specification is the original library's source (mosaicml-streaming).
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cramming.data.fingerprint import fingerprint
from cramming.data.shards.encodings import Encoding, encoding
from cramming.data.shards.listing import content_facts, field, listed_shards, parse_object
from cramming.data.shards.shard import Shard
from cramming.errors import UserError

INDEX = "index.json"
VERSION = 2
_WORD = np.dtype("<u4")


@dataclass(frozen=True)
class MdsIndex:
    """The index of an MDS folder."""

    shards: Sequence[Shard]
    columns: Mapping[str, str]
    fingerprint: str

    @staticmethod
    def parse(text: str, where: str) -> "MdsIndex":
        """The index ``text`` is; ``where`` names it in messages.

        Raises:
            UserError: it is damaged, of another version or format, or names files outside its folder.
        """
        node = parse_object(text, where)
        _check_version(node, where)
        columns: dict[str, str] = {}
        for number, one in enumerate(field(node, "shards", list, where)):
            found = _columns(one, f"{where}: shard {number}")
            if number and list(columns.items()) != list(found.items()):
                raise UserError(
                    f"{where}: shard {number} has columns {found}, those before {columns}; convert it again"
                )
            columns = found
        shards = listed_shards(node, where)
        return MdsIndex(shards, columns, fingerprint("mds", columns, content_facts(shards)))

    @property
    def samples(self) -> int:
        """Of all shards."""
        return sum(shard.samples for shard in self.shards)

    def open(self, shard: Shard, raw: Path) -> "MdsReader":
        """See ``ShardIndex.open``."""
        return MdsReader(raw, shard, self.columns)


def _check_version(node: Any, where: str) -> None:
    version = node.get("version") if isinstance(node, dict) else None
    if version != VERSION:
        raise UserError(
            f"{where} is of MDS version {version!r}, this program reads version {VERSION}; "
            "convert the corpus again with a newer library or python -m cramming.data.convert"
        )


def _columns(node: Any, where: str) -> dict[str, str]:
    """Column -> encoding of one shard, looked at before anything is read with them."""
    _check_version(node, where)
    if node.get("format") != "mds":
        raise UserError(f"{where} is of the format {node.get('format')!r}, this program reads mds; convert it again")
    names = field(node, "column_names", list, where)
    encodings = field(node, "column_encodings", list, where)
    sizes = field(node, "column_sizes", list, where)
    whole = all(isinstance(text, str) for text in (*names, *encodings)) and len(names) == len(encodings) == len(sizes)
    if not names or not whole or len(set(names)) < len(names):
        raise UserError(f"{where}: columns {names}, encodings {encodings}, sizes {sizes}: the index is damaged")
    for name, kind, size in zip(names, encodings, sizes, strict=True):
        expected = encoding(kind, f"{where}, column {name!r}").size
        if size != expected:
            raise UserError(f"{where}: column {name!r} has size {size}, {kind} has {expected}: the index is damaged")
    return dict(zip(names, encodings, strict=True))


class MdsReader:
    """The samples of a shard, out of its file as the system maps it into memory.

    Raises:
        UserError: the file does not hold what the index says, or is damaged.
    """

    def __init__(self, path: Path, shard: Shard, columns: Mapping[str, str]) -> None:
        self._path = path
        self._columns = [(name, encoding(kind, str(path))) for name, kind in columns.items()]
        self._varying = sum(one.size is None for _, one in self._columns)
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise UserError(f"{path} is empty: it is damaged; fetch it again") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        try:
            self._offsets = self._checked_offsets(shard)
        except UserError:
            self._map.close()
            raise

    def _checked_offsets(self, shard: Shard) -> np.ndarray:
        size = len(self._map)
        if size != shard.raw.size:
            raise self._damaged(f"it has {size:,} bytes, the index says {shard.raw.size:,}")
        words = size // _WORD.itemsize
        count = int(np.frombuffer(self._map[:4], _WORD)[0]) if words else -1
        if count != shard.samples:
            raise self._damaged(f"it says it has {count:,} samples, the index says {shard.samples:,}")
        if words < count + 2:
            raise self._damaged(f"it is too short to say where its {count:,} samples begin")
        head = 4 * (count + 2)
        offsets = np.frombuffer(self._map[4:head], _WORD).astype(np.int64)
        if offsets[0] < head or offsets[-1] != size or (np.diff(offsets) < 0).any():
            raise self._damaged("where its samples begin and end does not fit its size")
        return offsets

    def __len__(self) -> int:
        """How many samples."""
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        """See ``ShardReader``."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        data = self._map[self._offsets[number] : self._offsets[number + 1]]
        at = 4 * self._varying
        if len(data) < at:
            raise self._damaged(f"sample {number} is too short")
        sizes = iter(np.frombuffer(data, _WORD, self._varying).tolist())
        sample = {}
        for name, kind in self._columns:
            end = at + (next(sizes) if kind.size is None else kind.size)
            if end > len(data):
                raise self._damaged(f"sample {number} is too short for its column {name!r}")
            sample[name] = self._decoded(kind, data[at:end], number, name)
            at = end
        if at != len(data):
            raise self._damaged(f"sample {number} is longer than its columns")
        return sample

    def _decoded(self, kind: Encoding, data: bytes, number: int, name: str) -> Any:
        try:
            return kind.decode(data)
        except ValueError as error:
            raise self._damaged(f"sample {number}, column {name!r}: {error}") from error

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self._path} is damaged: {reason}; fetch it again")

    def close(self) -> None:
        """See ``ShardReader``."""
        self._map.close()
