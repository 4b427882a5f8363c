"""The worker's task of cleaning: a block of documents in, a part of the spool out."""

import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cramming.data.cleaning.config import JUDGED_CHARACTERS
from cramming.data.cleaning.equality import content_hash
from cramming.data.cleaning.filters import Filters
from cramming.data.cleaning.similarity import band_hashes, sequence_hashes
from cramming.data.cleaning.spool import KEPT, SAME, Header, encode_part


def judge_block(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Worker task: the part file of a ``spool.Block`` under ``stages`` and, where they count tokens, ``tokenizer``."""
    filters = _filters(json.dumps(request["stages"]), request["tokenizer"])
    filters.seconds.clear()
    hashing = _hashing(request["stages"].get("duplicates"))
    header = Header(position=request["position"], cursor=request["cursor"])
    stored: list[tuple[int, bytes]] = []
    texts: list[str] = request["texts"]
    for at, text in enumerate(texts):
        number = at - int(request["continues"])
        unfinished = request["unfinished"] and at == len(texts) - 1
        data = text.encode()
        header.text_bytes += len(data)
        objection = None
        if number < 0:
            header.rest_bytes = len(data)
            header.unfinished = SAME if unfinished else None
            if request["digest"] is not None:
                hashing.ended(number, bytes.fromhex(request["digest"]))
        else:
            header.documents += 1
            objection = filters.objection(text)
            header.unfinished = (objection or KEPT) if unfinished else None
            if objection is None:
                hashing.document(number, text, unfinished)
        if objection is None:
            stored.append((number, data))
            header.kept_characters += len(text)
        else:
            count, size = header.removed.get(objection, (0, 0))
            header.removed[objection] = [count + 1, size + len(data)]
    hashes = hashing.result()
    header.seconds = {**filters.seconds, **hashing.seconds}
    return {}, encode_part(header, stored, hashing.owners, hashes)


@lru_cache(maxsize=1)
def _filters(stages: str, tokenizer: str | None) -> Filters:
    return Filters(json.loads(stages), None if tokenizer is None else Path(tokenizer))


class _Hashing:
    """No duplicates are looked for: no hashes."""

    def __init__(self) -> None:
        self.owners: list[int] = []
        self.seconds: dict[str, float] = {}

    def document(self, number: int, text: str, unfinished: bool) -> None:
        """A document, or the beginning of one."""

    def ended(self, number: int, digest: bytes) -> None:
        """The end of a document that began in an earlier block."""

    def result(self) -> np.ndarray:
        """The hashes (owners, hashes of each)."""
        return np.empty((0, 0), dtype=np.uint64)


class _Exact(_Hashing):
    """One hash of all its text for each document."""

    def __init__(self) -> None:
        super().__init__()
        self._digests: list[bytes] = []
        self.seconds = {"duplicates": 0.0}

    def document(self, number: int, text: str, unfinished: bool) -> None:
        begun = time.process_time()
        if not unfinished:
            self.ended(number, content_hash(text).digest())
        self.seconds["duplicates"] += time.process_time() - begun

    def ended(self, number: int, digest: bytes) -> None:
        self.owners.append(number)
        self._digests.append(digest)

    def result(self) -> np.ndarray:
        return np.frombuffer(b"".join(self._digests), dtype="<u8").reshape(-1, 1)


class _Near(_Hashing):
    """The bands of each document, or of the beginning of a long one."""

    def __init__(self, bands: int, rows: int, words: int) -> None:
        super().__init__()
        self._bands, self._rows, self._words = bands, rows, words
        self._sequences: list[np.ndarray] = []
        self.seconds = {"duplicates": 0.0}

    def document(self, number: int, text: str, unfinished: bool) -> None:
        begun = time.process_time()
        self.owners.append(number)
        self._sequences.append(sequence_hashes(text[:JUDGED_CHARACTERS], self._words))
        self.seconds["duplicates"] += time.process_time() - begun

    def result(self) -> np.ndarray:
        begun = time.process_time()
        hashes = band_hashes(self._sequences, self._bands, self._rows)
        self.seconds["duplicates"] += time.process_time() - begun
        return hashes


def _hashing(options: dict[str, Any] | None) -> _Hashing:
    if options is None:
        return _Hashing()
    if options["duplicates"] == "exact":
        return _Exact()
    return _Near(options["near_bands"], options["near_rows"], options["near_words"])
