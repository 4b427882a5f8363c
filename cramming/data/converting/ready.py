"""The rows of a token store as samples."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cramming.data.converting.steps import Step
from cramming.data.fingerprint import fingerprint
from cramming.data.store import TokenStore

if TYPE_CHECKING:
    from cramming.data.stream import Split

TOKENS = "tokens"
_AT_A_TIME = 4096


class StoredRows:
    """Rows of the training or of the held-out part, in the order the split has them: ``Samples`` of ``tokens``.

    Args:
        store: packed rows.
        split: which rows are which.
        held_out: those, or the training rows.
        as_bytes: int64 in bytes, as MDS has them; otherwise arrays of the store's type.
    """

    unit = "rows"

    def __init__(self, store: TokenStore, split: "Split", held_out: bool, as_bytes: bool) -> None:
        self.name = f"the token store {store.folder}"
        self._store, self._as_bytes = store, as_bytes
        self._rows: Callable[[np.ndarray], np.ndarray] = split.heldout if held_out else split.train
        self._count = split.heldout_rows if held_out else split.train_rows
        self.identity = fingerprint("rows", store.fingerprint, split.name, split.heldout_rows, held_out, as_bytes)

    @property
    def total(self) -> float:
        """See ``Samples``."""
        return float(self._count)

    def steps(self, state: Any) -> Iterator[Step]:
        """See ``Samples.steps``. A state is a row's place in its part."""
        for begin in range(state or 0, self._count, _AT_A_TIME):
            places = np.arange(begin, min(begin + _AT_A_TIME, self._count))
            rows, _ = self._store.read(self._rows(places))
            for place, row in zip(places.tolist(), rows, strict=True):
                sample = {TOKENS: row.astype("<i8").tobytes() if self._as_bytes else row}
                yield Step(sample, partial(int, place), float(place + 1))
