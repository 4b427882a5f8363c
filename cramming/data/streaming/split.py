"""The split of a streamed corpus: by ranges of rows, with an order of its own."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cramming.data.stream import Rows, Split
from cramming.data.streaming.store import Range, ShardedStore


class ShardSplit(Split):
    """Held-out rows are those of the splits to validate on, or the last of a stream; all others train."""

    def __init__(self, store: ShardedStore) -> None:
        heldout, train = store.heldout_parts, store.train_parts
        rows = sum(part.count for part in (*heldout, *train))
        super().__init__(
            rows, order=_through([*heldout, *train]), heldout_rows=sum(p.count for p in heldout), name="shards"
        )
        self._store = store

    def shuffled(self, seed: int) -> Callable[[int], Rows]:
        """See ``Split.shuffled``: shards by chance, and within a few of them."""
        return self._store.order(seed)


def _through(parts: Sequence[Range]) -> Rows:
    """Ranges of rows, one after the other: places (n,) -> rows (n,)."""
    counts = np.array([part.count for part in parts], dtype=np.int64)
    firsts = np.array([part.first for part in parts], dtype=np.int64)
    ends = counts.cumsum()

    def rows(places: NDArray[np.int64]) -> NDArray[np.int64]:
        which = np.searchsorted(ends, places, side="right")
        return firsts[which] + places - (ends - counts)[which]

    return rows
