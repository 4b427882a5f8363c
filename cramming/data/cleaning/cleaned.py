"""The source of a corpus after cleaning: made when it is first read, kept, and read from the disk from then on.

Below ``data_dir``::

    clean-<fingerprint>.work/   parts of a spool being made; a killed run goes on from them
    clean-<fingerprint>/        the spool: text that passed the filters, ``dropped.bin`` (which documents of it are
                                duplicates), ``manifest.json`` (what each stage saw and removed)

A spool serves every tokenizer, length and layout of sequences. It may be deleted when the token stores are made.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cramming import faults
from cramming.data.cleaning.duplicates import DROPPED, Bits, resolve
from cramming.data.cleaning.similarity import ALGORITHM
from cramming.data.cleaning.spool import KEPT, SAME, fill, latest_cursor, part_path, read_texts
from cramming.data.cleaning.tally import nothing_left, summary, tally
from cramming.data.config import DataConfig
from cramming.data.fingerprint import fingerprint
from cramming.data.lock import locked
from cramming.data.sources.source import Accounting, Assembler, Piece, Source, beginning, bounded
from cramming.data.tokenizer import FILE, Tokenizer
from cramming.data.tokenizer_training import SAMPLED_TEXT
from cramming.durable import replace, sync_folder, write_atomically
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.text import quantity

CLEAN_VERSION = 1  # of the code that decides what is left of a text; part of every fingerprint
MANIFEST = "manifest.json"
# With data.max_tokens, so many characters are cleaned for each token that is wanted. Tokens of ordinary text have 2 to
# 5; the rest is for duplicates, which are known only afterwards.
CHARACTERS_PER_TOKEN = 16
_GLIMPSED_CHARACTERS = 100_000
_COMPRESSED = 0.45  # of text, by zstd at the spool's level: English 0.38, Japanese 0.42


@dataclass(frozen=True)
class TokenCounter:
    """The tokenizer of the stage ``tokens``."""

    identity: str  # stands for it in fingerprints
    tokenizer: Callable[[], Tokenizer]  # itself, trained if need be


class CleanedSource:
    """What cleaning leaves of a source, as a source (``cramming.data.sources.source.Source``).

    ``data.max_documents`` counts documents read, not documents left: it bounds what is fetched of a large corpus.
    ``data.max_tokens`` bounds it, too: see ``CHARACTERS_PER_TOKEN``.

    Raises:
        UserError: nothing is left, or the disk is too small.
    """

    unit = "B"  # of text

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        counter: TokenCounter | None,
        *,
        data_dir: Path,
        workers: int,
        progress: ProgressSink,
    ) -> None:
        self.name = source.name
        self.shuffled = source.shuffled
        self.sample_bytes = source.sample_bytes
        self.inputs = source.inputs  # what it has read is known when it has read it: see ``report``
        self._source = source
        self._stages = config.clean.stages()
        self._counter = counter
        self._max_documents = config.max_documents
        self._max_characters = character_limit(config, source)
        self._workers = workers
        self._progress = progress
        decisive = {name: dict(options) for name, options in self._stages.items()}
        if counter is not None:
            decisive["tokens"]["tokenizer"] = counter.identity
        if "near_bands" in decisive.get("duplicates", {}):
            decisive["duplicates"]["algorithm"] = ALGORITHM
        limits = [self._max_documents, self._max_characters]
        self.fingerprint = fingerprint("clean", CLEAN_VERSION, source.fingerprint, list(decisive.items()), limits)
        self._folder = data_dir / f"clean-{self.fingerprint}"

    @property
    def total(self) -> float:
        """Bytes of text that are left."""
        return float(self.report["kept_bytes"])

    @cached_property
    def report(self) -> dict[str, Any]:
        """What each stage saw, removed and cost, for the store's manifest; the spool is made if it is not there."""
        if not self._folder.exists():
            with locked(self._folder, self._progress):
                if not self._folder.exists():
                    self._make()
        report: dict[str, Any] = json.loads((self._folder / MANIFEST).read_text(encoding="utf-8"))
        self.inputs = report.pop("inputs")
        if report["kept_documents"] == 0:
            raise UserError(nothing_left(report, self.name))
        return report

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``."""
        parts = self.report["parts"]
        dropped = Bits.read(self._folder / DROPPED)
        # The part, its first text to be read, documents before it in the corpus, bytes of text before it.
        number, begin, documents, position = (0, 0, 0, 0) if after is None else after
        assembler = Assembler()
        for part_number in range(number, parts):
            part, texts = read_texts(part_path(self._folder, part_number))
            gone = dropped.has(documents + part.numbers.astype("int64")).tolist()
            for at in range(begin, len(texts)):
                if gone[at]:
                    continue
                position += len(texts[at])
                for fragment in bounded(texts[at].decode()):
                    yield from assembler.add(fragment, float(position))
                if at < len(texts) - 1 or part.header.unfinished not in (KEPT, SAME):
                    cursor = [part_number, at + 1, documents, position]
                    yield from (piece._replace(cursor=cursor) for piece in assembler.end(float(position)))
            begin = 0
            documents += part.header.documents
        # A limit may have stopped the reading inside a long document.
        yield from (piece._replace(cursor=[parts, 0, documents, position]) for piece in assembler.end(float(position)))

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """See ``Source.glimpse``: the beginning."""
        return beginning(self.pieces(), characters)

    def _make(self) -> None:
        source, progress = self._source, self._progress
        work = self._folder.with_name(f"{self._folder.name}.work")
        work.mkdir(exist_ok=True)
        self._check_disk(work)
        if self._counter is not None:
            self._counter.tokenizer().save(work)
        total, unit = (source.total, source.unit)
        if self._max_characters is not None:
            total, unit = self._max_characters, "characters"
        progress.stage("cleaning", total, unit)
        parts = fill(
            source,
            work,
            {"stages": self._stages, "tokenizer": None if self._counter is None else str(work)},
            max_documents=self._max_documents,
            max_characters=self._max_characters,
            workers=self._workers,
            progress=progress,
        )
        progress.done()
        if parts == 0:
            raise UserError(f"{self.name} holds no text; name a file, folder or glob with some")
        begun = time.process_time()
        resolve(work, parts, "duplicates" in self._stages, progress)
        report = tally(work, parts, self._stages, time.process_time() - begun)
        report["stopped"] = self._max_characters is not None and report["passed_characters"] >= self._max_characters
        if isinstance(source, Accounting) and (cursor := latest_cursor(work, parts)) is not None:
            report["gave"] = source.account(cursor)
        # Workers may have been ahead of a limit, and a killed run leaves files half written.
        kept = {part_path(work, number) for number in range(parts)} | {work / DROPPED, work / FILE}
        for path in set(work.iterdir()) - kept:
            path.unlink()
        manifest = report | {"inputs": source.inputs}
        write_atomically(work / MANIFEST, json.dumps(manifest, indent=2).encode())
        sync_folder(work)
        replace(work, self._folder, "clean")
        faults.point("clean-renamed")
        if report["kept_documents"]:
            progress.note(summary(report))

    def _check_disk(self, work: Path) -> None:
        """Say how much disk the spool takes, and refuse what cannot fit."""
        texts, raw = self._source.glimpse(_GLIMPSED_CHARACTERS)
        glimpsed_bytes = sum(len(text.encode()) for text in texts)
        text_bytes = glimpsed_bytes / max(1.0, raw) * max(self._source.total, raw)
        documents = text_bytes / max(1, glimpsed_bytes) * len(texts)
        share = 1.0 if self._max_documents is None else min(1.0, self._max_documents / max(1.0, documents))
        if self._max_characters is not None:
            share = min(share, self._max_characters / max(1.0, text_bytes))
        duplicates = self._stages.get("duplicates")
        hashes = 0 if duplicates is None else duplicates.get("near_bands", 1)
        # Each hash lies in its part and, while documents are compared, with a number in another file.
        needed = share * (_COMPRESSED * text_bytes + 24 * hashes * documents)
        self._progress.note(
            f"cleaning about {quantity(share * text_bytes, 'B')} of text; "
            f"what is left of it takes up to {quantity(needed, 'B')} of disk"
        )
        free = shutil.disk_usage(work).free + sum(path.stat().st_size for path in work.glob("part-*"))
        if needed > free:
            raise UserError(
                f"cleaning needs about {quantity(needed, 'B')} of disk, {work.parent} has {quantity(free, 'B')} free; "
                "set data_dir to a larger disk, or data.max_documents to less"
            )


def character_limit(config: DataConfig, source: Source) -> int | None:
    """Characters to clean for ``data.max_tokens``; ``None``: all there are.

    A power of two, so that similar limits share a spool; and where a tokenizer is trained on the result, at least twice
    what its sample is taken from, so that the tokenizer does not depend on ``max_tokens``.
    """
    if config.max_tokens is None:
        return None
    least = 0
    if config.tokenizer == "train":
        least = 2 * (source.sample_bytes if source.shuffled else SAMPLED_TEXT)
    return 1 << (max(config.max_tokens * CHARACTERS_PER_TOKEN, least) - 1).bit_length()
