"""What makes shards, whatever the format: samples go in one by one, finished files come out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
