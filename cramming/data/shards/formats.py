"""The formats of corpora in shards, each known by the name of its index."""

from collections.abc import Callable
from pathlib import Path

from cramming.data.shards import mds, parquet, rows
from cramming.data.shards.shard import ShardIndex
from cramming.errors import UserError

#: Format -> the name of its index, and what makes one of the index's text and of what to call it in messages.
FORMATS: dict[str, tuple[str, Callable[[str, str], ShardIndex]]] = {
    "mds": (mds.INDEX, mds.MdsIndex.parse),
    "parquet": (parquet.INDEX, parquet.ParquetIndex.parse),
    "rows": (rows.INDEX, rows.RowsIndex.parse),
}


def format_of(folder: Path) -> str | None:
    """The format of the shards in a folder on this machine; None: there is no index."""
    return next((name for name, (index, _) in FORMATS.items() if (folder / index).is_file()), None)


def read_index(folder: Path) -> ShardIndex:
    """The index of a folder on this machine.

    Raises:
        UserError: there is none, or it is not usable.
    """
    kind = format_of(folder)
    if kind is None:
        splits = sorted(below.name for below in folder.iterdir() if format_of(below)) if folder.is_dir() else []
        way_out = (
            f"; its splits are folders, name one: {', '.join(splits)}" if splits else ": it is no folder of shards"
        )
        raise UserError(f"{folder} has no index ({', '.join(index for index, _ in FORMATS.values())}){way_out}")
    name, parse = FORMATS[kind]
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    return parse(text, str(path))
