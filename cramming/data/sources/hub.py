"""``data=hub data.dataset=owner/name``: any dataset of the Hugging Face hub with a column of text, read as a stream.

Only what is used is fetched: the files of the split, one after the other, until ``data.max_documents`` or
``data.max_tokens`` is reached. A local folder or file that ``datasets`` can load works the same way.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cramming.data.config import DataConfig
from cramming.data.fingerprint import fingerprint
from cramming.data.sources.hub_repository import Repository, Wanted
from cramming.data.sources.hub_rows import ParquetRows, Rows
from cramming.data.sources.source import Assembler, Piece, Source, bounded, documents_to_pieces
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.registry import register

SAMPLE_BYTES = 16_000_000
READING_VERSION = 1  # of the code that turns rows into documents; part of every fingerprint
_SAMPLE_PLACES = 16
_GLIMPSE_PLACES = 4
_COUNTED_FILES = 16  # on the hub; looking into more takes too long
_SAMPLED_CHARACTERS = 64 * SAMPLE_BYTES  # at most so much is offered to sample from
_SPLIT = re.compile(r"\w[\w.-]*")


@register("data", "hub")
@dataclass
class HubConfig(DataConfig):
    """A dataset of the Hugging Face hub."""

    kind: str = "hub"
    name: str = "hub"
    dataset: str | None = None  # owner/name on the hub, or a local folder or file that `datasets` can load
    subset: str | None = None  # of datasets that come in several (also called configuration)
    split: str = "train"
    revision: str | None = None  # branch, tag or commit; the commit found first is remembered in <data_dir>/hub.json
    text_column: str = "text"
    join_rows: int = 1  # so many successive rows make one document, joined with spaces: for corpora of single sentences
    download: str | None = None  # what to run where there is a network, for the message where there is none

    def check(self) -> None:
        """See ``DataConfig.check``."""
        super().check()
        if not self.dataset:
            raise UserError("data=hub needs data.dataset=<owner/name on the Hugging Face hub, or a local folder>")
        if not _SPLIT.fullmatch(self.split):
            raise UserError(
                f"data.split={self.split} is not the name of a split; "
                "use data.max_documents or data.max_tokens to take a part of one"
            )
        if self.join_rows < 1:
            raise UserError(f"data.join_rows={self.join_rows} joins nothing; it takes 1 (each row a document) or more")

    def source(self, data_dir: Path, workers: int, progress: ProgressSink) -> Source:
        """See ``DataConfig.source``."""
        assert self.dataset, "check() comes first"
        wanted = Wanted(self.dataset, self.subset or None, self.split, self.revision or None, self.download)
        repository = Repository(wanted, data_dir, progress)
        return HubSource(repository, self.text_column, self.join_rows, self.max_documents)


class HubSource:
    """Documents in the order of a split's files. Nothing is fetched before it is asked for.

    A cursor is [file, rows of it, rows of the files before it].
    """

    unit = "documents"
    shuffled = True  # of ``sample_pieces``; files themselves are often sorted
    sample_bytes = SAMPLE_BYTES

    def __init__(
        self, repository: Repository, text_column: str, join_rows: int = 1, max_documents: int | None = None
    ) -> None:
        self.name = repository.name
        self.inputs: list[dict[str, str | int]] = repository.inputs
        self.fingerprint = fingerprint("hub", READING_VERSION, repository.identity, text_column, join_rows)
        self._repository = repository
        self._text_column = text_column
        self._join_rows = join_rows
        self._max_documents = max_documents

    @cached_property
    def total(self) -> float:
        """Rows that will be read; infinity where nobody knows."""
        if self._max_documents is not None:
            limit = self._max_documents * self._join_rows
            return float(min(limit, self._repository.known_rows() or limit))
        rows = self._repository.known_rows()
        if rows is None and isinstance(self._rows, ParquetRows):
            with self._repository.explaining():
                rows = self._rows.count(math.inf if self._repository.is_local else _COUNTED_FILES)
        return math.inf if rows is None else float(rows)

    @cached_property
    def _rows(self) -> Rows:
        return self._repository.rows(self._text_column)

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``."""
        shard, skip, before = after or (0, 0, 0)
        assembler = Assembler()
        while shard < self._rows.shards:
            row = skip
            for text, row, last in self._documents(shard, skip):
                position = float(before + row)
                cursor = [shard + 1, 0, before + row] if last else [shard, row, before]
                for fragment in bounded(text):
                    yield from assembler.add(fragment, position)
                for piece in assembler.end(position):
                    yield piece._replace(cursor=cursor)
            shard, skip, before = shard + 1, 0, before + row

    def sample_pieces(self) -> Iterator[Piece]:
        """Documents to train a tokenizer on: the beginnings of several parts of the corpus, then what follows them."""
        starts = self._starts(_SAMPLE_PLACES)
        # A place ends where the next one begins, if that is in the same shard.
        ends = [row or None for _, row in [*starts[1:], (0, 0)]]
        places = [(shard, row, end) for (shard, row), end in zip(starts, ends, strict=True)]
        share = SAMPLE_BYTES / max(1, len(places))
        offered = read = 0
        while places and offered < _SAMPLED_CHARACTERS:
            unfinished: list[tuple[int, int, int | None]] = []
            for shard, first, end in places:
                characters, row = 0, first
                for text, row, last in self._documents(shard, first):
                    if end is not None and row > end:
                        break
                    yield from documents_to_pieces(iter([(text, float(read + row - first))]))
                    characters += len(text)
                    if characters >= share:
                        unfinished += [] if last else [(shard, row, end)]
                        break
                read += row - first
                offered += characters
            places = unfinished
            share *= 2  # some shards have to be read from their beginning again

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """See ``Source.glimpse``: where a few parts of the corpus begin, or where it does if it is limited."""
        texts: list[str] = []
        rows = 0
        places = self._starts(_GLIMPSE_PLACES) if self._max_documents is None else [(0, 0)]
        for shard, first in places:
            wanted, row = characters / len(places), first
            for text, row, _ in self._documents(shard, first):  # noqa: B007
                texts.append(text)
                wanted -= len(text)
                if wanted <= 0:
                    break
            rows += row - first
        return [text for text in texts if text and not text.isspace()], float(rows)

    def _starts(self, n: int) -> list[tuple[int, int]]:
        with self._repository.explaining():
            return self._rows.starts(n)

    def _documents(self, shard: int, skip: int) -> Iterator[tuple[str, int, bool]]:
        """Documents of a shard behind its first ``skip`` rows: text, rows of the shard read, whether it is the last.

        Rows are joined within a shard only, so that a shard does not depend on the one before it.
        """
        row = skip
        texts: list[str] = []
        held: tuple[str, int] | None = None  # until it is known whether another follows
        with self._repository.explaining():
            for text in self._rows.read(shard, skip):
                if held is not None:
                    yield (*held, False)
                    held = None
                row += 1
                texts.append(text or "")
                if len(texts) == self._join_rows:
                    held, texts = (" ".join(filter(None, texts)), row), []
        if texts:
            held = " ".join(filter(None, texts)), row
        if held is not None:
            yield (*held, True)
