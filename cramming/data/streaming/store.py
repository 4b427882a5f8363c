"""A corpus in shards as a token store: rows are read by number, and their shards are brought here before.

Shape legend: n rows asked for, S positions.

Rows are numbered through: those of every stream one after the other, in the order of its index, then those of the
splits to validate on. A row's number never changes. Ids beyond the number of rows are rows of streams that repeat
(``streaming.order``).
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cramming.data.fingerprint import fingerprint
from cramming.data.shards.shard import Shard
from cramming.data.store import STORE_VERSION
from cramming.data.streaming.ahead import Ahead
from cramming.data.streaming.bringing import Bringing
from cramming.data.streaming.cache import ShardCache
from cramming.data.streaming.corpus import Corpus
from cramming.data.streaming.fetching import Patience
from cramming.data.streaming.order import Interleaved, WindowOrder
from cramming.data.streaming.rows import RowForm, Rows
from cramming.errors import UserError
from cramming.remote import shown
from cramming.text import quantity

_AT_A_TIME = 1 << 14  # places: of few of them numpy's calls take longer than what they work out


@dataclass(frozen=True)
class Member:
    """One stream."""

    name: str
    weight: float
    train: Corpus
    heldout: Corpus | None  # None: the last rows of ``train`` are


@dataclass(frozen=True)
class Reading:
    """How shards are read."""

    window: int  # shards whose rows are mixed with one another
    ahead: int  # shards that are brought before they are needed, beside a window
    threads: int


@dataclass(frozen=True)
class Range:
    """Rows that follow one another."""

    first: int
    count: int


class ShardedStore:
    """The rows of a corpus in shards; read like a ``TokenStore``.

    Args:
        members: the streams.
        forms: how the samples of each stream become rows.
        cache: of this machine.
        reading: how.
        heldout_fraction: of the rows of a stream without a split to validate on.
        patience: for what passes.
        clock: seconds, for what reading waits.

    Raises:
        UserError: the cache is too small.
    """

    def __init__(
        self,
        members: Sequence[Member],
        forms: Sequence[RowForm],
        cache: ShardCache,
        reading: Reading,
        *,
        heldout_fraction: float = 0.0,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.members = members
        self.reading = reading
        self.folder = cache.folder
        self.tokenizer = forms[0].tokenizer
        self.seq_length = forms[0].seq_length
        self.layout = forms[0].layout
        validated = [(member.heldout, form) for member, form in zip(members, forms, strict=True) if member.heldout]
        corpora = [member.train for member in members] + [corpus for corpus, _ in validated if corpus]
        self._shards: list[tuple[int, Shard]] = [(n, one) for n, at in enumerate(corpora) for one in at.index.shards]
        samples = np.array([shard.samples for _, shard in self._shards], dtype=np.int64)
        self._firsts = np.concatenate([[0], samples.cumsum()])[:-1]
        self.rows = int(samples.sum())
        self._bringing = Bringing(corpora, [*forms, *(form for _, form in validated)], cache, patience or Patience())
        self._ahead = Ahead(lambda number: self._bringing.open(*self._shards[number]), reading.threads, clock)
        self._lock = threading.Lock()
        self._now: list[int] = []
        self._begun = False  # something was read since a place was said
        self.train_parts, self.heldout_parts = _parted(members, heldout_fraction)
        self.fingerprint = fingerprint(
            "shards", STORE_VERSION, [at.index.fingerprint for at in corpora],
            [[member.weight, member.heldout is not None] for member in members], [form.facts for form in forms],
        )  # fmt: skip
        self._check_limit(cache.limit)
        self.manifest = self._manifest(corpora)

    def read(self, ids: NDArray[np.int64]) -> Rows:
        """Ids (n,) int64 -> tokens (n, S), lengths (n,) int32 of documents (``None`` if packed), once they are here.

        Raises:
            UserError: a shard cannot be had, or is not what its index says.
        """
        with self._lock:
            rows = ids % self.rows
            shards = np.searchsorted(self._firsts, rows, side="right") - 1
            tokens = np.empty((len(ids), self.seq_length), self.tokenizer.dtype)
            lengths = np.empty(len(ids), np.int32) if self.layout == "document" else None
            needed = np.unique(shards).tolist()
            planned = [shard for shard in needed if shard in self._now]
            self._ahead.get(planned)  # together; others one by one
            for shard in needed:
                here = np.flatnonzero(shards == shard)
                found, filled = self._ahead.get([shard])[0].read(rows[here] - self._firsts[shard])
                tokens[here] = found
                if lengths is not None and filled is not None:
                    lengths[here] = filled
            self._begun = True
            return tokens, lengths

    def order(self, seed: int) -> "Order":
        """Which row stands where in every epoch."""
        streams = []
        base = 0
        for number, (member, part) in enumerate(zip(self.members, self.train_parts, strict=True)):
            numbers = np.arange(base, base + len(member.train.index.shards))
            firsts = self._firsts[numbers]
            counts = np.array([shard.samples for shard in member.train.index.shards], dtype=np.int64)
            counts = np.clip(part.first + part.count - firsts, 0, counts)
            key = (seed, "stream", number)
            streams.append(WindowOrder(numbers, firsts, counts, self.reading.window, *key))
            base += len(numbers)
        return Order(self, Interleaved(streams, [member.weight for member in self.members], self.rows))

    def expect(self, now: Sequence[int], soon: Sequence[int]) -> None:
        """The shards of what is read next, and those after it: they are brought, and others given up."""
        with self._lock:
            self._now = list(now) if self._begun else [*self._now, *now]
            self._begun = False
            self._ahead.want(self._now, soon)

    def about_reading(self) -> dict[str, float]:
        """What reading waited for, in this process: for the summary."""
        stalls = self._ahead.stalls
        return {
            "stalled_s": stalls.seconds,
            "stalled_steps": stalls.count,
            "started_s": stalls.start_s,
            "fetched_bytes": self._bringing.fetched_bytes,
        }

    def verify(self) -> None:
        """Bring every shard and compare it with its index.

        Raises:
            UserError: one is not what its index says.
        """
        for number, (_, shard) in enumerate(self._shards):
            if shard.samples:
                self._ahead.get([number])

    def close(self) -> None:
        """Give every shard back; threads end."""
        self._ahead.close()

    def _check_limit(self, limit: int) -> None:
        """Refuse a cache that cannot hold what is open at one time."""
        sizes = [(self._bringing.kept_bytes(*one), self._bringing.work_bytes(*one)) for one in self._shards]
        needed, base = 0, 0
        for member in self.members:
            own = sizes[base : base + len(member.train.index.shards)]
            open_ = 2 * self.reading.window + self.reading.ahead
            needed += sum(sorted((kept for kept, _ in own), reverse=True)[:open_])
            base += len(own)
        needed += sum(sorted((kept + work for kept, work in sizes), reverse=True)[: self.reading.threads])
        if needed > limit:
            raise UserError(
                f"data.cache_limit={quantity(limit, 'B')} is less than shards in use take at one time; set "
                f"data.cache_limit={-(-needed // 1000)}kB or more, or lower data.shuffle_window, data.fetch_ahead or "
                "data.fetch_threads, or convert the corpus to smaller shards"
            )

    def _manifest(self, corpora: Sequence[Corpus]) -> dict[str, Any]:
        return {
            "source": "mds",
            "fingerprint": self.fingerprint,
            "inputs": [{"address": shown(at.address), "fingerprint": at.index.fingerprint} for at in corpora],
            "streams": {member.name: member.weight for member in self.members},
            "rows": self.rows,
            "seq_length": self.seq_length,
            "layout": self.layout,
            "dtype": self.tokenizer.dtype.name,
            "documents": self.rows,  # as far as is known before they are read: one a row, at least
            "tokens": self.rows * self.seq_length,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_sha256": self.tokenizer.sha256,
        }


class Order:
    """Rows of every epoch; asking for places tells the store what is read next."""

    def __init__(self, store: ShardedStore, order: Interleaved) -> None:
        self._store = store
        self._order = order

    def __call__(self, epoch: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        """Places in an epoch (n,) -> ids (n,)."""

        known, begin = np.empty(0, np.int64), 0

        def rows(places: NDArray[np.int64]) -> NDArray[np.int64]:
            nonlocal known, begin
            first, last = int(places.min()), int(places.max())
            self._store.expect(*self._order.needs(epoch, first, last, self._store.reading.ahead))
            if last - first >= _AT_A_TIME:
                return self._order.ids(epoch, places)
            if first < begin or last >= begin + len(known):
                end = min(first + _AT_A_TIME, self._order.epoch_rows)
                known, begin = self._order.ids(epoch, np.arange(first, end)), first
            return known[places - begin]

        return rows


def _parted(members: Sequence[Member], heldout_fraction: float) -> tuple[list[Range], list[Range]]:
    """Rows of each stream that train, and rows that are held out: last shards, whole where that is not far too much."""
    train, heldout, base = [], [], 0
    for member in members:
        rows, held = member.train.rows, 0
        if member.heldout is None and heldout_fraction:
            wanted = max(1, round(rows * heldout_fraction))
            whole, left = 0, [shard.samples for shard in member.train.index.shards]
            while whole < wanted:
                whole += left.pop()
            held = whole if whole <= 2 * wanted and whole < rows else wanted
            heldout.append(Range(base + rows - held, held))
        if rows == held:
            raise UserError(
                f"{shown(member.train.address)} has {rows} samples, and data.heldout_fraction={heldout_fraction:g} "
                "leaves none of them to train on: leave this stream out, or give data.heldout_fraction=0"
            )
        train.append(Range(base, rows - held))
        base += rows
    for member in members:
        if member.heldout is not None:
            heldout.append(Range(base, member.heldout.rows))
            base += member.heldout.rows
    return train, heldout
