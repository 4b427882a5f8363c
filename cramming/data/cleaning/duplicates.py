"""Duplicates among any number of documents, in bounded memory: hashes are spread over files by value, each small.

A document is a duplicate if an earlier one has one of its hashes (``exact``: it has one; ``near``: one for each band).
The earlier one may be a duplicate itself, so what is removed does not depend on anything but the order of documents.

Memory: some tens of MB, and a bit for each document (3 MB for 25 million). Disk, while it works: 16 bytes a hash.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cramming import faults
from cramming.data.cleaning.spool import KEPT, SAME, Header, part_path, read_header, read_part
from cramming.durable import sync, write_atomically, write_file
from cramming.progress import ProgressSink

DROPPED = "dropped.bin"
# Hashes in a file, about, and in memory at a time.
_BUCKET_RECORDS = 1 << 20
_RECORD = np.dtype([("hash", "<u8"), ("document", "<u8")])


class Bits:
    """A set of document numbers, one bit each."""

    def __init__(self, documents: int) -> None:
        self._bits = np.zeros((documents + 7) // 8, dtype=np.uint8)

    def add(self, numbers: np.ndarray) -> None:
        """Put ``numbers`` (n,) into the set."""
        np.bitwise_or.at(self._bits, numbers // 8, np.uint8(1) << (numbers % 8).astype(np.uint8))

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """Which of ``numbers`` (n,) are in the set: (n,) bool."""
        return (self._bits[numbers // 8] >> (numbers % 8).astype(np.uint8) & 1).astype(bool)

    def tobytes(self) -> bytes:
        """The set, as ``read`` takes it."""
        return self._bits.tobytes()

    @staticmethod
    def read(path: Path) -> "Bits":
        """The set that a file holds."""
        bits = Bits(0)
        bits._bits = np.fromfile(path, dtype=np.uint8)
        return bits


def resolve(work: Path, parts: int, compare: bool, progress: ProgressSink) -> None:
    """Write the numbers of the documents that are to be left out, ``dropped.bin``, into the spool ``work``.

    These are duplicates (with ``compare``), and documents that a filter removed while their rest was stored. Killed and
    called again, it goes on: hashes are spread again unless that was finished, and files that are done stay done.
    """
    folder = work / "duplicates"
    if not (work / DROPPED).exists():
        dropped = _compared(work, parts, folder, progress) if compare else _removed(work, parts)
        write_file(work / DROPPED, [dropped.tobytes()], "clean-dropped")
        faults.point("clean-dropped-written")
    shutil.rmtree(folder, ignore_errors=True)


def _compared(work: Path, parts: int, folder: Path, progress: ProgressSink) -> Bits:
    facts = folder / "spread.json"
    if not facts.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        counts = _spread(work, parts, folder, progress)
        write_atomically(facts, json.dumps(counts).encode())
    counts = json.loads(facts.read_text())
    dropped = _Removed(counts["documents"], counts["removed"]).bits()
    progress.stage("comparing documents", counts["buckets"], "files")
    for number in range(counts["buckets"]):
        found = folder / f"found-{number:06d}.bin"
        if not found.exists():
            repeated = duplicates(_chunks(_bucket_path(folder, number), _RECORD))
            write_file(found, (documents.astype("<i8").tobytes() for documents in repeated), "clean-found")
            _bucket_path(folder, number).unlink(missing_ok=True)
        for documents in _chunks(found, np.dtype("<i8")):
            dropped.add(documents)
        progress.advance(1)
    progress.done()
    return dropped


def _removed(work: Path, parts: int) -> Bits:
    removed = _Removed()
    for number in range(parts):
        removed.pass_part(read_header(part_path(work, number)))
    return removed.bits()


@dataclass
class _Removed:
    """Documents that go on over several parts and that a filter removed: their rest is stored, but left out."""

    documents: int = 0  # that began in the parts passed
    removed: list[int] = field(default_factory=list)

    def pass_part(self, header: Header) -> None:
        """The next part."""
        self.documents += header.documents
        if header.unfinished not in (None, SAME, KEPT):
            self.removed.append(self.documents - 1)

    def bits(self) -> Bits:
        """As a set."""
        bits = Bits(self.documents)
        bits.add(np.array(self.removed, dtype=np.int64))
        return bits


def _bucket_path(folder: Path, number: int) -> Path:
    return folder / f"bucket-{number:06d}.bin"


def _spread(work: Path, parts: int, folder: Path, progress: ProgressSink) -> dict[str, int | list[int]]:
    """Append every hash, with its document's number, to the file for its value."""
    progress.stage("sorting hashes of documents into files", parts, "parts")
    headers = (read_header(part_path(work, number)) for number in range(parts))
    total = sum(header.owners * header.hashes for header in headers)
    shift = max(0, math.ceil(math.log2(max(1, total) / _BUCKET_RECORDS)))
    passed = _Removed()
    waiting: list[np.ndarray] = []
    for number in range(parts):
        part = read_part(part_path(work, number))
        owners = passed.documents + part.owners.astype(np.int64)
        records = np.empty(part.hashes.shape, dtype=_RECORD)
        records["hash"], records["document"] = part.hashes, owners[:, None]
        # A removed document makes no other one a duplicate.
        waiting.append(records[~np.isin(owners, passed.removed)].reshape(-1))
        passed.pass_part(part.header)
        if sum(map(len, waiting)) >= _BUCKET_RECORDS:
            _append(np.concatenate(waiting), folder, shift)
            waiting = []
        progress.advance(1)
        faults.point("clean-spread")
    if any(map(len, waiting)):
        _append(np.concatenate(waiting), folder, shift)
    for path in folder.iterdir():
        sync(path, "clean-bucket")
    progress.done()
    return {"buckets": 1 << shift, "documents": passed.documents, "removed": passed.removed}


def _append(records: np.ndarray, folder: Path, shift: int) -> None:
    buckets = (records["hash"] >> np.uint64(32)) >> np.uint64(32 - shift)  # its first bits
    order = np.argsort(buckets, kind="stable")  # documents stay in their order
    records, buckets = records[order], buckets[order]
    numbers, starts = np.unique(buckets, return_index=True)
    for number, start, end in zip(numbers, starts, [*starts[1:], len(records)], strict=True):
        with open(_bucket_path(folder, int(number)), "ab") as file:
            file.write(records[start:end].tobytes())


def _chunks(path: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The records of a file, so many at a time; no file, no records."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        while data := file.read(_BUCKET_RECORDS * dtype.itemsize):
            yield np.frombuffer(data, dtype=dtype)


def duplicates(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """For each chunk of records, the documents (n,) of those whose hash an earlier record has.

    Takes memory for the different hashes, however often each comes. Records are in the order of their documents.
    """
    known = np.empty(0, dtype=np.uint64)
    for records in chunks:
        hashes, first = np.unique(records["hash"], return_index=True)
        new = ~np.isin(hashes, known, assume_unique=True)
        repeated = np.ones(len(records), dtype=bool)
        repeated[first[new]] = False
        known = np.concatenate([known, hashes[new]])
        yield np.unique(records["document"][repeated])
