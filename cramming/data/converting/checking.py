"""Looking at corpora in shards that are there: every checksum and every sample; or listing parquet files."""

import tempfile
from pathlib import Path
from typing import Any

from cramming.data.converting.target import Target
from cramming.data.shards.compression import decompressed
from cramming.data.shards.formats import format_of, read_index
from cramming.data.shards.hashes import check_file
from cramming.data.shards.parquet import listed, listing
from cramming.data.shards.shard import Shard, ShardIndex
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.remote import explained, filesystem, join, shown
from cramming.text import quantity


def check_folder(folder: Path, progress: ProgressSink) -> list[str]:
    """Read all that lies in a folder of shards, or in its splits; a line to print about each index.

    Raises:
        UserError: there is none, or the first thing that is not what its index says.
    """
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    places = [folder] if format_of(folder) is not None else [path for path in below if format_of(path) is not None]
    return [_checked(place, progress) for place in places or [folder]]


def _checked(folder: Path, progress: ProgressSink) -> str:
    index = read_index(folder)
    size = sum(shard.file.size for shard in index.shards)
    progress.stage(f"checking {folder}", size, "B")
    with tempfile.TemporaryDirectory() as work:
        for shard in index.shards:
            _check_shard(index, shard, folder, Path(work))
            progress.advance(shard.file.size)
    progress.done()
    samples = sum(shard.samples for shard in index.shards)
    hashes = sorted({name for shard in index.shards for name in shard.file.hashes})
    return (
        f"{folder}: {samples:,} samples in {len(index.shards):,} shards, {quantity(size, 'B')}, all as the index says"
        f" ({', '.join(hashes) or 'it has no checksums: sizes and samples only'})"
    )


def _check_shard(index: ShardIndex, shard: Shard, folder: Path, work: Path) -> None:
    path = folder / shard.file.name
    check_file(path, shard.file)
    if shard.compression is not None:
        raw = work / Path(shard.raw.name).name
        decompressed(shard, path, raw)
        check_file(raw, shard.raw)
        path = raw
    reader = index.open(shard, path)
    for number in range(len(reader)):
        reader[number]
    reader.close()


def list_parquet(address: str, progress: ProgressSink) -> str:
    """Write the listing of a folder of parquet files, here or elsewhere; a line to print about it.

    Only the footers of the files are read. They are taken in the order of their names.

    Raises:
        UserError: there are none, they are not usable, or differ in their columns.
    """
    target = Target(address)
    sizes = {name: size for name, size in sorted(target.sizes().items()) if name.endswith(".parquet")}
    if not sizes:
        raise UserError(f"index={shown(address)} has no files that end in .parquet; name the folder they are in")
    progress.stage("reading footers", len(sizes), "files")
    columns: dict[str, str] = {}
    entries: list[dict[str, Any]] = []
    with explained(address):
        for name, size in sizes.items():
            fs, path = filesystem(join(address, name))
            with fs.open(path, "rb") as file:
                found, entry = listed(file, name, size)
            if entries and found != columns:
                raise UserError(f"{name} has the columns {found}, those before it {columns}; list them apart")
            columns = found
            entries.append(entry)
            progress.advance(1)
    progress.done()
    target.put(*listing(columns, entries))
    rows = sum(entry["samples"] for entry in entries)
    return f"{target}: {rows:,} rows in {len(entries):,} files"
