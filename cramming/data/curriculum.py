"""Curricula (``data.order=``): the training rows in an order that follows from what is in them, instead of by chance.

Shape legend: N rows of the store, M of them to train on, n rows at a time, S positions, V vocabulary.

The order is computed once, in three passes over the store, and kept beside it: a file of M row numbers, mapped into
memory. Every epoch repeats it. Rows that are alike in what counts come by their numbers. A killed computation goes on
where it was. It takes up to 500 MB of memory, whatever the size of the store (pages of the store that were read count
as mapped, too, until the system wants them back).
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cramming import faults
from cramming.data.config import REVERSED
from cramming.data.curriculum_keys import KEYS, Key
from cramming.data.lock import locked
from cramming.data.store import TokenStore
from cramming.durable import replace, room_for, sync, write_file
from cramming.errors import UserError
from cramming.progress import ProgressSink

if TYPE_CHECKING:
    from cramming.data.stream import Rows, Split

ORDER_VERSION = 1  # of the code that decides an order
_TOKENS_AT_A_TIME = 1 << 22
_KEYS_AT_A_TIME = 1 << 22
_SORTED_ROWS = 1 << 24  # together; each takes 16 bytes while it is sorted
_KEPT_EVERY = 64  # chunks of rows: what is known of them is written down
_BIN_BITS = 16  # of a key, at most: rows of one bin are sorted together


def curriculum(store: TokenStore, split: "Split", name: str, progress: ProgressSink) -> "Callable[[int], Rows]":
    """The rows of every epoch in the order ``name``, one of ``cramming.data.config.ORDERS`` but ``random``.

    Raises:
        UserError: the store's folder cannot be written, or an order kept in it is damaged.
    """
    held_out = split.heldout_rows if split.name == "keyed" else f"{split.name}-{split.heldout_rows}"
    path = store.folder / f"order-{name}-{held_out}-v{ORDER_VERSION}.npy"
    try:
        if not path.exists():
            with room_for(path), locked(path, progress):
                if not path.exists():
                    _Ordering(store, split, name, path, progress).make()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(
            f"data.order={name} is kept beside the store, and {error.filename or path} cannot be written "
            f"({error.strerror}); set data_dir to a folder of your own"
        ) from error
    try:
        order = np.load(path, mmap_mode="r")
        whole = order.shape == (split.train_rows,)
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged; delete it and run the same command again")
    return lambda epoch: lambda places: order[places].astype(np.int64)


@dataclass
class _Ordering:
    """One computation of an order."""

    store: TokenStore
    split: "Split"
    name: str
    path: Path
    progress: ProgressSink

    def make(self) -> None:
        """Write the order; what a killed computation left is used."""
        work = self.path.with_name(f"{self.path.name}.work")
        assert self.store.rows < 1 << 32, "row numbers are kept in 32 bits"
        work.mkdir(exist_ok=True)
        # Sorted: a chunk's own are found without a mark for every row of the store.
        self._heldout = np.sort(self.split.heldout(np.arange(self.split.heldout_rows)))
        self._chunk_rows = max(1, _TOKENS_AT_A_TIME // self.store.seq_length)
        measure = KEYS[self.name.removeprefix(REVERSED)]
        counts = self._counts(work / "counts.bin") if measure.counts else None
        self._write_keys(measure.build(self.store.tokenizer, counts), work / "keys.bin")
        unfinished = work / "order.npy"
        self._sort(np.memmap(work / "keys.bin", dtype="<u4", mode="r", shape=(self.store.rows,)), unfinished)
        sync(unfinished, "order")
        replace(unfinished, self.path, "order")
        shutil.rmtree(work, ignore_errors=True)

    def _counts(self, file: Path) -> NDArray[np.int64]:
        """How often each id is in the training rows, (V,)."""
        vocabulary = self.store.tokenizer.vocab_size
        kept = np.fromfile(file, dtype="<i8") if file.exists() else np.zeros(1 + vocabulary, dtype="<i8")
        counts = kept[1:]
        for end, tokens, trains in self._chunks("counting tokens", int(kept[0])):
            counts += np.bincount(tokens[trains].ravel(), minlength=vocabulary)
            faults.point("order-counted")
            if self._is_kept(end):
                write_file(file, [np.int64(end).astype("<i8").tobytes(), counts.tobytes()], "order-counts")
        return counts

    def _write_keys(self, key: Key, file: Path) -> None:
        """A number for every row, (N,) uint32: rows with small ones come first."""
        whole = file.with_name("keys-whole.bin")  # how many of them are on the disk for certain
        done = int(np.fromfile(whole, dtype="<i8")[0]) if whole.exists() else 0
        with open(file, "ab") as keys:
            keys.truncate(4 * done)
            for end, tokens, _ in self._chunks("looking at every row", done):
                keys.write(key(tokens).astype("<u4").tobytes())
                faults.point("order-keys")
                if self._is_kept(end):
                    keys.flush()
                    sync(file, "order-keys")
                    write_file(whole, [np.int64(end).astype("<i8").tobytes()], "order-keys-whole")

    def _sort(self, keys: NDArray[np.uint32], file: Path) -> None:
        """Write the training rows (M,) by their keys, a range of keys at a time; rows of one key by their numbers."""
        self.progress.stage(f"data.order={self.name}: sorting", self.split.train_rows, "sequences")
        extremes = [(int(part.min()), int(part.max())) for _, part in self._parts(keys) if len(part)]
        low, high = min(least for least, _ in extremes), max(most for _, most in extremes)
        shift = max(0, (high - low).bit_length() - _BIN_BITS)

        def ranked() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
            """Training rows (n,) and their ranks (n,): the higher, the later."""
            for rows, part in self._parts(keys):
                yield rows, (high - part if self.name.startswith(REVERSED) else part - low).astype(np.uint64)

        bins = np.zeros(1 << _BIN_BITS, dtype=np.int64)
        for _, ranks in ranked():
            bins += np.bincount((ranks >> np.uint64(shift)).astype(np.int64), minlength=len(bins))
        with open(file, "wb") as order:
            head = {"descr": "<u4", "fortran_order": False, "shape": (self.split.train_rows,)}
            np.lib.format.write_array_header_1_0(order, head)
            for first, last in _ranges(bins):
                alike = shift == 0 and last == first + 1  # one key: nothing to sort
                together = np.empty(0 if alike else int(bins[first:last].sum()), dtype=np.uint64)
                filled = 0
                for rows, ranks in ranked():
                    chosen = (ranks >= first << shift) & (ranks < last << shift)
                    found = ranks[chosen] << np.uint64(32) | rows[chosen].astype(np.uint64)
                    if alike:
                        order.write(found.astype("<u4").tobytes())
                    else:
                        together[filled : filled + len(found)] = found
                        filled += len(found)
                together.sort()
                order.write(together.astype("<u4").tobytes())  # the lower half: the row
                self.progress.advance(int(bins[first:last].sum()))
                faults.point("order-sorted")
        self.progress.done()

    def _parts(self, keys: NDArray[np.uint32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
        """The training rows (n,) and their keys (n,)."""
        for first in range(0, len(keys), _KEYS_AT_A_TIME):
            part = keys[first : first + _KEYS_AT_A_TIME]
            trains = self._trains(first, len(part))
            yield first + np.flatnonzero(trains), part[trains]

    def _chunks(self, what: str, start: int) -> Iterator[tuple[int, NDArray[np.integer], NDArray[np.bool_]]]:
        """The rows from ``start`` on, with progress: the row behind them, tokens (n, S), which of them train (n,)."""
        self.progress.stage(f"data.order={self.name}: {what}", self.store.rows, "sequences")
        self.progress.advance(start)
        for first in range(start, self.store.rows, self._chunk_rows):
            rows = np.arange(first, min(first + self._chunk_rows, self.store.rows))
            yield first + len(rows), self.store.read(rows)[0], self._trains(first, len(rows))
            self.progress.advance(len(rows))
        self.progress.done()

    def _is_kept(self, end: int) -> bool:
        """Whether what is known of the rows before ``end`` is written down: the next start goes on from there."""
        return end == self.store.rows or end // self._chunk_rows % _KEPT_EVERY == 0

    def _trains(self, first: int, count: int) -> NDArray[np.bool_]:
        """Which of ``count`` rows from ``first`` on train, (count,)."""
        low, high = np.searchsorted(self._heldout, [first, first + count])
        trains = np.ones(count, dtype=bool)
        trains[self._heldout[low:high] - first] = False
        return trains


def _ranges(bins: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Neighbouring bins that are sorted together: as many as hold ``_SORTED_ROWS``, at least one."""
    first = held = 0
    for number, count in enumerate(bins.tolist()):
        if held and held + count > _SORTED_ROWS:
            yield first, number
            first, held = number, 0
        held += count
    if held:
        yield first, len(bins)
