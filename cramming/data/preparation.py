"""From a data config to an opened token store: every stage cached, locked and restartable.

Below ``data_dir``::

    hashes.json                      content hashes of files, remembered by path, size and time
    clean-<fingerprint>/             what cleaning leaves of a source (``cleaning.cleaned``)
    tokenizer-<fingerprint>/         a tokenizer trained here, or fetched from the hub
    store-<fingerprint>.work/        parts of a store being made; a killed run goes on from them
    store-<fingerprint>/             a whole store, renamed into place
"""

import errno
import json
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cramming import faults
from cramming.data.cleaning.cleaned import CleanedSource, TokenCounter
from cramming.data.cleaning.config import SELF, CleanConfig
from cramming.data.config import DataConfig
from cramming.data.estimate import estimate
from cramming.data.fingerprint import fingerprint
from cramming.data.lock import locked
from cramming.data.packing import Packed, pack
from cramming.data.sources.source import Accounting, Source
from cramming.data.store import MANIFEST, STORE_VERSION, TokenStore
from cramming.data.tokenizer import FILE, Tokenizer, is_local
from cramming.data.tokenizer_hub import from_hub
from cramming.data.tokenizer_kinds import choose
from cramming.data.tokenizer_normalizing import check_leaves_text, check_normalization
from cramming.data.tokenizer_training import TRAINING_VERSION, sample, train
from cramming.data.tokenizing import Part, latest_cursor, part_path, read_part, tokenize
from cramming.data.workers import default_workers
from cramming.durable import replace, room_for, sync_folder, write_atomically
from cramming.errors import UserError
from cramming.progress import ProgressSink, Silent

# Raw input below this is done in this process: starting others would take longer.
_SMALL_BYTES = 1_000_000
# A larger share of [UNK] than this among the tokens is worth a word: the tokenizer was made for other text.
_MANY_UNKNOWN = 0.05


def prepare(
    config: DataConfig, data_dir: Path, workers: int | None = None, progress: ProgressSink | None = None
) -> TokenStore:
    """The token store of ``config``, made if it is not there yet.

    Killed at any moment and called again, it ends with the same bytes as if it had never been killed.
    ``workers`` processes help (``None``: one per core; 0: none).

    Raises:
        UserError: the input, the tokenizer or the disk cannot be used.
    """
    config.check()
    ready = config.ready_store(data_dir)
    if ready is not None:
        if stages := config.clean.stages():
            raise UserError(
                f"data.clean ({', '.join(stages)}) cannot clean data={config.kind}: its sequences are ready; "
                "leave it out, or prepare text of your own with data=local"
            )
        return ready
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data_dir={data_dir} cannot be created ({error.strerror}); set data_dir to another folder"
        ) from error
    try:
        with room_for(data_dir):
            return _Preparation(config, data_dir, workers, progress or Silent()).store()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(
            f"{error.filename or data_dir} cannot be written ({error.strerror}); set data_dir to a folder of your own"
        ) from error


def tokenizer_of(config: DataConfig, data_dir: Path, source: Source, progress: ProgressSink) -> Tokenizer:
    """The tokenizer ``config`` names, trained on ``source`` if it says so: for corpora that are not prepared.

    Raises:
        UserError: it cannot be had, or the text does not do.
    """
    making = _Preparation(config, data_dir, 0, progress, source)
    return making._existing_tokenizer() or making._trained_tokenizer()


def source_of(config: DataConfig, data_dir: Path, progress: ProgressSink) -> Source:
    """The text ``config`` names, cleaned if it says so: for those who do not prepare it.

    Raises:
        UserError: it is not there or not usable.
    """
    return _Preparation(config, data_dir, None, progress)._source


