"""From the options of ``data=mds`` to an open store."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cramming.data.fingerprint import fingerprint
from cramming.data.preparation import tokenizer_of
from cramming.data.sources.source import Piece, beginning, documents_to_pieces
from cramming.data.streaming.bringing import unpacked
from cramming.data.streaming.cache import ShardCache
from cramming.data.streaming.corpus import AUTO, Corpus, Found, find
from cramming.data.streaming.fetching import Patience
from cramming.data.streaming.rows import TEXT, TOKENS, RowForm
from cramming.data.streaming.store import Member, Reading, ShardedStore
from cramming.data.tokenizer import FILE, Tokenizer
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.progress import progress_for
from cramming.remote import shown

if TYPE_CHECKING:
    from cramming.data.sources.sharded import StreamedConfig

_SAMPLE_BYTES = 16_000_000  # of text, to train a tokenizer on


def open_store(config: "StreamedConfig", data_dir: Path) -> ShardedStore:
    """The store of the corpus that ``config`` names. One shard is brought, so that what cannot be used is known now.

    Raises:
        UserError: there is none, it cannot be reached or used, or the cache cannot be.
    """
    patience = Patience()
    found = {
        name: find(str(one["remote"]), str(one.get("split", config.split)), config.format, patience)
        for name, one in config.members.items()
    }
    cache = ShardCache(config.cache_folder(data_dir), config.cache_bytes)
    columns = {name: _column(one.train, config) for name, one in found.items()}
    texts = [is_text for _, is_text in columns.values()]
    if len(set(texts)) > 1:
        raise UserError(
            f"data.streams holds texts and rows of tokens ({', '.join(columns)}), which cannot be mixed; convert the "
            "texts with python -m cramming.data.convert and concat_tokens="
        )
    tokenizer = _tokenizer(config, data_dir, found, columns, cache)
    forms = [RowForm(column, is_text, config.seq_length, tokenizer) for column, is_text in columns.values()]
    members = [
        Member(name, float(one.get("weight", 1)), found[name].train, found[name].heldout)
        for name, one in config.members.items()
    ]
    reading = Reading(config.shuffle_window, config.fetch_ahead or config.shuffle_window, config.fetch_threads)
    store = ShardedStore(members, forms, cache, reading, heldout_fraction=config.heldout_fraction, patience=patience)
    store.read(np.array([0]))
    return store


def _column(corpus: Corpus, config: "StreamedConfig") -> tuple[str, bool]:
    """The column that is read, and whether it is text.

    Raises:
        UserError: there is none, or it does not go with the layout.
    """
    columns, where = corpus.index.columns, shown(corpus.address)
    known = [name for name in (TOKENS, TEXT) if name in columns]
    column = config.column if config.column != AUTO else next(iter(known), None)
    if column is None or column not in columns:
        raise UserError(f"{where} has the columns {', '.join(columns)}; set data.column to the one to train on")
    is_text = columns[column] == "str"
    if is_text and config.layout == "packed":
        raise UserError(
            f"{where} holds text, and data.layout=packed joins documents, which needs them beforehand; use "
            f"data.layout=document (one document a row, cut at {config.seq_length} tokens), or convert it once: "
            f"python -m cramming.data.convert ... concat_tokens={config.seq_length}"
        )
    if not is_text and config.layout == "document":
        raise UserError(f"{where} holds rows of tokens, whose documents are joined; use data.layout=packed")
    return column, is_text


def _tokenizer(
    config: "StreamedConfig",
    data_dir: Path,
    found: dict[str, Found],
    columns: dict[str, tuple[str, bool]],
    cache: ShardCache,
) -> Tokenizer:
    """As ``data.tokenizer`` says; that of token rows lies beside them, if it is not named."""
    name, first = next(iter(found.items()))
    column, is_text = columns[name]
    if config.trains_tokenizer and not is_text:
        if first.tokenizer is None:
            raise UserError(
                f"{shown(first.train.address)} holds token ids and no {FILE} beside them; "
                "set data.tokenizer to the tokenizer they were made with"
            )
        folder = data_dir / f"tokenizer-{hashlib.sha256(first.tokenizer).hexdigest()[:20]}"
        if not (folder / FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FILE, first.tokenizer)
        return Tokenizer.load(folder)
    data_dir.mkdir(parents=True, exist_ok=True)
    texts = ShardTexts(first.train, column, cache.folder, Patience())
    return tokenizer_of(config, data_dir, texts, progress_for())


class ShardTexts:
    """The texts of a corpus from its first shard on, as a source to train a tokenizer on."""

    unit = "documents"
    shuffled = True  # no shard but the first ones is fetched for a sample
    sample_bytes = _SAMPLE_BYTES

    def __init__(self, corpus: Corpus, column: str, folder: Path, patience: Patience) -> None:
        self.name = shown(corpus.address)
        self.fingerprint = fingerprint("shard texts", corpus.index.fingerprint, column)
        self.inputs: list[dict[str, str | int]] = [{"address": self.name}]
        self.total = float(corpus.rows)
        self._corpus = corpus
        self._column = column
        self._folder = folder
        self._patience = patience

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``."""
        return documents_to_pieces(self._documents())

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """See ``Source.glimpse``."""
        return beginning(self.pieces(), characters)

    def _documents(self) -> Iterator[tuple[str, float]]:
        for shard in self._corpus.index.shards:
            with tempfile.TemporaryDirectory(dir=self._folder) as work:
                reader = unpacked(self._corpus, shard, Path(work), self._patience)
                try:
                    for number in range(len(reader)):
                        yield reader[number][self._column], float(shard.first + number + 1)
                finally:
                    reader.close()
