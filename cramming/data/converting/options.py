"""What ``python -m cramming.data.convert`` is told beside the options of the source."""

import re
from dataclasses import dataclass, field
from typing import Any

from cramming.data.shards.compression import parse_compression
from cramming.data.shards.formats import FORMATS
from cramming.data.shards.hashes import check_algorithm
from cramming.errors import UserError
from cramming.suggest import nearest

#: The splits there are, by the earlier tools' names: whether each is of the validation split, and its first samples.
SPLITS: dict[str, tuple[bool, int | None]] = {
    "train": (False, None),
    "train_small": (False, 100_000),
    "val": (True, None),
    "val_small": (True, 10_000),
}
_UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_OF_CONCAT = ("bos_text", "eos_text", "no_wrap")


@dataclass
class ConvertOptions:
    """Where to, and how."""

    out: str | None = None  # a folder or an address: each split becomes a folder below it
    format: str = "mds"
    splits: list[str] = field(default_factory=lambda: ["train", "train_small", "val"])  # as the earlier tools
    compression: str | None = None
    hashes: list[str] = field(default_factory=lambda: ["sha1", "xxh64"])  # as the earlier tools
    size_limit: Any = None  # of a decompressed shard; None: as is usual for the format
    concat_tokens: int | None = None  # token ids in a sample
    tokenizer: str | None = None  # data.tokenizer, under the earlier tools' name
    bos_text: str | None = None
    eos_text: str | None = None
    no_wrap: bool = False
    max_characters: int | None = None  # of each document, from its beginning
    val_share: float = 0.0005  # of the documents, where the source has no validation split of its own
    check: str | None = None  # a folder of shards: read everything, compare every checksum
    index: str | None = None  # a folder of parquet files, here or elsewhere: list them

    def check_values(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: one of them.
        """
        if not self.out:
            raise UserError("out=<folder or address> is missing: where the shards are written")
        if self.format not in FORMATS:
            raise UserError(f"format={self.format} is not known{nearest(self.format, FORMATS)}")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise UserError(f"splits={self.splits} names none, or one twice; there are: {', '.join(SPLITS)}")
        for split in self.splits:
            if split not in SPLITS:
                raise UserError(f"splits has {split!r}, which is not known{nearest(split, SPLITS)}")
        if self.compression is not None:
            parse_compression(self.compression, "compression=")
        for algorithm in self.hashes:
            check_algorithm(algorithm, "hashes=")
        if not 0 < self.val_share <= 0.5:
            raise UserError(f"val_share={self.val_share} is no share of the documents; it takes above 0 to 0.5")
        if self.max_characters is not None and self.max_characters < 1:
            raise UserError(f"max_characters={self.max_characters} leaves nothing; it takes 1 or more, or null")
        _ = self.size_bytes
        self._check_concat()

    def _check_concat(self) -> None:
        given = [key for key in _OF_CONCAT if getattr(self, key)]
        if self.concat_tokens is None:
            if given:
                raise UserError(
                    f"{given[0]}= is for joined token ids: give concat_tokens=<ids in a sample>, or leave it out"
                )
            if self.tokenizer is not None and self.format != "rows":
                raise UserError("tokenizer= is for token ids: give concat_tokens=<ids in a sample> or format=rows")
            return
        if self.format == "rows":
            raise UserError("concat_tokens is for mds and parquet; rows have data.seq_length tokens: leave it out")
        if self.concat_tokens < 1:
            raise UserError(f"concat_tokens={self.concat_tokens} leaves nothing; it takes 1 or more, usually 128")
        if self.tokenizer is None:
            raise UserError(
                "concat_tokens needs tokenizer=<file, folder or Hugging Face name>, or train for one of its own"
            )

    @property
    def size_bytes(self) -> int | None:
        """``size_limit`` as a number.

        Raises:
            UserError: it is none.
        """
        if self.size_limit is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(self.size_limit))
        if (
            found is None
            or found[2] not in _UNITS
            or not 0 < (size := int(float(found[1]) * _UNITS[found[2]])) < 1 << 32
        ):
            raise UserError(f"size_limit={self.size_limit} is no size of a shard; write it like 64MiB, below 4GiB")
        return size