class _Preparation:
    """One call of ``prepare``."""

    def __init__(
        self,
        config: DataConfig,
        data_dir: Path,
        workers: int | None,
        progress: ProgressSink,
        source: Source | None = None,
    ) -> None:
        self._config = config
        self._data_dir = data_dir
        self._progress = progress
        self._workers = default_workers() if workers is None else workers
        self._source: Source = source or config.source(data_dir, self._workers, progress)
        if workers is None and self._source.unit == "B" and self._source.total < _SMALL_BYTES:
            self._workers = 0
        if config.clean.stages():
            counter = self._counter(self._source)
            self._source = CleanedSource(
                config, self._source, counter, data_dir=data_dir, workers=self._workers, progress=progress
            )

    def _counter(self, raw: Source) -> TokenCounter | None:
        """The tokenizer of the cleaning stage ``tokens``: got as one to train with would be, but from ``raw`` text."""
        clean = self._config.clean
        if "tokens" not in clean.stages():
            return None
        name = "train" if clean.tokenizer == SELF else clean.tokenizer
        config = replace_fields(self._config, tokenizer=name, clean=CleanConfig())
        if name != "train":  # what is said of the tokenizer of the store is not said of this one
            config = replace_fields(config, tokenizer_kind="auto", normalize=None)
        other = _Preparation(config, self._data_dir, self._workers, self._progress, raw)
        tokenizer = other._existing_tokenizer()
        if name == "train":
            return TokenCounter(other._tokenizer_folder().name, lambda: tokenizer or other._trained_tokenizer())
        assert tokenizer is not None, f"data.clean.tokenizer={name} is neither there nor refused"
        return TokenCounter(tokenizer.sha256, lambda: tokenizer)

    def store(self) -> TokenStore:
        """The stages in their order."""
        tokenizer = self._existing_tokenizer()
        if tokenizer is None or not self._store_folder(tokenizer).exists():
            expected = estimate(self._config, self._source, tokenizer, self._workers)
            self._progress.note(str(expected))
            expected.check_disk(self._data_dir)
        if tokenizer is None:
            tokenizer = self._trained_tokenizer()
        folder = self._store_folder(tokenizer)
        work = folder.with_name(f"{folder.name}.work")
        if not folder.exists():
            with locked(folder, self._progress):
                if not folder.exists():
                    self._make_store(tokenizer, folder, work)
        if work.exists():
            shutil.rmtree(work, ignore_errors=True)  # another process may be doing the same
        return TokenStore.open(folder)

    def _tokenizer_folder(self) -> Path:
        name = self._config.tokenizer
        facts: tuple[object, ...] = ("hub", name)
        if name == "train":
            kind = (self._config.tokenizer_kind, self._config.normalize)
            facts = ("train", TRAINING_VERSION, self._source.fingerprint, self._config.vocab_size, kind)
        return self._data_dir / f"tokenizer-{fingerprint(*facts)}"

    def _existing_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, unless it is still to be trained."""
        name = self._config.tokenizer
        folder = self._tokenizer_folder()
        if name == "train":
            return Tokenizer.kept(folder) if (folder / FILE).exists() else None
        if is_local(name):
            tokenizer = Tokenizer.load(Path(name).expanduser())
        elif (folder / FILE).exists():
            tokenizer = Tokenizer.kept(folder)
        else:
            with locked(folder, self._progress):
                tokenizer = from_hub(name)
                tokenizer.save(folder)
        check_normalization(tokenizer, name, self._config.normalize)
        return tokenizer

    def _trained_tokenizer(self) -> Tokenizer:
        folder = self._tokenizer_folder()
        with locked(folder, self._progress):
            if not (folder / FILE).exists():
                texts = sample(self._source, self._progress)
                check_leaves_text(texts, self._source.name, self._config.normalize)
                size, kind = self._config.vocab_size, self._config.tokenizer_kind
                if kind == "auto":
                    kind, reason = choose(texts, self._config.normalize)
                    self._progress.note(f"data.tokenizer_kind=auto is {kind}: {reason}")
                self._progress.stage("training a tokenizer", size, "pieces")
                tokenizer = train(texts, size, self._source.name, kind, self._config.normalize)
                self._progress.advance(size)
                self._progress.done()
                faults.point("tokenizer-trained")
                tokenizer.save(folder)
                faults.point("tokenizer-written")
        return Tokenizer.kept(folder)

    def _store_folder(self, tokenizer: Tokenizer) -> Path:
        config = self._config
        # [CLS] begins every sequence of the document layout, whatever row_cls says.
        layout = [config.layout, config.seq_length, config.row_cls or config.layout == "document"]
        limits = [config.max_documents, config.max_tokens]
        facts = ("store", STORE_VERSION, self._source.fingerprint, tokenizer.sha256, layout, limits)
        return self._data_dir / f"store-{fingerprint(*facts)}"

    def _make_store(self, tokenizer: Tokenizer, folder: Path, work: Path) -> None:
        config, source, progress = self._config, self._source, self._progress
        new = work / "store"
        shutil.rmtree(new, ignore_errors=True)  # a store half packed is packed again: that takes no time
        new.mkdir(parents=True)
        tokenizer.save(new)
        total, unit = (source.total, source.unit) if config.max_tokens is None else (config.max_tokens, "tokens")
        progress.stage("tokenizing", total, unit)
        count = tokenize(
            source,
            new,
            work,
            max_documents=config.max_documents,
            max_tokens=config.max_tokens,
            workers=self._workers,
            progress=progress,
        )
        progress.done()
        if count == 0:
            raise UserError(f"{source.name} holds no text; name a file, folder or glob with some")
        progress.stage("packing", count, "blocks")
        unknown = _UnknownShare(tokenizer.unk_id)
        parts = _counted((read_part(part_path(work, number), tokenizer.dtype) for number in range(count)), progress)
        packed = pack(
            unknown.counting(parts),
            tokenizer,
            new,
            seq_length=config.seq_length,
            layout=config.layout,
            row_cls=config.row_cls,
            max_tokens=config.max_tokens,
        )
        progress.done()
        if packed.rows == 0:
            short = f"less than one sequence of data.seq_length={config.seq_length}"
            if packed.tokens == config.max_tokens:
                raise UserError(f"data.max_tokens={config.max_tokens} is {short}; raise it, or use shorter sequences")
            raise UserError(f"{source.name} holds {packed.tokens} tokens, {short}; use more text, or shorter sequences")
        if unknown.share > _MANY_UNKNOWN:
            progress.note(
                f"{unknown.share:.1%} of the tokens are {tokenizer.token(tokenizer.unk_id or 0)}: text the tokenizer "
                "cannot spell; data.tokenizer=train data.tokenizer_kind=unigram makes one that spells everything"
            )
        manifest = self._manifest(tokenizer, packed) | {"unknown_share": unknown.share}
        manifest |= _account(source, latest_cursor(work, count))
        if isinstance(source, CleanedSource):
            manifest["cleaning"] = source.report
            if source.report["stopped"] and packed.tokens < (config.max_tokens or 0):
                progress.note(
                    f"only {packed.tokens:,} of data.max_tokens={config.max_tokens:,} are left of what was read for "
                    "them: the rest were duplicates; ask for more tokens to have more read"
                )
        manifest |= {"fingerprint": folder.name.removeprefix("store-")}
        write_atomically(new / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())
        sync_folder(new)
        replace(new, folder, "store")
        faults.point("store-renamed")

    def _manifest(self, tokenizer: Tokenizer, packed: Packed) -> dict[str, object]:
        config, source = self._config, self._source
        return {
            "source": config.kind,
            "source_fingerprint": source.fingerprint,
            "inputs": source.inputs,
            "rows": packed.rows,
            "seq_length": config.seq_length,
            "layout": config.layout,
            "row_cls": config.row_cls or config.layout == "document",
            "dtype": tokenizer.dtype.name,
            "documents": packed.documents,
            "tokens": packed.tokens,
            "text_bytes": packed.text_bytes,
            "max_documents": config.max_documents,
            "max_tokens": config.max_tokens,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "tokenizer": {
                "trained_here": config.tokenizer == "train",
                "kind": tokenizer.kind,
                "normalize": tokenizer.normalization,
            },
            "tokens_sha256": packed.sha256,
            "versions": {
                "store": STORE_VERSION,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "tokenizers": tokenizers.__version__,
            },
        }


def _account(source: Source, cursor: Any) -> dict[str, object]:
    """What each part of a source made of several gave, in whole documents of the blocks that were read."""
    return {"gave": source.account(cursor)} if isinstance(source, Accounting) and cursor is not None else {}


def _counted(parts: Iterable[Part], progress: ProgressSink) -> Iterator[Part]:
    for part in parts:
        yield part
        progress.advance(1)


class _UnknownShare:
    """How much of the text its tokenizer had no pieces for."""

    def __init__(self, unk_id: int | None) -> None:
        self._unk_id = unk_id
        self._unknown = 0
        self._all = 0

    def counting(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts, counted as they are read."""
        for part in parts:
            self._all += len(part.ids)
            if self._unk_id is not None:
                self._unknown += int(np.count_nonzero(part.ids == self._unk_id))
            yield part

    @property
    def share(self) -> float:
        """[UNK] of all tokens of the text read."""
        return self._unknown / max(1, self._all)
