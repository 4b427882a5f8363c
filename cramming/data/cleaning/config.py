"""``data.clean.*``: which documents of a corpus are left out."""

from dataclasses import dataclass
from typing import Any

from cramming.data.cleaning.charsets import CHARSETS
from cramming.errors import UserError
from cramming.suggest import nearest

DUPLICATES = ("none", "exact", "near")
# A longer document is judged by so much of its beginning: what is judged has to be in memory as a whole.
JUDGED_CHARACTERS = 1 << 21
SELF = "self"  # as a tokenizer: one trained on the text as it was before cleaning
FOUND = 0.9  # of the pairs as similar as ``near_threshold``, with the bands chosen here
MOST_HASHES = 1024


@dataclass
class CleanConfig:
    """Documents that are left out. Every option is off by default.

    A document is removed by the first of these stages that objects to it, in this order: length, charset, compression,
    tokens, duplicates.
    """

    min_characters: int | None = None  # code points; shorter documents are removed
    max_characters: int | None = None  # code points; longer documents are removed
    charset: list[str] | None = None  # the scripts a document is to be written in, as [latin] or [japanese]
    min_charset_share: float = 0.9  # of a document's letters that are of these scripts
    min_compression_ratio: float | None = None  # bytes over bytes after zlib; below it: keys, encoded files
    max_compression_ratio: float | None = None  # above it: text that repeats itself
    max_tokens_per_character: float | None = None  # as many and more are removed; 0.25 to 0.3 for English
    tokenizer: str = SELF  # that counts these tokens: self, or whatever data.tokenizer takes
    duplicates: str = "none"  # none, exact (but for white space), near (similar ones, and exact ones)
    near_threshold: float = 0.8  # share of word sequences in common; of pairs so similar 9 in 10 are found
    near_hashes: int = 128  # numbers kept of a document to compare it by
    near_bands: int | None = None  # groups of these numbers, one of which has to agree; chosen for near_threshold
    near_words: int = 5  # words in a sequence; in scripts without spaces, characters

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: one of them.
        """
        for key in ("min_characters", "max_characters"):
            value = getattr(self, key)
            if value is not None and not 1 <= value < JUDGED_CHARACTERS:
                raise UserError(
                    f"data.clean.{key}={value} is not possible; it takes 1 to {JUDGED_CHARACTERS - 1:,} (of longer "
                    "documents the beginning is judged), or null for no limit"
                )
        for key in ("min_compression_ratio", "max_compression_ratio", "max_tokens_per_character"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise UserError(f"data.clean.{key}={value} removes every document or none; it takes a number above 0")
        for what in ("characters", "compression_ratio"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise UserError(f"data.clean.min_{what}={low} is above data.clean.max_{what}={high}: nothing is left")
        self._check_charset()
        if not self.tokenizer:
            raise UserError(
                "data.clean.tokenizer is empty; use self, a folder, a vocabulary file or a Hugging Face name"
            )
        if self.duplicates not in DUPLICATES:
            raise UserError(
                f"data.clean.duplicates={self.duplicates} is not known{nearest(self.duplicates, DUPLICATES)}"
            )
        self._check_near()

    def _check_charset(self) -> None:
        if self.charset is not None and not self.charset:
            raise UserError("data.clean.charset=[] allows no letter; name scripts, as [latin], or null for any")
        for name in self.charset or []:
            if name not in CHARSETS:
                raise UserError(f"data.clean.charset={name} is not known{nearest(name, CHARSETS)}")
        if not 0 < self.min_charset_share <= 1:
            raise UserError(
                f"data.clean.min_charset_share={self.min_charset_share} is not a share; it takes above 0 to 1"
            )

    def _check_near(self) -> None:
        if not 0 < self.near_threshold <= 1:
            raise UserError(f"data.clean.near_threshold={self.near_threshold} is not a share; it takes above 0 to 1")
        if not 1 <= self.near_hashes <= MOST_HASHES:
            raise UserError(
                f"data.clean.near_hashes={self.near_hashes} is not possible; it takes 1 to {MOST_HASHES}, usually 128"
            )
        if self.near_bands is not None and not 1 <= self.near_bands <= self.near_hashes:
            raise UserError(
                f"data.clean.near_bands={self.near_bands} is not possible; it takes 1 to "
                f"data.clean.near_hashes={self.near_hashes}, or null to choose them for near_threshold"
            )
        if not 1 <= self.near_words <= 100:
            raise UserError(f"data.clean.near_words={self.near_words} is not possible; it takes 1 to 100, usually 5")

    @property
    def bands(self) -> int:
        """Groups of a document's numbers: ``near_bands``, or few enough for ``near_threshold``.

        Two documents of similarity s agree in a group of r numbers with probability s^r, so with b groups they are
        found with 1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4.2). The longest groups
        that still find 9 in 10 at the threshold confuse the fewest documents below it.
        """
        if self.near_bands is not None:
            return self.near_bands
        for rows in range(self.near_hashes, 1, -1):
            bands = self.near_hashes // rows
            if 1 - (1 - self.near_threshold**rows) ** bands >= FOUND:
                return bands
        return self.near_hashes

    @property
    def rows(self) -> int:
        """Numbers in a group."""
        return self.near_hashes // self.bands

    def stages(self) -> dict[str, dict[str, Any]]:
        """The stages that are on, in their order, each with the options that decide what it removes."""
        stages: dict[str, dict[str, Any]] = {
            "length": self._given("min_characters", "max_characters"),
            "charset": {},
            "compression": self._given("min_compression_ratio", "max_compression_ratio"),
            "tokens": self._given("max_tokens_per_character"),
            "duplicates": {},
        }
        if self.charset is not None:
            share = {"min_charset_share": self.min_charset_share}
            stages["charset"] = {"charset": sorted(set(self.charset))} | share
        if stages["tokens"]:
            stages["tokens"]["tokenizer"] = self.tokenizer
        if self.duplicates != "none":
            stages["duplicates"] = {"duplicates": self.duplicates}
        if self.duplicates == "near":
            stages["duplicates"] |= {"near_bands": self.bands, "near_rows": self.rows, "near_words": self.near_words}
        return {name: options for name, options in stages.items() if options}

    def _given(self, *keys: str) -> dict[str, Any]:
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
