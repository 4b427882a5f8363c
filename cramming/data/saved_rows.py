"""Reading a published set of token rows: a folder as ``Dataset.save_to_disk`` wrote it, or an archive of one.

Shape legend: n rows of one record batch, S positions.

``<folder>/state.json`` names the shards in their order; they are Arrow streams with a column ``input_ids``. Beside
them lie ``tokenizer/tokenizer.json`` and ``model_config.json`` with the settings they were made with. An archive is
read from its beginning to its end, once, and nothing is unpacked: no name in it ever becomes a name on this disk.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from cramming.data.archives import DAMAGE, Counted, archive_files
from cramming.errors import UserError
from cramming.progress import ProgressSink

STATE, SETTINGS, TOKENIZER = "state.json", "model_config.json", "tokenizer/tokenizer.json"
_SHARD = re.compile(r"(?:data-\d+-of-\d+|dataset)\.arrow")
_COLUMN = "input_ids"
_MOST_JSON_BYTES = 1 << 28


class Member(NamedTuple):
    """A file that belongs to the set."""

    folder: str  # where the set lies in the archive; empty in a folder
    name: str  # ``STATE``, ``SETTINGS``, ``TOKENIZER`` or a shard's
    file: IO[bytes]

    @property
    def is_shard(self) -> bool:
        """Whether it holds rows."""
        return _SHARD.fullmatch(self.name) is not None

    def json(self) -> dict[str, Any]:
        """Its content.

        Raises:
            UserError: it is no JSON object.
        """
        try:
            content = json.loads(self.text())
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise UserError(f"{self.name} of the published set is no JSON object: it is damaged")
        return content

    def text(self) -> str:
        """Its content.

        Raises:
            UserError: it is far larger than such a file is, or no text.
        """
        data = self.file.read(_MOST_JSON_BYTES + 1)
        if len(data) > _MOST_JSON_BYTES:
            raise UserError(f"{self.name} of the published set has more than {_MOST_JSON_BYTES} bytes: it is damaged")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name} of the published set is no text: it is damaged") from error


def members(source: Path, progress: ProgressSink) -> Iterator[Member]:
    """The files of the set in ``source``, in the order they lie there. Each is read before the next one is asked for.

    Raises:
        UserError: a damaged archive, or one with links, devices or names that lead out of a folder.
    """
    if source.is_dir():
        yield from _in_folder(source, progress)
        return
    yield from _in_archive(archive_files(source, progress), source)


def row_batches(file: IO[bytes], name: str) -> Iterator[np.ndarray]:
    """Token ids of a shard, (n, S) each, in its integer type.

    Raises:
        UserError: no Arrow stream, no such column, or rows of different lengths.
    """
    try:
        with pa.ipc.open_stream(file) as reader:
            if _COLUMN not in reader.schema.names:
                raise UserError(f"{name} has no column {_COLUMN}; it has: {', '.join(reader.schema.names)}")
            for batch in reader:
                yield _rows(batch.column(_COLUMN), name)
    except (pa.ArrowException, *DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} of the published set is no Arrow stream or is damaged ({reason})") from error


def shard_order(state: dict[str, Any]) -> list[str]:
    """The names of the shards, first rows first.

    Raises:
        UserError: rows that are chosen by an index beside them, or no shards.
    """
    if any(state.get(key) for key in ("_indices_data_files", "_indices_files")):
        raise UserError(
            "the rows of this set stand in the order of an index beside them, which cannot be read as a stream; "
            "load it with datasets.load_from_disk, call flatten_indices().save_to_disk and give from=<that folder>"
        )
    listed = state.get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed or []]
    known = [name for name in names if isinstance(name, str) and _SHARD.fullmatch(name)]
    if not names or len(set(known)) < len(names):
        raise UserError(f"{STATE} of the published set names no shards (data-00000-of-00001.arrow): it names {names}")
    return known


def _in_folder(folder: Path, progress: ProgressSink) -> Iterator[Member]:
    if not (folder / STATE).is_file():
        inside = sorted(folder.glob(f"*/{STATE}"))
        if len(inside) != 1:
            raise UserError(f"{folder} has no {STATE}: it is no folder that Dataset.save_to_disk wrote")
        folder = inside[0].parent
    known = [name for name in (STATE, SETTINGS, TOKENIZER) if (folder / name).is_file()]
    for name in known + sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name)):
        with open(folder / name, "rb") as raw:
            yield Member("", name, Counted(raw, progress))  # type: ignore[arg-type]


def _in_archive(files: Iterator[tuple[PurePosixPath, IO[bytes]]], source: Path) -> Iterator[Member]:
    seen: dict[tuple[str, str], None] = {}
    for path, file in files:
        depth = 2 if path.parts[-2:] == ("tokenizer", "tokenizer.json") else 1
        folder, name = "/".join(path.parts[:-depth]), "/".join(path.parts[-depth:])
        if name not in (STATE, SETTINGS, TOKENIZER) and not _SHARD.fullmatch(name):
            continue
        other = next((base for base, _ in seen if base != folder), None)
        if other is not None:
            raise UserError(f"{source} holds two sets, in {other!r} and {folder!r}; unpack it and give one, from=")
        if (folder, name) in seen:
            raise UserError(f"{source} holds {str(path)!r} twice: it is damaged")
        seen[folder, name] = None
        yield Member(folder, name, file)


def _rows(column: pa.Array, name: str) -> np.ndarray:
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not pa.types.is_integer(kind.value_type):
        raise UserError(f"{name}: column {_COLUMN} holds {kind}, not lists of whole numbers")
    values = column.flatten()
    if column.null_count or values.null_count:
        raise UserError(f"{name}: column {_COLUMN} has empty places")
    count = len(column)
    if count and not len(values):
        raise UserError(f"{name}: column {_COLUMN} has empty places")
    if not pa.types.is_fixed_size_list(kind):
        lengths = np.diff(column.offsets.to_numpy())
        if count and (lengths != lengths[0]).any():
            other = int(lengths[lengths != lengths[0]][0])
            raise UserError(f"{name} has a row of {other} tokens, others have {lengths[0]}: all must be equally long")
    ids = values.to_numpy()
    return ids.reshape(count, -1) if count else ids.reshape(0, 0)
