"""What makes shards, whatever the format: samples go in one by one, finished files come out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cramming.data.shards.compression import compress, parse_compression
from cramming.data.shards.hashes import check_algorithm, hash_of_bytes
from cramming.durable import write_file


@dataclass(frozen=True)
class Finished:
    """A shard that is complete."""

    name: str  # of its file
    data: bytes
    entry: Mapping[str, Any]  # what the index says of it


class ShardWriter(Protocol):
    """Makes shards of one format. What it makes depends on the samples alone."""

    def add(self, sample: Mapping[str, Any]) -> Finished | None:
        """Take a sample; the shard before it, if that one is full."""

    def finish(self) -> Finished | None:
        """The last shard, if any sample is left."""

    def index(self, entries: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
        """Name and content of the index of shards with these entries."""


class Packing:
    """What is done to the file of every shard: compressed, and known by checksums.

    Args:
        compression: none, zstd, gz, br, bz2 (each possibly with ``:level``) or snappy.
        hashes: of each file, for the index.

    Raises:
        UserError: one of them is not known.
    """

    def __init__(self, compression: str | None, hashes: Sequence[str]) -> None:
        self.compression = compression
        self.hashes = sorted(set(hashes))
        self._suffix = "" if compression is None else f".{parse_compression(compression, 'compression')[0]}"
        for algorithm in self.hashes:
            check_algorithm(algorithm, "hashes")

    def finished(self, name: str, raw: bytes, samples: int, more: Mapping[str, Any]) -> Finished:
        """A shard from its decompressed file; its entry has ``more`` in it."""
        data, packed = raw, None
        if self.compression is not None:
            data = compress(self.compression, raw)
            packed = self.described(name + self._suffix, data)
        entry = {"samples": samples, "raw_data": self.described(name, raw), "zip_data": packed, **more}
        return Finished(name + self._suffix, data, entry)

    def described(self, name: str, data: bytes) -> dict[str, Any]:
        """A file, as an index has it."""
        hashes = {algorithm: hash_of_bytes(data, algorithm) for algorithm in self.hashes}
        return {"basename": name, "bytes": len(data), "hashes": hashes}


def write_folder(folder: Path, writer: ShardWriter, samples: Iterable[Mapping[str, Any]]) -> None:
    """Write all shards of ``samples`` and then their index.

    Raises:
        UserError: what the writer refuses; or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []

    def keep(shard: Finished | None) -> None:
        if shard is not None:
            write_file(folder / shard.name, [shard.data], "shard")
            entries.append(shard.entry)

    for sample in samples:
        keep(writer.add(sample))
    keep(writer.finish())
    name, data = writer.index(entries)
    write_file(folder / name, [data], "index")
