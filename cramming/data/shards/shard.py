"""What a corpus in shards is, whatever the format: an index of shards, and each shard a number of samples by index.

``mds.py`` reads MosaicML's format, ``parquet.py`` a folder of parquet files, ``rows.py`` our own rows of token ids.
Nothing here fetches anything: a shard's files are brought to this machine by ``cramming/data/streaming``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class ShardFile:
    """A file as it lies at its place, beside the index."""

    name: str  # relative; may lie in a folder below (merged indexes have such), never outside the index's folder
    size: int  # bytes
    hashes: Mapping[str, str]  # algorithm -> hexadecimal digest; empty where the index has none


@dataclass(frozen=True)
class Shard:
    """One shard of a corpus."""

    number: int  # from 0, in the order of the index
    first: int  # number of its first sample in the corpus
    samples: int
    file: ShardFile  # what is fetched: compressed, if the corpus is
    raw: ShardFile  # what is read: the same file, if the corpus is not compressed
    compression: str | None  # zstd, gz, br, bz2; with a level behind a colon, as the index says it


class ShardReader(Protocol):
    """The samples of one shard that lies on this machine, decompressed. Samples are read one by one, by number."""

    def __len__(self) -> int:
        """How many samples."""

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        """Sample ``number`` of the shard: column -> value (str, bytes, int, float or an array)."""

    def close(self) -> None:
        """Give the file back."""


class ShardIndex(Protocol):
    """All shards of a corpus, as its index lists them."""

    @property
    def shards(self) -> Sequence[Shard]:
        """In their order."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Name -> encoding (``str``, ``bytes``, ``int``, ...), sorted by name."""

    @property
    def fingerprint(self) -> str:
        """Of everything in the index that decides the samples; hexadecimal."""

    def open(self, shard: Shard, raw: Path) -> ShardReader:
        """A shard whose raw (decompressed) file is ``raw``.

        Raises:
            UserError: it is not what the index says.
        """
