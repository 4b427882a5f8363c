"""The endless stream of masked sequences a run trains on, and the held-out ones it is validated on.

Order is a keyed bijection of the index, a pure function of (seed, epoch): nothing of the size of the corpus is kept or
saved. The stream's position is two integers, epoch and offset, and means what was consumed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cramming.batch import Batch
from cramming.data.masking import Masking
from cramming.data.permutation import Permutation
from cramming.data.store import TokenStore

VALIDATION_SEQUENCES = 10_000  # the first so many of the held-out part, whatever its fraction
_SPLIT_KEY = "heldout"  # the split does not depend on the run's seed: runs of one data set share their held-out part


class Split:
    """Which rows train and which are held out, by row number through a keyed bijection."""

    def __init__(self, rows: int, heldout_fraction: float) -> None:
        self._order = Permutation(rows, _SPLIT_KEY)
        self.heldout_rows = max(1, round(rows * heldout_fraction)) if heldout_fraction else 0
        self.train_rows = rows - self.heldout_rows

    def train(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices 0..train_rows-1 -> row numbers of the training part."""
        return self._order(indices + self.heldout_rows)

    def heldout(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices 0..heldout_rows-1 -> row numbers of the held-out part."""
        return self._order(indices)


class Stream:
    """Draws masked sequences: ``stream.draw(n) -> Batch`` of n sequences, for ever.

    Args:
        store: the token store.
        split: its training and held-out parts.
        seed: of order and masks.
        mask_rate: the rate now, asked at every draw: it is fixed when a sequence is drawn and travels with it.
        max_mask_rate: the highest rate ``mask_rate`` will give; fixes the number of prediction slots.
        device: where sequences are masked and batches live.
    """

    def __init__(
        self,
        store: TokenStore,
        split: Split,
        *,
        seed: int,
        mask_rate: Callable[[], float],
        max_mask_rate: float,
        device: torch.device,
    ) -> None:
        self.store = store
        self.split = split
        self.seed = seed
        self.epoch = 0
        self.offset = 0
        self.device = device
        self._mask_rate = mask_rate
        self.slots = slots(store.seq_length, max_mask_rate)
        tokenizer = store.tokenizer
        self._masking = Masking.of(tokenizer.vocab_size, tokenizer.mask_id, tokenizer.special_ids, device)
        self._order = Permutation(split.train_rows, seed, 0)

    def draw(self, n: int) -> Batch:
        """The next ``n`` training sequences, masked at the present rate."""
        rows, epochs = [], []
        while n:
            taken = min(n, self.split.train_rows - self.offset)
            rows.append(self.split.train(self._order(np.arange(self.offset, self.offset + taken))))
            epochs.append(np.full(taken, self.epoch))
            n -= taken
            self.offset += taken
            if self.offset == self.split.train_rows:
                self._seek(self.epoch + 1, 0)
        return self.masked(np.concatenate(rows), np.concatenate(epochs), self.seed, self._mask_rate(), self.slots)

    def masked(self, rows: NDArray[np.int64], epochs: NDArray[np.int64], seed: int, rate: float, slots: int) -> Batch:
        """Sequences by row number, (n,) -> a batch masked as (seed, epoch, row) says."""
        tokens, lengths = self.store.read(rows)
        return self._masking(
            torch.from_numpy(tokens.astype(np.int64)).to(self.device),
            torch.from_numpy(rows).to(self.device),
            torch.from_numpy(epochs).to(self.device),
            None if lengths is None else torch.from_numpy(lengths.astype(np.int64)).to(self.device),
            seed=seed,
            rate=rate,
            slots=slots,
        )

    def heldout(self, batch_size: int, *, mask_rate: float, mask_seed: int, limit: int) -> Iterator[Batch]:
        """The first ``limit`` held-out sequences in batches, masked always alike (epoch 0)."""
        total = min(limit, self.split.heldout_rows)
        for start in range(0, total, batch_size):
            rows = self.split.heldout(np.arange(start, min(start + batch_size, total)))
            places = slots(self.store.seq_length, mask_rate)
            yield self.masked(rows, np.zeros_like(rows), mask_seed, mask_rate, places)

    def state_dict(self) -> dict[str, Any]:
        """Two integers: what was consumed."""
        return {"epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind what was consumed."""
        self._seek(state["epoch"], state["offset"])

    def _seek(self, epoch: int, offset: int) -> None:
        self.epoch, self.offset = epoch, offset
        self._order = Permutation(self.split.train_rows, self.seed, epoch)


def slots(seq_length: int, mask_rate: float) -> int:
    """P, the number of prediction slots of a sequence at a mask rate; at least one."""
    return max(1, round(seq_length * mask_rate))
