"""Splits of tasks as token ids, made once for each tokenizer and kept on the disk, mapped into memory.

A folder ``<cache>/<fingerprint>`` holds the arrays of ``Encoded`` as .npy files, the keys as JSON, and a manifest with
their checksums. It is written under another name and renamed, so that it is whole or absent.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from cramming.data.fingerprint import file_sha256, fingerprint
from cramming.data.lock import locked
from cramming.data.tokenizer import Tokenizer
from cramming.durable import replace as rename
from cramming.durable import room_for, sync, sync_folder
from cramming.errors import UserError
from cramming.evaluation.encoded import Cut, Encoded
from cramming.evaluation.inputs import Rows, marked, marks, rows
from cramming.evaluation.tasks.task import Example, Task
from cramming.hashing import key

ENCODING_VERSION = 1  # of the files and of the code that decides their content; part of every fingerprint
MANIFEST = "manifest.json"
KEYS = "keys.json"
_ARRAYS = ("tokens", "types", "starts", "span_starts", "spans")
_HASHED_AT_ONCE = 4096


class Keys(Sequence[Mapping[str, Any]]):
    """What is kept beside each example; read when somebody asks, which training never does."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        return self._all[index]

    @cached_property
    def _all(self) -> list[Mapping[str, Any]]:
        listed: list[Mapping[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
        return listed


def encode(
    task: Task, examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int, spans: str, cache: Path
) -> Encoded:
    """Examples as token ids. What was encoded before is opened again, without tokenizing.

    Several processes may ask for the same at once. A damaged folder is made again.

    Args:
        task: theirs.
        examples: of a split.
        tokenizer: the model's.
        max_length: tokens of a text, special tokens included.
        spans: ``pooled``: stored; ``marked``: in the text, between marks. Those of token classification are stored.
        cache: folder for all that was encoded.

    Raises:
        UserError: examples that do not fit together, texts with more segments than ``max_length`` holds, or a full
            disk.
    """
    wanted = _Wanted(task, examples, tokenizer, max_length, spans)
    wanted.check()
    folder = cache / wanted.fingerprint()
    known = _opened(folder)
    if known is not None:
        return known
    cache.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        known = _opened(folder)  # another process may have made it meanwhile
        if known is None:
            _make(folder, wanted)
            known = open_encoded(folder)
    return known


def in_memory(task: Task, examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int, spans: str) -> Encoded:
    """What ``encode`` gives, kept nowhere: for a few texts. Its ``sha256`` is empty.

    Raises:
        UserError: as ``encode``.
    """
    wanted = _Wanted(task, examples, tokenizer, max_length, spans)
    wanted.check()
    made = wanted.rows()
    tokens, types = np.empty(made.starts[-1], dtype=tokenizer.dtype), np.empty(made.starts[-1], dtype=np.uint8)
    made.written(tokens, types)
    return Encoded(
        tokens=tokens,
        types=types,
        **wanted.arrays(made),
        choices=wanted.choices,
        keys=wanted.keys,
        cut=made.cut,
        sha256="",
        pad_id=tokenizer.pad_id,
        per_span=wanted.per_span,
    )


def open_encoded(folder: Path) -> Encoded:
    """What ``encode`` left in ``folder``.

    Raises:
        UserError: nothing is there, or it is damaged.
    """
    again = f"delete {folder} and run the same command again"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, sha256 in manifest["files"].items():
            if file_sha256(folder / name) != sha256:
                raise UserError(f"{folder / name} is damaged (checksum); {again}")
        arrays = {name: _mapped(folder / f"{name}.npy") for name in _ARRAYS}
        labels = _mapped(folder / "labels.npy") if "labels.npy" in manifest["files"] else None
        return Encoded(
            **arrays,
            labels=labels,
            choices=manifest["choices"],
            keys=Keys(folder / KEYS, manifest["examples"]),
            cut=Cut(**manifest["cut"]),
            sha256=manifest["sha256"],
            pad_id=manifest["pad_id"],
            per_span=manifest["per_span"],
        )
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: there is no whole encoded split; {again}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be used ({error}); {again}") from error


def select(encoded: Encoded, examples: np.ndarray) -> Encoded:
    """Some of the examples, in the order given: a split of its own, in memory.

    ``cut`` stays that of the whole: which texts it counts is not stored.

    Args:
        encoded: a split.
        examples: (n,) int64, their numbers.
    """
    examples = np.asarray(examples, dtype=np.int64)
    texts = (examples[:, None] * encoded.choices + np.arange(encoded.choices)).ravel()
    starts, tokens = _ragged(encoded.starts, texts)
    span_starts, spans = _ragged(encoded.span_starts, texts)
    labels = None if encoded.labels is None else np.asarray(encoded.labels)[spans if encoded.per_span else examples]
    named = hashlib.sha256(encoded.sha256.encode() + examples.astype("<i8").tobytes())
    return replace(
        encoded,
        tokens=np.asarray(encoded.tokens)[tokens],
        types=np.asarray(encoded.types)[tokens],
        starts=starts,
        span_starts=span_starts,
        spans=np.asarray(encoded.spans)[spans],
        labels=labels,
        keys=[encoded.keys[int(example)] for example in examples],
        sha256=named.hexdigest(),
    )


def split(encoded: Encoded, share: float, seed: int, groups: Sequence[str] = ()) -> tuple[Encoded, Encoded]:
    """Two parts of a split, of which the second has about ``share`` of the examples and at least one group of them.

    Who is in it depends on the number of examples, their groups and the seed alone. Both keep the order.

    Args:
        encoded: at least two groups of examples.
        share: of the second part, above 0 and below 1.
        seed: of the draw.
        groups: names in ``Encoded.keys`` of what holds examples together (``Task.groups``): all of those that agree
            there go into the same part.

    Raises:
        UserError: there is nothing to divide.
    """
    assert 0 < share < 1, share
    if groups:
        named = [json.dumps([kept.get(name) for name in groups], sort_keys=True) for kept in encoded.keys]
    else:
        named = [str(example) for example in range(len(encoded))]
    drawn = sorted(set(named), key=lambda name: (key(seed, name, "held out"), name))
    if len(drawn) < 2:
        raise UserError(f"{len(encoded)} examples cannot be divided in two: give more training rows")
    out = set(drawn[: min(len(drawn) - 1, max(1, round(share * len(drawn))))])
    held = np.array([name in out for name in named])
    return select(encoded, np.flatnonzero(~held)), select(encoded, np.flatnonzero(held))


@dataclass(frozen=True)
class _Wanted:
    """What is to be encoded, and how; arguments as of ``encode``."""

    task: Task
    examples: Sequence[Example]
    tokenizer: Tokenizer
    max_length: int
    spans: str

    @property
    def choices(self) -> int:
        """Texts of each example; one where all choices are in one text."""
        return len(self.examples[0].texts) if self.examples else self.task.choices

    @property
    def per_span(self) -> bool:
        """Whether labels are of spans."""
        return self.task.kind == "tokens"

    @property
    def marked(self) -> bool:
        """Whether marks in the text say what it asks about."""
        return self.spans == "marked" and not self.per_span

    @property
    def keys(self) -> list[dict[str, Any]]:
        """(E,) what is kept beside each example."""
        return [dict(example.key) for example in self.examples]

    def check(self) -> None:
        """Refuse examples that do not make one split."""
        name, examples = self.task.name, self.examples
        unlabelled = sum(example.label is None for example in examples)
        if unlabelled not in (0, len(examples)):
            raise UserError(
                f"{name}: {unlabelled} of {len(examples)} rows have no label; give all of them one, or none"
            )
        for example in examples:
            where = f"{name}: row {example.key.get('index')}"
            if len(example.texts) != self.choices:
                raise UserError(f"{where} has {len(example.texts)} choices, others have {self.choices}")
            words = len(example.texts[0].spans)
            if self.per_span and isinstance(example.label, tuple) and len(example.label) != words:
                raise UserError(f"{where} has {words} words and {len(example.label)} labels")

    def fingerprint(self) -> str:
        """Of everything that decides what is encoded."""
        digest = hashlib.sha256()
        for first in range(0, len(self.examples), _HASHED_AT_ONCE):
            part = [
                [[[text.segments, text.spans] for text in example.texts], example.label, dict(example.key)]
                for example in self.examples[first : first + _HASHED_AT_ONCE]
            ]
            digest.update(json.dumps(part, sort_keys=True).encode())
        # Where no text asks about words, what would be done with them makes no difference.
        marks_text = self.marked and any(text.spans for example in self.examples for text in example.texts)
        how = [self.task.kind, len(self.task.labels), self.choices, self.max_length, marks_text]
        return fingerprint(ENCODING_VERSION, how, self.tokenizer.sha256, digest.hexdigest())

    def rows(self) -> Rows:
        """All texts, tokenized and cut."""
        texts = [text for example in self.examples for text in example.texts]
        if self.marked:
            around = marks(self.tokenizer, max((len(text.spans) for text in texts), default=0))
            texts = [marked(text, around) for text in texts]
        return rows(texts, self.tokenizer, self.max_length, from_start=self.per_span)

    def arrays(self, made: Rows) -> dict[str, Any]:
        """All but the tokens and their types."""
        span_starts, spans = made.span_starts, made.spans
        if self.marked:
            span_starts, spans = np.zeros_like(span_starts), spans[:0]
        return {"starts": made.starts, "span_starts": span_starts, "spans": spans, "labels": self._labels()}

    def _labels(self) -> np.ndarray | None:
        labels: list[Any] = [example.label for example in self.examples]
        if not labels or labels[0] is None:
            return None
        if self.per_span:
            return np.array([label for words in labels for label in words], dtype=np.int64)
        if self.task.kind == "multilabel":
            return np.array(labels, dtype=np.float32).reshape(len(labels), len(self.task.labels))
        return np.array(labels, dtype=np.float32 if self.task.kind == "regression" else np.int64)


def _make(folder: Path, wanted: _Wanted) -> None:
    """Write ``folder``, in the place of whatever is there."""
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    made = wanted.rows()
    with room_for(folder):
        unfinished.mkdir()
        size = (int(made.starts[-1]),)
        tokens = np.lib.format.open_memmap(unfinished / "tokens.npy", "w+", wanted.tokenizer.dtype, size)
        types = np.lib.format.open_memmap(unfinished / "types.npy", "w+", np.dtype(np.uint8), size)
        made.written(tokens, types)
        tokens.flush()
        types.flush()
        for name, array in wanted.arrays(made).items():
            if array is not None:
                np.save(unfinished / f"{name}.npy", array, allow_pickle=False)
        (unfinished / KEYS).write_text(json.dumps(wanted.keys), encoding="utf-8")
        files = {path.name: file_sha256(path) for path in sorted(unfinished.iterdir())}
        content: dict[str, Any] = {
            "files": files,
            "choices": wanted.choices,
            "cut": asdict(made.cut),
            "pad_id": wanted.tokenizer.pad_id,
            "per_span": wanted.per_span,
        }
        about: dict[str, Any] = {
            "task": wanted.task.name,
            "examples": len(wanted.examples),
            "max_length": wanted.max_length,
            "tokenizer_sha256": wanted.tokenizer.sha256,
            "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        }
        (unfinished / MANIFEST).write_text(json.dumps(content | about, indent=1), encoding="utf-8")
        for path in unfinished.iterdir():
            sync(path, "encoded")
        sync_folder(unfinished)
        shutil.rmtree(folder, ignore_errors=True)  # what is there is damaged
        rename(unfinished, folder, "encoded")


def _opened(folder: Path) -> Encoded | None:
    """What is in ``folder``; None where nothing whole is."""
    try:
        return open_encoded(folder)
    except UserError:
        return None


def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _ragged(starts: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of a ragged array: where each begins in an array of them alone, and the places of their items."""
    size = np.asarray(starts[chosen + 1] - starts[chosen])
    ends = np.cumsum(size)
    inside = np.arange(int(size.sum())) - np.repeat(ends - size, size)
    return np.concatenate([np.zeros(1, dtype=np.int64), ends]), np.repeat(starts[chosen], size) + inside
