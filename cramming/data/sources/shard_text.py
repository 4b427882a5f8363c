"""The text column of a corpus in shards that lies on this machine, as a source: ``data=local data.path=<folder>``."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cramming.data.fingerprint import content_hashes, fingerprint
from cramming.data.shards.compression import decompressed
from cramming.data.shards.formats import format_of, read_index
from cramming.data.shards.hashes import check_file
from cramming.data.shards.shard import Shard, ShardReader
from cramming.data.sources.source import Assembler, Piece, beginning, bounded
from cramming.errors import UserError
from cramming.progress import ProgressSink

SAMPLE_BYTES = 16_000_000


def holds_shards(path: Path) -> bool:
    """Whether a folder has shards with their index, or folders of splits that have."""
    return path.is_dir() and any(map(_has_shards, [path, *filter(Path.is_dir, path.iterdir())]))


def _has_shards(folder: Path) -> bool:
    kind = format_of(folder)
    return kind is not None and (kind != "mds" or any(folder.glob("*.mds*")))  # others call files index.json, too


class ShardText:
    """Documents in the order of the index; a cursor is [shard, sample].

    Args:
        folder: with an index.
        column: of text.
        data_dir: where checksums of files without any are remembered, and compressed shards are unfolded one by one.
        progress: shown while files without checksums are read for theirs.

    Raises:
        UserError: there is no index, or no such column of text.
    """

    unit = "B"
    shuffled = False
    sample_bytes = SAMPLE_BYTES

    def __init__(self, folder: Path, column: str, data_dir: Path, progress: ProgressSink) -> None:
        self.name = f"data.path={folder}"
        self._folder, self._column, self._data_dir = folder, column, data_dir
        self._index = read_index(folder)
        shards, columns = self._index.shards, self._index.columns
        if shards and columns.get(column) != "str":
            raise UserError(
                f"{folder} has no column {column!r} of text; its columns are: {dict(columns)}; "
                "choose one with data.text_column=<name>"
            )
        self.total = float(sum(shard.raw.size for shard in shards))
        files = [folder / shard.file.name for shard in shards if not shard.raw.hashes]
        for file in files:
            if not file.is_file():
                raise UserError(f"{file} is missing, and the index lists it")
        read = content_hashes(files, data_dir, progress)
        self.fingerprint = fingerprint("shards", 1, self._index.fingerprint, read, column)
        self.inputs: list[dict[str, str | int]] = [
            {"file": shard.file.name, "bytes": shard.file.size, **shard.file.hashes} for shard in shards
        ]

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``.

        Raises:
            UserError: a shard is not what the index says.
        """
        first, begin = after or (0, 0)
        assembler = Assembler()
        before = float(sum(shard.raw.size for shard in self._index.shards[:first]))
        for shard in self._index.shards[first:]:
            for number, text in self._texts(shard, begin):
                position = before + shard.raw.size * (number + 1) / shard.samples
                cursor = [shard.number, number + 1]
                for fragment in bounded(text):
                    yield from assembler.add(fragment, position)
                for piece in assembler.end(position):
                    yield piece._replace(cursor=cursor)
            begin = 0
            before += shard.raw.size

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """See ``Source.glimpse``: the beginning."""
        return beginning(self.pieces(), characters)

    def _texts(self, shard: Shard, begin: int) -> Iterator[tuple[int, str]]:
        file = self._folder / shard.file.name
        check_file(file, shard.file)
        if shard.compression is None:
            yield from _read(self._index.open(shard, file), begin, self._column)
            return
        self._data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._data_dir, prefix="shard-") as work:
            raw = Path(work) / "raw"
            decompressed(shard, file, raw)
            yield from _read(self._index.open(shard, raw), begin, self._column)


def _read(reader: ShardReader, begin: int, column: str) -> Iterator[tuple[int, str]]:
    try:
        for number in range(begin, len(reader)):
            text = reader[number][column]
            if text is not None:  # parquet has empty places
                yield number, text
    finally:
        reader.close()
