"""Documents as samples: the text of each, or all of them as token ids, cut into samples of one length.

Shape legend: N ids in a sample.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cramming.data.converting.steps import Document, Step, documents, is_held_out
from cramming.data.fingerprint import fingerprint
from cramming.data.sources.source import Source
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizing import BLOCK_CHARACTERS, encode_block, parse_part
from cramming.data.workers import Workers
from cramming.errors import UserError
from cramming.progress import ProgressSink

TEXT, TOKENS = "text", "tokens"
#: Of shards of texts and of token ids.
TEXT_COLUMNS, TOKEN_COLUMNS = {TEXT: "str"}, {TOKENS: "bytes"}
_STORED = np.dtype("<i8")  # token ids, as the earlier tools stored them


@dataclass(frozen=True)
class Part:
    """Which documents of a source a split is made of.

    Attributes:
        source: the text.
        limit: the first so many documents; None: all.
        one_in: one in so many is of the validation split made of this source; None: none is.
        held_out: whether it is that split, or the others.
        max_characters: of each document, from its beginning; None: all of it.
    """

    source: Source
    limit: int | None = None
    one_in: int | None = None
    held_out: bool = False
    max_characters: int | None = None

    @property
    def facts(self) -> list[object]:
        """What decides the documents."""
        return [self.source.fingerprint, self.limit, self.one_in, self.held_out, self.max_characters]

    @property
    def unit(self) -> str:
        """What ``total`` and the positions of documents count."""
        return self.source.unit if self.limit is None else "documents"

    @property
    def total(self) -> float:
        """Size of all documents, for progress."""
        return self.source.total if self.limit is None else float(self.limit)

    def documents(self, place: list[Any] | None) -> Iterator[Document]:
        """They, from a place on."""
        for document in documents(self.source, place, self.limit):
            if self.limit is not None:
                document.position = float(document.number + 1)
            if self.one_in is None or is_held_out(document.number, self.one_in) == self.held_out:
                if self.max_characters is not None:
                    document.texts = ["".join(document.texts)[: self.max_characters]]
                yield document


class Texts:
    """The text of each document: ``Samples`` with the column ``text``."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self.name, self.unit = part.source.name, part.unit
        self.identity = fingerprint("texts", part.facts)

    @property
    def total(self) -> float:
        """See ``Samples``."""
        return self._part.total

    def steps(self, state: Any) -> Iterator[Step]:
        """See ``Samples.steps``."""
        for document in self._part.documents(state):
            yield Step({TEXT: "".join(document.texts)}, partial(list, document.place), document.position)


@dataclass(frozen=True)
class Joining:
    """How documents become one stream of token ids.

    Attributes:
        tokenizer: of the text.
        length: N.
        bos, eos: ids before and behind each document, what the tokenizer itself puts there included.
        wrap: what a sample leaves of a document goes into the next one, instead of being left out.
    """

    tokenizer: Tokenizer
    length: int
    bos: list[int]
    eos: list[int]
    wrap: bool = True

    @staticmethod
    def of(tokenizer: Tokenizer, length: int, around: tuple[str, str], wrap: bool, progress: ProgressSink) -> "Joining":
        """With the texts a person wants ``around`` each document; what is odd about them is said.

        Raises:
            UserError: nothing separates documents.
        """
        before, behind = _around(tokenizer)
        given = dict(zip(("bos_text", "eos_text"), around, strict=True))
        ids = {key: tokenizer.encode(text, special_tokens=True).tolist() if text else [] for key, text in given.items()}
        if not any(given.values()) and not before and not behind:
            raise UserError(
                "nothing separates documents: this tokenizer puts no token around a text, and bos_text and eos_text "
                f"are empty; give eos_text={tokenizer.token(tokenizer.sep_id)!r}, say"
            )
        for key, found in ids.items():
            if given[key] and len(found) != 1:
                progress.note(f"warning: {key}={given[key]!r} is not one token, but {len(found)}: {found}")
            if given[key] and (before or behind):
                progress.note(
                    f"warning: the tokenizer already puts special tokens around a text, and {key} is given, too: "
                    "they may be doubled"
                )
        return Joining(tokenizer, length, ids["bos_text"] + before, behind + ids["eos_text"], wrap)

    def join(self, kept: np.ndarray, ids: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """One more document, its ids (n,), behind what was kept (k,): samples (N,) each, and what is kept of it."""
        stream = np.concatenate([kept, self.bos, ids.astype(_STORED), self.eos]).astype(_STORED)
        whole = len(stream) // self.length
        if not self.wrap:
            return ([stream[: self.length]], stream[:0]) if whole else ([], stream)
        samples = list(stream[: whole * self.length].reshape(whole, self.length))
        return samples, stream[whole * self.length :]


class JoinedTokens:
    """Token ids of all documents, cut every N: ``Samples`` with the column ``tokens``, N int64 each.

    Args:
        part: the documents.
        joining: how they are joined.
        workers: processes that tokenize.
    """

    def __init__(self, part: Part, joining: Joining, workers: int) -> None:
        self._part, self._joining, self._workers = part, joining, workers
        self.name, self.unit = part.source.name, part.unit
        how = [joining.tokenizer.sha256, joining.length, joining.bos, joining.eos, joining.wrap]
        self.identity = fingerprint("tokens", part.facts, how)

    @property
    def total(self) -> float:
        """See ``Samples``."""
        return self._part.total

    def steps(self, state: Any) -> Iterator[Step]:
        """See ``Samples.steps``. A state is [place of the document, what was kept before it, samples of it behind]."""
        place, kept, done = state or (None, [], 0)
        rest = np.array(kept, _STORED)
        for document, ids in self._encoded(place):
            before = rest
            samples, rest = self._joining.join(before, ids)
            for number, sample in enumerate(samples):
                if number >= done:
                    state = partial(_state, document.place, before, number)
                    yield Step({TOKENS: sample.tobytes()}, state, document.position)
            done = 0

    def _encoded(self, place: list[Any] | None) -> Iterator[tuple[Document, np.ndarray]]:
        tokenizer = self._joining.tokenizer
        with tempfile.TemporaryDirectory() as folder, Workers(self._workers) as pool:
            tokenizer.save(Path(folder))

            def encode(block: list[Document]) -> list[tuple[Document, np.ndarray]]:
                texts = [text for document in block for text in document.texts]
                lasts = [
                    piece == len(document.texts) for document in block for piece in range(1, len(document.texts) + 1)
                ]
                request = {"tokenizer": folder, "texts": texts, "lasts": lasts}
                _, data = pool.call(f"{encode_block.__module__}:{encode_block.__name__}", request)
                part = parse_part(data, tokenizer.dtype)
                return list(zip(block, np.split(part.ids, part.ends[:-1]), strict=True))

            for encoded in pool.ordered(encode, _blocks(self._part.documents(place))):
                yield from encoded


def _state(place: list[Any], kept: np.ndarray, number: int) -> list[Any]:
    return [place, kept.tolist(), number]


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens a tokenizer itself puts before and behind a text, where its file says so."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    with_them = backend.encode("a")
    marks = with_them.special_tokens_mask
    before = next((at for at, mark in enumerate(marks) if not mark), len(marks))
    behind = next((at for at, mark in enumerate(reversed(marks)) if not mark), 0)
    return with_them.ids[:before], with_them.ids[len(marks) - behind :]


def _blocks(found: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in groups that are worth a worker's while."""
    block: list[Document] = []
    size = 0
    for document in found:
        block.append(document)
        size += sum(map(len, document.texts))
        if size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block
