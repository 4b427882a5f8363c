"""Parquet files as shards, with a listing of their own beside them: ``parquet.json`` says how many rows each file has.

The listing is made once, from the files' footers (``python -m cramming.data.convert index=<folder>``), so that reading
them over a network needs neither a listing of the folder nor their ends first. Rows are read by number, one row group
at a time.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cramming.data.fingerprint import fingerprint
from cramming.data.shards.compression import parse_compression
from cramming.data.shards.listing import content_facts, field, listed_shards, parse_object
from cramming.data.shards.shard import Shard
from cramming.data.shards.writing import Finished, Packing
from cramming.errors import UserError

FORMAT, VERSION = "parquet", 1
INDEX = "parquet.json"
SIZE_LIMIT = 1 << 26
_GROUP_BYTES = 1 << 20  # of a row group: what is read for a row
_LIST_AGAIN = "list the folder again with python -m cramming.data.convert index=<folder>"
_CODECS = {"zstd": "zstd", "gz": "gzip", "br": "brotli", "snappy": "snappy"}


@dataclass(frozen=True)
class ParquetIndex:
    """The listing of a folder of parquet files."""

    shards: Sequence[Shard]
    columns: Mapping[str, str]
    fingerprint: str

    @staticmethod
    def parse(text: str, where: str) -> "ParquetIndex":
        """The listing ``text`` is; ``where`` names it in messages.

        Raises:
            UserError: it is damaged, of another version, or names files outside its folder.
        """
        node = parse_object(text, where)
        if node.get("format") != FORMAT or node.get("version") != VERSION:
            raise UserError(
                f"{where} is of format {node.get('format')!r}, version {node.get('version')!r}; "
                f"this program reads {FORMAT}, version {VERSION}: {_LIST_AGAIN}"
            )
        columns = {name: field(node["columns"], name, str, where) for name in field(node, "columns", dict, where)}
        shards = listed_shards(node, where)
        return ParquetIndex(shards, columns, fingerprint(FORMAT, columns, content_facts(shards)))

    def open(self, shard: Shard, raw: Path) -> "ParquetReader":
        """See ``ShardIndex.open``."""
        return ParquetReader(raw, shard, self.columns)


class ParquetReader:
    """The rows of a parquet file.

    Raises:
        UserError: it is none, is damaged, or has not the rows and columns the index says.
    """

    def __init__(self, path: Path, shard: Shard, columns: Mapping[str, str]) -> None:
        import pyarrow.parquet

        self._path = path
        self._names = list(columns)
        with _readable(str(path)):
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, memory_map=True)
            metadata = self._file.metadata
            found = columns_of(self._file.schema_arrow)
        if metadata.num_rows != shard.samples or any(found.get(name) != columns[name] for name in columns):
            self._file.close()
            raise UserError(
                f"{path} has {metadata.num_rows:,} rows of {found}, the index says {shard.samples:,} of "
                f"{dict(columns)}: {_LIST_AGAIN}"
            )
        self._ends: list[int] = []
        for group in range(metadata.num_row_groups):
            self._ends.append((self._ends[-1] if self._ends else 0) + metadata.row_group(group).num_rows)
        self._group, self._first = -1, 0
        self._table: Any = None

    def __len__(self) -> int:
        """How many rows."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        """See ``ShardReader``."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        if self._table is None or not self._first <= number < self._ends[self._group]:
            self._group = next(group for group, end in enumerate(self._ends) if number < end)
            self._first = self._ends[self._group - 1] if self._group else 0
            with _readable(str(self._path)):
                self._table = self._file.read_row_group(self._group, columns=self._names, use_threads=False)
        with _readable(str(self._path)):
            return {name: _value(self._table.column(name)[number - self._first]) for name in self._names}

    def close(self) -> None:
        """See ``ShardReader``."""
        self._table = None
        self._file.close()


