"""What opens shards: read where they lie, or fetched, compared, decompressed, made rows of, and kept in the cache."""

from collections.abc import Sequence
from pathlib import Path

from cramming.data.fingerprint import fingerprint
from cramming.data.shards.compression import decompressed
from cramming.data.shards.hashes import check_file
from cramming.data.shards.shard import Shard, ShardReader
from cramming.data.streaming.ahead import Opened
from cramming.data.streaming.cache import ShardCache
from cramming.data.streaming.corpus import Corpus
from cramming.data.streaming.fetching import Patience, fetch
from cramming.data.streaming.rows import ROWS_VERSION, KeptRows, PlacedRows, RowForm
from cramming.errors import UserError
from cramming.remote import join, shown


class Bringing:
    """Shards of several corpora, opened by (corpus, shard).

    A shard of token ids in a folder of this machine, not compressed, is read in place, its checksum compared once. Any
    other becomes a file of rows in the cache: smaller than the shard, tokenized once, shared by all ranks here.

    Args:
        corpora: by number.
        forms: how the samples of each become rows.
        cache: of this machine.
        patience: for what passes.
    """

    def __init__(
        self, corpora: Sequence[Corpus], forms: Sequence[RowForm], cache: ShardCache, patience: Patience
    ) -> None:
        self._corpora = corpora
        self._forms = forms
        self._cache = cache
        self._patience = patience
        self._checked: set[tuple[int, int]] = set()
        self._names = [
            fingerprint("rows", ROWS_VERSION, corpus.index.fingerprint, *form.facts)
            for corpus, form in zip(corpora, forms, strict=True)
        ]
        self.fetched_bytes = 0

    def in_place(self, corpus: int, shard: Shard) -> bool:
        """Whether a shard takes no room in the cache."""
        at = self._corpora[corpus]
        by_number = at.format != "parquet"  # of which a row is read with a thousand others
        return at.folder is not None and by_number and shard.compression is None and not self._forms[corpus].is_text

    def kept_bytes(self, corpus: int, shard: Shard) -> int:
        """What a shard takes in the cache once it is there."""
        return 0 if self.in_place(corpus, shard) else self._forms[corpus].kept_bytes(shard.samples)

    def work_bytes(self, corpus: int, shard: Shard) -> int:
        """What it takes besides while it is brought."""
        if self.in_place(corpus, shard):
            return 0
        fetched = shard.file.size if self._corpora[corpus].folder is None else 0
        return fetched + (shard.raw.size if shard.compression else 0)

    def open(self, corpus: int, shard: Shard) -> Opened:
        """A shard, in whatever thread.

        Raises:
            UserError: it cannot be had, or is not what its index says.
        """
        if self.in_place(corpus, shard):
            return self._placed(corpus, shard)
        kept = self.kept_bytes(corpus, shard)
        needed = kept + self.work_bytes(corpus, shard)
        name = f"{self._names[corpus]}-{shard.number:06d}"
        file = self._cache.obtain(name, kept, needed, lambda work: self._made(corpus, shard, work))
        return KeptRows(file, self._forms[corpus], shard.samples)

    def _placed(self, corpus: int, shard: Shard) -> PlacedRows:
        folder = self._corpora[corpus].folder
        assert folder is not None, "it is not here"
        path = folder / shard.raw.name
        if (corpus, shard.number) not in self._checked:
            check_file(path, shard.raw)
            self._checked.add((corpus, shard.number))
        return PlacedRows(self._corpora[corpus].index.open(shard, path), self._forms[corpus], str(path))

    def _made(self, corpus: int, shard: Shard, work: Path) -> Path:
        """The file of rows, made in the folder ``work``."""
        where = shown(join(self._corpora[corpus].address, shard.file.name))
        reader = unpacked(self._corpora[corpus], shard, work, self._patience)
        if self._corpora[corpus].folder is None:
            self.fetched_bytes += shard.file.size
        try:
            self._forms[corpus].write(reader, work / "rows", where)
        finally:
            reader.close()
        return work / "rows"


def unpacked(corpus: Corpus, shard: Shard, work: Path, patience: Patience) -> ShardReader:
    """The samples of a shard, decompressed in the folder ``work``; one that arrives damaged is fetched once more.

    Raises:
        UserError: it cannot be had, or is not what its index says.
    """
    if corpus.folder is not None:
        return _opened(corpus, shard, corpus.folder / shard.file.name, work)
    fetched = work / "fetched"
    for last in (False, True):
        fetch(corpus.address, shard.file, fetched, patience)
        try:
            return _opened(corpus, shard, fetched, work)
        except UserError as error:
            if last:
                where = shown(join(corpus.address, shard.file.name))
                reason = str(error).replace(f"{fetched} ", "").replace(f"{work / 'raw'} ", "")
                raise UserError(
                    f"{where}, fetched twice, {reason.partition(';')[0]}; convert the corpus again"
                ) from error
    raise AssertionError("the second time returns or raises")


def _opened(corpus: Corpus, shard: Shard, file: Path, work: Path) -> ShardReader:
    check_file(file, shard.file)
    raw = file
    if shard.compression is not None:
        raw = work / "raw"
        decompressed(shard, file, raw)
        check_file(raw, shard.raw)
    return corpus.index.open(shard, raw)
