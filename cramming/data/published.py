"""Token sets that others published, imported as token stores with their own tokenizer and row order.

Shape legend: N rows, n rows of a block, S positions.

The first is the earlier study's subset of C4 (Zenodo record 8279728): up to 85 million rows of 128 WordPiece ids.
Below ``data_dir``::

    published-<name>.work/       rows of shards, in blocks; a killed import goes on from them
    published-<name>/            the whole store, renamed into place; its manifest says what it was made from

One pass reads the archive and keeps blocks, because an archive holds its shards in any order; then they are joined in
the order of the shards and disappear as they are. Peak disk: the store and one block.
"""

import hashlib
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cramming import faults
from cramming.data import row_blocks
from cramming.data.fingerprint import fingerprint
from cramming.data.lock import locked
from cramming.data.row_blocks import Blocks, Contents
from cramming.data.saved_rows import SETTINGS, STATE, TOKENIZER, Member, members, shard_order
from cramming.data.store import MANIFEST, STORE_VERSION, TokenStore
from cramming.data.tokenizer import FILE, Tokenizer
from cramming.durable import replace, room_for, sync, sync_folder, write_atomically
from cramming.errors import UserError
from cramming.progress import ProgressSink, Silent
from cramming.text import quantity

C4_SUBSET = "c4-subset-random"
RECORD = "https://zenodo.org/api/records/8279728"
ARCHIVE = "c4-subset-random.tar.bz2"
_HASHED_BYTES = 1 << 24
# Measured on Wikipedia text in 32,768 pieces: rows of two bytes an id against bzip2 of the same rows with their masks.
_STORE_PER_ARCHIVE = 1.3  # 1.41 measured; rather too little than to refuse what would have fitted
_LIKELY_ROW_BYTES = 256


@dataclass(frozen=True)
class Origin:
    """What a set was published as; it is written into the store's manifest."""

    file: str  # the name of the archive or folder
    md5: str | None = None  # that the archive was found to have; None: nothing to compare with
    record: str | None = None  # the publisher's record the checksum comes from


def store_folder(data_dir: Path, name: str, max_rows: int | None = None) -> Path:
    """Where the store of a published set lies."""
    return data_dir / f"published-{name}{'' if max_rows is None else f'-first-{max_rows}'}"


def imported(data_dir: Path, name: str, max_rows: int | None = None) -> TokenStore | None:
    """The store of a set that was imported before, and nothing left over from importing it.

    Raises:
        UserError: it is damaged.
    """
    folder = store_folder(data_dir, name, max_rows)
    if not folder.is_dir():
        return None
    with locked(folder):
        shutil.rmtree(_work_of(folder), ignore_errors=True)
    return TokenStore.open(folder)


def import_rows(
    source: Path,
    data_dir: Path,
    name: str,
    origin: Origin,
    *,
    max_rows: int | None = None,
    progress: ProgressSink | None = None,
) -> TokenStore:
    """The token store of the set in ``source``, made if it is not there yet.

    Killed at any moment and called again, it ends with the same bytes as if it had never been killed.

    Args:
        source: an archive whose checksum was compared, or a folder.
        data_dir: where stores are kept.
        name: what runs will call it.
        origin: what it was published as.
        max_rows: only so many, from the first.
        progress: told how far it is.

    Raises:
        UserError: the set is damaged, is not what its settings say, or the disk is full.
    """
    folder = store_folder(data_dir, name, max_rows)
    data_dir.mkdir(parents=True, exist_ok=True)
    with locked(folder, progress):
        if not folder.exists():
            with room_for(data_dir):
                _Import(source, _work_of(folder), name, origin, max_rows, progress or Silent()).into(folder)
    store = imported(data_dir, name, max_rows)
    assert store is not None, "it was just made"
    return store