class ParquetWriter:
    """Samples in, parquet files out: a ``ShardWriter``.

    Args:
        columns: name -> ``str`` or ``bytes``.
        compression: of the pages inside: none, zstd, gz, br (each possibly with ``:level``) or snappy.
        hashes: of each file, for the index.
        size_limit: bytes of the values of a file.
        number: of the first shard it makes.

    Raises:
        UserError: one of them is not known.
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
        self._packing = Packing(None, hashes)
        self._codec: tuple[str, int | None] = ("none", None)
        if compression is not None:
            family, level = parse_compression(compression, "compression")
            if family not in _CODECS:
                raise UserError(f"compression={compression} is not one of parquet's; there are: {', '.join(_CODECS)}")
            self._codec = (_CODECS[family], level if family != "snappy" else None)
        self._columns = dict(sorted(columns.items()))
        self._limit = size_limit or SIZE_LIMIT
        self._number = number
        self._begin()

    def _begin(self) -> None:
        self._samples: list[Mapping[str, Any]] = []
        self._sizes: list[int] = []
        self._size = 0

    def add(self, sample: Mapping[str, Any]) -> Finished | None:
        """See ``ShardWriter``."""
        size = sum(len(value.encode() if isinstance(value, str) else value) for value in sample.values())
        full = self._finished() if self._samples and self._size + size > self._limit else None
        self._samples.append(sample)
        self._sizes.append(size)
        self._size += size
        return full

    def finish(self) -> Finished | None:
        """See ``ShardWriter``."""
        return self._finished() if self._samples else None

    def index(self, entries: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
        """See ``ShardWriter``."""
        return listing(self._columns, entries)

    def _finished(self) -> Finished:
        import pyarrow
        import pyarrow.parquet

        kinds = {"str": pyarrow.string(), "bytes": pyarrow.binary()}
        schema = pyarrow.schema([(name, kinds[kind]) for name, kind in self._columns.items()])
        out = io.BytesIO()
        codec, level = self._codec
        with pyarrow.parquet.ParquetWriter(out, schema, compression=codec, compression_level=level) as writer:
            begin = size = 0
            for number, one in enumerate(self._sizes):
                size += one
                if size >= _GROUP_BYTES or number == len(self._sizes) - 1:
                    writer.write_table(pyarrow.Table.from_pylist(self._samples[begin : number + 1], schema))
                    begin, size = number + 1, 0
        name = f"part-{self._number:05}.parquet"
        finished = self._packing.finished(name, out.getvalue(), len(self._samples), {})
        self._number += 1
        self._begin()
        return finished


def listing(columns: Mapping[str, str], entries: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
    """Name and content of the index of files with these entries."""
    node = {"format": FORMAT, "version": VERSION, "columns": columns, "shards": entries}
    return INDEX, json.dumps(node, sort_keys=True).encode()


def listed(file: BinaryIO, name: str, size: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Columns and entry of a parquet file, from its footer.

    Raises:
        UserError: it is none.
    """
    import pyarrow.parquet

    with _readable(name):
        found = pyarrow.parquet.ParquetFile(file)
        entry = {"basename": name, "bytes": size, "hashes": {}}
        return columns_of(found.schema_arrow), {"samples": found.metadata.num_rows, "raw_data": entry, "zip_data": None}


def columns_of(schema: Any) -> dict[str, str]:
    """The columns that can be read, by the names of their encodings, sorted; others are left alone."""
    found = {}
    for one in schema:
        if (kind := _encoding_of(one.type)) is not None:
            found[one.name] = kind
    return dict(sorted(found.items()))


def _encoding_of(kind: Any) -> str | None:
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return "str"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"ndarray:{_number(kind.value_type)}" if _number(kind.value_type) else None
    return _number(kind)


def _number(kind: Any) -> str | None:
    from pyarrow import types

    names = {"halffloat": "float16", "float": "float32", "double": "float64"}
    return names.get(str(kind), str(kind)) if types.is_integer(kind) or types.is_floating(kind) else None


def _value(scalar: Any) -> Any:
    if hasattr(scalar, "values"):  # a list
        return None if scalar.values is None else scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into the one error a person may see.

    Raises:
        UserError: in place of it.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where} is not a usable parquet file ({reason}); write or fetch it again") from error
