"""Which samples each split is made of, from the configuration of a source."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cramming.data.cleaning.config import CleanConfig
from cramming.data.config import DataConfig
from cramming.data.converting.options import SPLITS, ConvertOptions
from cramming.data.converting.ready import StoredRows
from cramming.data.converting.steps import Samples
from cramming.data.converting.texts import TEXT_COLUMNS, TOKEN_COLUMNS, JoinedTokens, Joining, Part, Texts
from cramming.data.fingerprint import fingerprint
from cramming.data.preparation import prepare, source_of, tokenizer_of
from cramming.data.shards.mds_writer import SIZE_LIMIT, MdsWriter
from cramming.data.shards.parquet import ParquetWriter
from cramming.data.shards.rows import RowsWriter
from cramming.data.shards.writing import ShardWriter
from cramming.data.sources.hub import HubConfig
from cramming.data.sources.hub_repository import Repository, Wanted
from cramming.data.sources.shard_text import ShardText
from cramming.data.sources.sharded import StreamedConfig
from cramming.data.sources.source import Source
from cramming.data.store import TokenStore
from cramming.data.streaming.corpus import Corpus, find
from cramming.data.streaming.fetching import Patience
from cramming.data.tokenizer import FILE
from cramming.data.workers import default_workers
from cramming.errors import UserError
from cramming.progress import ProgressSink

_VALIDATION = ("validation", "val", "valid")  # what datasets of the hub call theirs
_SMALL_BYTES = 1_000_000  # of raw input: starting processes would take longer than tokenizing it


@dataclass(frozen=True)
class PlannedSplit:
    """A split to be written."""

    name: str
    samples: Samples
    limit: int | None  # the first so many samples
    writer: Callable[[int], ShardWriter]  # from the number of its first shard
    identity: str  # of everything that decides the bytes
    beside: dict[str, bytes]  # files that lie beside the shards


class Plan:
    """All splits of one conversion.

    Raises:
        UserError: the source is not there or not usable, or the options do not fit it.
    """

    def __init__(self, config: DataConfig, options: ConvertOptions, data_dir: Path, progress: ProgressSink) -> None:
        if options.tokenizer is not None:
            config = replace(config, tokenizer=options.tokenizer)
        config.check()
        self._config, self._options, self._data_dir, self._progress = config, options, data_dir, progress
        wanted = [SPLITS[name][0] for name in options.splits]
        #: Whether a validation split is made of the training documents: the source has none of its own.
        self.draws = False
        store = self._store()
        if store is not None:
            self.splits = [self._of_rows(store, name) for name in options.splits]
            return
        if config.max_tokens is not None:
            raise UserError("data.max_tokens counts tokens, and samples are documents; use data.max_documents")
        train, own = self._sources(any(wanted))
        self.draws = own is None
        one_in = max(2, round(1 / options.val_share)) if any(wanted) and own is None else None
        joining = self._joining(train) if options.concat_tokens is not None else None
        self.splits = [self._of_text(name, train, own, one_in, joining) for name in options.splits]

    def _store(self) -> TokenStore | None:
        """Rows that are ready, or that ``format=rows`` asks for."""
        config, options = self._config, self._options
        published = not isinstance(config, StreamedConfig) and config.ready_store(self._data_dir) is not None
        if isinstance(config, StreamedConfig) and options.format == "rows":
            raise UserError("format=rows is made of text: use source=local data.path=<the folder of shards>")
        if not published and options.format != "rows":
            return None
        if options.concat_tokens is not None or options.max_characters is not None:
            raise UserError("these are rows of token ids already: leave out concat_tokens and max_characters")
        store = prepare(config, self._data_dir, progress=self._progress)
        if store.layout != "packed":
            raise UserError(
                f"data.layout={store.layout} pads its rows, which shards do not keep; use data.layout=packed, or "
                "format=mds without concat_tokens: its texts become one row each when they are read"
            )
        return store

    def _sources(self, validation: bool) -> tuple[Source, Source | None]:
        """The text to train on, and that of the source's own validation split; None: it has none.

        Where no ``validation`` is wanted, the second is the first: there is one, and it is not opened.
        """
        config = self._config
        if isinstance(config, StreamedConfig):
            return self._of_shards(config)
        train = source_of(config, self._data_dir, self._progress)
        if not isinstance(config, HubConfig) or config.split in _VALIDATION:
            return train, None
        assert config.dataset, "checked before"
        asked = Wanted(config.dataset, config.subset or None, config.split, config.revision or None, config.download)
        splits = Repository(asked, self._data_dir, self._progress).splits
        found = next((name for name in _VALIDATION if name in splits), None)
        if found is None or not validation:
            return train, None if found is None else train
        return train, source_of(replace(config, split=found), self._data_dir, self._progress)

    def _of_shards(self, config: StreamedConfig) -> tuple[Source, Source | None]:
        if not config.remote:
            raise UserError("source=mds converts one corpus: give data.remote=<its folder>")
        found = find(config.remote, config.split, config.format, Patience())

        def text(corpus: Corpus) -> Source:
            if corpus.folder is None:
                raise UserError(f"data.remote={config.remote} has to be a folder of this machine; fetch it first")
            column = "text" if config.column == "auto" else config.column
            return ShardText(corpus.folder, column, self._data_dir, self._progress)

        return text(found.train), None if found.heldout is None else text(found.heldout)

    def _joining(self, source: Source) -> Joining:
        options = self._options
        assert options.concat_tokens is not None, "checked before"
        plain = replace(self._config, clean=CleanConfig())  # the source is clean already
        tokenizer = tokenizer_of(plain, self._data_dir, source, self._progress)
        around = (options.bos_text or "", options.eos_text or "")
        return Joining.of(tokenizer, options.concat_tokens, around, not options.no_wrap, self._progress)

    def _of_text(
        self, name: str, train: Source, own: Source | None, one_in: int | None, joining: Joining | None
    ) -> PlannedSplit:
        options = self._options
        validation = SPLITS[name][0]
        source = own if validation and own is not None else train
        limit = self._config.max_documents
        part = Part(source, limit, one_in, validation and own is None, options.max_characters)
        if joining is None:
            return self._planned(name, Texts(part), TEXT_COLUMNS, {})
        workers = 0 if source.unit == "B" and source.total < _SMALL_BYTES else default_workers()
        beside = {FILE: joining.tokenizer.to_json().encode()}
        return self._planned(name, JoinedTokens(part, joining, workers), TOKEN_COLUMNS, beside)

    def _of_rows(self, store: TokenStore, name: str) -> PlannedSplit:
        split = self._config.split_of(store)
        if SPLITS[name][0] and not split.heldout_rows:
            raise UserError(f"splits has {name}, and data.heldout_fraction=0 holds no rows out; use 0.005, say")
        samples = StoredRows(store, split, SPLITS[name][0], self._options.format != "rows")
        tokenizer = store.tokenizer.to_json().encode()
        if self._options.format != "rows":
            return self._planned(name, samples, TOKEN_COLUMNS, {FILE: tokenizer})
        options = self._options

        def writer(number: int) -> ShardWriter:
            return RowsWriter(
                store.seq_length, store.tokenizer.dtype.name, tokenizer, number=number,
                compression=options.compression, hashes=options.hashes, size_limit=options.size_bytes,
            )  # fmt: skip

        return self._with_writer(name, samples, writer, {FILE: tokenizer})

    def _planned(self, name: str, samples: Samples, columns: dict[str, str], beside: dict[str, bytes]) -> PlannedSplit:
        options = self._options
        kind: type[MdsWriter] | type[ParquetWriter] = MdsWriter if options.format == "mds" else ParquetWriter

        def writer(number: int) -> ShardWriter:
            return kind(
                columns, number=number, compression=options.compression, hashes=options.hashes,
                size_limit=options.size_bytes or SIZE_LIMIT,
            )  # fmt: skip

        return self._with_writer(name, samples, writer, beside)

    def _with_writer(
        self, name: str, samples: Samples, writer: Callable[[int], ShardWriter], beside: dict[str, bytes]
    ) -> PlannedSplit:
        options = self._options
        writer(0)  # refuses what it does not know
        how: list[Any] = [options.format, options.compression, sorted(options.hashes), options.size_bytes]
        identity = fingerprint("converted", samples.identity, SPLITS[name][1], how)
        return PlannedSplit(name, samples, SPLITS[name][1], writer, identity, beside)
