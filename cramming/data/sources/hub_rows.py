"""The rows of a dataset, shard by shard, from any row on: parquet files by themselves, other formats with ``datasets``.

``datasets`` hands over a parquet file a row group at a time (830 MB of memory for one of 235 MB, measured), and its
state of a half-read dataset reads the shard before again; so parquet is read here, a megabyte at a time, and a place
is a shard and a row in it, which also outlives a new version of the library.
"""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from typing import Any, Protocol

from cramming.errors import UserError

_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20
_TEXT_TYPES = ("string", "large_string", "string_view")


class Rows(Protocol):
    """The text column of a dataset's split."""

    shards: int

    def read(self, shard: int, skip: int) -> Iterator[str | None]:
        """The texts of a shard behind its first ``skip`` rows, one each row.

        Raises:
            UserError: there is no such column, or it holds no text.
        """

    def starts(self, n: int) -> list[tuple[int, int]]:
        """At most ``n`` places (shard, row) spread evenly over the corpus, in order, if they are cheap to reach."""


class ParquetRows:
    """Rows of parquet files, each a shard; the files may be far away."""

    def __init__(self, files: list[str], column: str, name: str) -> None:
        self.shards = len(files)
        self._files = files
        self._column = column
        self._name = name

    def read(self, shard: int, skip: int) -> Iterator[str | None]:
        """See ``Rows.read``. Row groups that are skipped are not fetched."""
        with self._open(shard) as file:
            check_column(self._name, self._column, {field.name: str(field.type) for field in file.schema_arrow})
            group = 0
            while group < file.num_row_groups and file.metadata.row_group(group).num_rows <= skip:
                skip -= file.metadata.row_group(group).num_rows
                group += 1
            groups = range(group, file.num_row_groups)
            if not groups:
                return
            for batch in file.iter_batches(_BATCH_ROWS, groups, [self._column], use_threads=False):
                texts = batch.column(0)[skip:]
                skip = max(0, skip - batch.num_rows)
                for text in texts:
                    yield text.as_py()

    def starts(self, n: int) -> list[tuple[int, int]]:
        """See ``Rows.starts``: files, or where there are few of them their row groups."""
        if self.shards >= n:
            return spread([(shard, 0) for shard in range(self.shards)], n)
        places = []
        for shard in range(self.shards):
            with self._open(shard) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            begins = [(shard, row) for row in accumulate(sizes[:-1], initial=0)]
            places += spread(begins, n // self.shards)
        return places

    def count(self, most_files: float) -> int | None:
        """Rows in all files, from their ends; ``None`` if there are more than ``most_files``."""
        if self.shards > most_files:
            return None
        rows = 0
        for shard in range(self.shards):
            with self._open(shard) as file:
                rows += file.metadata.num_rows
        return rows

    @contextmanager
    def _open(self, shard: int) -> Iterator[Any]:
        import pyarrow.parquet
        from datasets.utils.file_utils import xopen

        with closing(xopen(self._files[shard], "rb")) as raw:
            yield pyarrow.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=_BUFFER_BYTES)


class StreamedRows:
    """Rows of an ``IterableDataset`` of any other format; its files are the shards."""

    def __init__(self, dataset: Any, column: str, name: str) -> None:
        self._dataset = dataset
        self.shards: int = dataset.num_shards
        self._column = column
        self._name = name

    def read(self, shard: int, skip: int) -> Iterator[str | None]:
        """See ``Rows.read``. A shard is read from its beginning, whatever is skipped."""
        with without_torch():
            tables = self._dataset.shard(num_shards=self.shards, index=shard).with_format("arrow").iter(_BATCH_ROWS)
        for table in tables:
            if skip >= table.num_rows:
                skip -= table.num_rows
                continue
            check_column(self._name, self._column, {field.name: str(field.type) for field in table.schema})
            texts = table.column(self._column)[skip:]
            skip = 0
            for text in texts:
                yield text.as_py()

    def starts(self, n: int) -> list[tuple[int, int]]:
        """See ``Rows.starts``: the beginnings of shards; there is no other way into a compressed file."""
        return spread([(shard, 0) for shard in range(self.shards)], n)


def spread(places: list[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    """``n`` of ``places``, evenly spaced, or all where there are no more."""
    n = min(n, len(places))
    return [places[i * len(places) // n] for i in range(n)]


def check_column(name: str, column: str, types: dict[str, str]) -> None:
    """Refuse a column that is not there or holds no text; ``types`` are those of the columns there are.

    Raises:
        UserError: it does.
    """
    if column not in types:
        raise UserError(
            f"{name} has no column {column!r}; its columns are: {', '.join(types)}; "
            "choose one with data.text_column=<name>"
        )
    if types[column] not in _TEXT_TYPES:
        raise UserError(
            f"{name}: column {column!r} is {types[column]}, not text; "
            f"its columns are: {', '.join(types)}; choose one with data.text_column=<name>"
        )


@contextmanager
def without_torch() -> Iterator[None]:
    """Have ``datasets`` make its objects without importing torch where nothing else has: 190 MB less."""
    import datasets

    before = datasets.config.TORCH_AVAILABLE
    datasets.config.TORCH_AVAILABLE = before and "torch" in sys.modules
    try:
        yield
    finally:
        datasets.config.TORCH_AVAILABLE = before