@dataclass
class _Import:
    """One call of ``import_rows`` that has something to do."""

    source: Path
    work: Path
    name: str
    origin: Origin
    max_rows: int | None
    progress: ProgressSink

    def into(self, folder: Path) -> None:
        """The stages in their order."""
        self._begin()
        self._require_room()
        contents = self._found() or self._read()
        tokenizer = Tokenizer.load(self.work / FILE)
        new = self.work / "store"
        tokenizer.save(new)
        digest, rows, documents = self._join(contents, tokenizer, new / "tokens.bin")
        manifest = self._manifest(contents, tokenizer, digest, rows, documents)
        write_atomically(new / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode())
        sync_folder(new)
        replace(new, folder, "store")
        faults.point("store-renamed")

    def _require_room(self) -> None:
        """Refuse what cannot fit, as far as an archive's size tells."""
        needed = _STORE_PER_ARCHIVE * self.source.stat().st_size if self.source.is_file() else 0.0
        if self.max_rows is not None:
            needed = min(needed, self.max_rows * _LIKELY_ROW_BYTES)
        needed -= sum(f.stat().st_size for f in _files_of(self.work))
        free = shutil.disk_usage(self.work).free
        if needed > free:
            raise UserError(
                f"the store of {self.name} needs about {quantity(needed, 'B')} more, {self.work.parent} has "
                f"{quantity(free, 'B')} free; set data_dir to a larger disk, or max_rows to less"
            )

    def _begin(self) -> None:
        """Keep what an earlier attempt left, if it was at the same source with the same block size."""
        files = [self.source] if self.source.is_file() else sorted(self.source.rglob("*"))
        known = [[str(f.relative_to(self.source.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        facts = fingerprint(STORE_VERSION, row_blocks.BLOCK_TOKENS, self.origin.md5 or known)
        mark = self.work / "source.txt"
        if not mark.is_file() or mark.read_text() != facts:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir()
            write_atomically(mark, facts.encode())

    def _found(self) -> Contents | None:
        path = self.work / "contents.json"
        return Contents(**json.loads(path.read_text())) if path.is_file() else None

    def _read(self) -> Contents:
        """One pass over the set: blocks of rows, the tokenizer, the settings."""
        order: list[str] | None = None
        settings: dict[str, Any] = {}
        tokenizer: Tokenizer | None = None
        rows: dict[str, int] = {}
        folder, blocks = "", Blocks(self.work, self.max_rows)
        total = sum(f.stat().st_size for f in _files_of(self.source))
        self.progress.stage(f"reading {self.source.name}", total, "B")
        for member in members(self.source, self.progress):
            folder = member.folder
            if member.name == STATE:
                order = shard_order(member.json())
            elif member.name == SETTINGS:
                settings = member.json()
                self._check_settings(settings)
            elif member.name == TOKENIZER:
                tokenizer = self._keep_tokenizer(member)
            elif not self._enough(rows, order):
                rows[member.name] = blocks.write(member, tokenizer)
            if order is not None and tokenizer is not None and settings and self._enough(rows, order):
                break
        self.progress.done()
        if order is None:
            raise UserError(f"{self.source} has no {STATE}: it is no set that Dataset.save_to_disk wrote")
        if tokenizer is None:
            raise UserError(f"{self.source} has no {TOKENIZER}: its rows mean nothing without it")
        if not self._enough(rows, order) and (missing := [name for name in order if name not in rows]):
            raise UserError(f"{self.source} lacks {', '.join(missing)}, which its {STATE} names: it is not whole")
        if blocks.seq_length is None:
            raise UserError(f"{self.source} holds no rows")
        blocks.check_ids(tokenizer, self.source.name)
        _check_agrees(settings, "vocab_size", tokenizer.vocab_size)
        _check_agrees(settings, "seq_length", blocks.seq_length)
        contents = Contents(order, rows, blocks.seq_length, blocks.rows_each, folder, settings)
        write_atomically(self.work / "contents.json", json.dumps(vars(contents), sort_keys=True).encode())
        return contents

    def _enough(self, rows: dict[str, int], order: list[str] | None) -> bool:
        """Whether all rows that are wanted are there."""
        if self.max_rows is None or order is None:
            return False
        counted = 0
        for name in order:
            if counted >= self.max_rows or name not in rows:
                break
            counted += rows[name]
        return counted >= self.max_rows

    def _keep_tokenizer(self, member: Member) -> Tokenizer:
        write_atomically(self.work / FILE, member.text().encode())
        return Tokenizer.load(self.work / FILE)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        own = settings.get("name", self.name)
        if self.name == C4_SUBSET and own != self.name and self.origin.record is None:
            raise UserError(f"{self.source} is a set named {own!r}, not the published {C4_SUBSET}: give name={own}")

    def _join(self, contents: Contents, tokenizer: Tokenizer, target: Path) -> tuple[str, int, int]:
        """Blocks to ``tokens.bin`` (N, S), each deleted once it is there.

        Returns:
            Its SHA-256, N, and the number of [SEP].
        """
        todo: list[tuple[Path, int, int]] = []
        gone = rows = 0  # rows of blocks that were joined by an earlier attempt; of all
        for path, held in contents.blocks(self.work):
            count = held if self.max_rows is None else min(held, self.max_rows - rows)
            if count == 0:
                break
            rows += count
            if path.is_file():
                todo.append((path, held, count))
            elif not todo:
                gone += count
            else:
                raise UserError(f"{path} is missing; delete {self.work} and run the same command again")
        done_bytes = gone * contents.seq_length * tokenizer.dtype.itemsize
        digest, separators = hashlib.sha256(), 0
        self.progress.stage("joining the shards", rows, "rows")
        with open(target, "r+b" if target.exists() else "w+b") as output:
            if target.stat().st_size < done_bytes:
                raise UserError(f"{target} is not whole; delete {self.work} and run the same command again")
            for start in range(0, done_bytes, _HASHED_BYTES):
                data = output.read(min(_HASHED_BYTES, done_bytes - start))
                digest.update(data)
                separators += int((np.frombuffer(data, tokenizer.dtype) == tokenizer.sep_id).sum())
            self.progress.advance(gone)
            for path, held, count in todo:  # what an interrupted attempt wrote behind is written over by the same
                tokens = contents.read(path, held)[:count].astype(tokenizer.dtype)
                data = tokens.tobytes()
                output.write(data)
                output.flush()
                sync(target, "join")
                faults.point("block-joined")
                path.unlink()
                digest.update(data)
                separators += int((tokens == tokenizer.sep_id).sum())
                self.progress.advance(count)
        self.progress.done()
        return digest.hexdigest(), rows, separators

    def _manifest(
        self, contents: Contents, tokenizer: Tokenizer, digest: str, rows: int, documents: int
    ) -> dict[str, object]:
        origin = self.origin
        identity = fingerprint("published", STORE_VERSION, digest, tokenizer.sha256, contents.seq_length)
        return {
            "fingerprint": identity,
            "source": "published",
            "source_fingerprint": identity,
            "inputs": [{"file": origin.file, "md5": origin.md5}],
            # Row numbers are those of the published set: what was published about its rows belongs to these.
            "published": {
                "name": self.name,
                "file": origin.file,
                "md5": origin.md5,
                "record": origin.record,
                "folder": contents.folder or self.source.name,
                "settings": contents.settings,
            },
            "rows": rows,
            "max_rows": self.max_rows,
            "seq_length": contents.seq_length,
            "layout": "packed",
            "row_cls": False,
            "dtype": tokenizer.dtype.name,
            "documents": documents,
            "tokens": rows * contents.seq_length,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "tokens_sha256": digest,
            "versions": {
                "store": STORE_VERSION,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "tokenizers": tokenizers.__version__,
            },
        }


def _work_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.work")


def _files_of(source: Path) -> list[Path]:
    return [source] if source.is_file() else [f for f in sorted(source.rglob("*")) if f.is_file()]


def _check_agrees(settings: dict[str, Any], key: str, found: int) -> None:
    said = settings.get(key, found)
    if said != found:
        raise UserError(f"{SETTINGS} of the published set says {key}={said}, but it is {found}: it is damaged")
