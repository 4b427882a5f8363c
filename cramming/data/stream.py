"""The endless stream of masked sequences a run trains on, and the held-out ones it is validated on.

Order is a keyed bijection of the index, a pure function of (seed, epoch): nothing of the size of the corpus is kept or
saved. (A curriculum is one that was computed before: ``cramming.data.curriculum``.) The stream's position is two
integers, epoch and offset, and means what was consumed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cramming.batch import Batch
from cramming.data.masking import Masking
from cramming.data.permutation import Permutation
from cramming.data.store import TokenStore
from cramming.lengths import Lengths
from cramming.parallel.ranks import here

VALIDATION_SEQUENCES = 10_000  # the first so many of the held-out part, whatever its fraction
_AHEAD = 1 << 14  # rows: of few of them numpy's calls take longer than what they work out
_SPLIT_KEY = "heldout"  # the split does not depend on the run's seed: runs of one data set share their held-out part


Rows = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Places in an epoch (n,), 0 to train_rows - 1 -> the numbers of the training rows there (n,)."""


class Split:
    """Which rows train and which are held out, by row number.

    Args:
        rows: of the corpus.
        heldout_fraction: the share of them that is held out, at least one row unless it is 0.
        order: all rows in an order whose first ones are held out; None: a keyed bijection.
        heldout_rows: how many are held out, where ``heldout_fraction`` of the rows, rounded, is not what is meant.
        name: what the order is called; splits of the same name and held-out rows are the same.
    """

    def __init__(
        self,
        rows: int,
        heldout_fraction: float = 0.0,
        *,
        order: Rows | None = None,
        heldout_rows: int | None = None,
        name: str = "keyed",
    ) -> None:
        self._order = order or Permutation(rows, _SPLIT_KEY)
        if heldout_rows is None:
            heldout_rows = max(1, round(rows * heldout_fraction)) if heldout_fraction else 0
        self.name = name
        self.heldout_rows = heldout_rows
        self.train_rows = rows - heldout_rows

    def of_heldout(self) -> "Split":
        """What this split holds out as a corpus of its own, for a model that must not see what others train on.

        Its first tenth, at most ``VALIDATION_SEQUENCES``, is held out in turn: sequences that every run of the corpus
        is validated on; in a large corpus, with ten times as many held out, no run trains on one of them.
        """
        validation = min(VALIDATION_SEQUENCES, max(1, self.heldout_rows // 10))
        return Split(self.heldout_rows, order=self._order, heldout_rows=validation, name=f"heldout of {self.name}")

    def shuffled(self, seed: int) -> "Callable[[int], Rows]":
        """The training rows of every epoch in an order of its own, by chance."""
        return shuffled(self, seed)

    def train(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices 0..train_rows-1 -> row numbers of the training part."""
        return self._order(indices + self.heldout_rows)

    def heldout(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices 0..heldout_rows-1 -> row numbers of the held-out part."""
        return self._order(indices)


def shuffled(split: Split, seed: int) -> Callable[[int], Rows]:
    """The rows of every epoch in an order of its own, by chance."""

    def of_epoch(epoch: int) -> Rows:
        order = Permutation(split.train_rows, seed, epoch)
        known, first = np.empty(0, np.int64), 0

        def rows(places: NDArray[np.int64]) -> NDArray[np.int64]:
            nonlocal known, first
            begin, end = int(places.min()), int(places.max()) + 1
            if end - begin > _AHEAD:
                return split.train(order(places))
            if begin < first or end > first + len(known):
                known = split.train(order(np.arange(begin, min(begin + _AHEAD, split.train_rows))))
                first = begin
            return known[places - first]

        return rows

    return of_epoch


class Stream:
    """Draws masked sequences: ``stream.draw(n) -> Batch`` of n sequences, for ever.

    Args:
        store: the token store.
        split: its training and held-out parts.
        seed: of order and masks.
        mask_rate: the rate now, asked at every draw: it is fixed when a sequence is drawn and travels with it.
        max_mask_rate: the highest rate ``mask_rate`` will give; fixes the number of prediction slots of a length.
        device: where sequences are masked and batches live.
        lengths: how long sequences are by progress; None: always as long as the rows.
        order: the rows of every epoch; None: ``split.shuffled`` by the seed.
        separate_documents: tell the model where documents begin, so that no token sees another document's.

    Attributes:
        length: tokens in each sequence drawn now. ``begin_step`` sets it, so that all of a step are equally long.
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
        lengths: Lengths | None = None,
        order: Callable[[int], Rows] | None = None,
        separate_documents: bool = False,
    ) -> None:
        self.store = store
        self.split = split
        self.seed = seed
        self.device = device
        self.lengths = lengths or Lengths(store.seq_length)
        self.length = self.lengths(0.0)
        self._order = order or split.shuffled(seed)
        self._separate_documents = separate_documents and store.layout == "packed"
        self._mask_rate = mask_rate
        self._max_mask_rate = max_mask_rate
        tokenizer = store.tokenizer
        self._masking = Masking.of(tokenizer.vocab_size, tokenizer.mask_id, tokenizer.special_ids, device)
        self._seek(0, 0)

    @property
    def slots(self) -> int:
        """P, prediction slots of a sequence of the present length."""
        return slots(self.length, self._max_mask_rate)

    def begin_step(self, progress: float) -> None:
        """Draw sequences of the length that belongs to ``progress`` from here on."""
        self.length = self.lengths(progress)

    def draw(self, n: int) -> Batch:
        """The next ``n`` training sequences, of the present length, masked at the present rate.

        Of several ranks each gets its share: all agree on the rows, each reads and masks its own. Rows are consumed
        whole: where they are unfolded and ``n`` is no multiple of a row's pieces, the pieces of the last row that are
        left over are dropped.
        """
        rows, epochs, pieces = self.next_rows(n)
        batch = self.masked(
            rows, epochs, seed=self.seed, rate=self._mask_rate(), slots=self.slots, length=self.length, pieces=pieces
        )
        ranks = here()
        if ranks.world == 1:
            return batch
        batch = batch.as_share(n)
        return replace(batch, normalizer=ranks.sum_(batch.weights.sum()))

    def next_rows(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """This rank's share of the next ``n`` sequences: (n / R,) numbers of their rows, epochs, pieces of the rows.

        All ``n`` are consumed. A rank works out its own alone, so that its work does not grow with the others.
        """
        ranks = here()
        places = np.arange(ranks.rank, -(-n // ranks.world) * ranks.world, ranks.world) % n
        pieces = self.lengths.pieces(self.length)
        own = places // pieces  # among the rows that all consume together
        rows, epochs = np.empty_like(own), np.empty_like(own)
        begun, wanted = 0, -(-n // pieces)
        while begun < wanted:
            taken = min(wanted - begun, self.split.train_rows - self.offset)
            now = (begun <= own) & (own < begun + taken)
            if now.any():
                rows[now] = self._rows(self.offset + own[now] - begun)
                epochs[now] = self.epoch
            begun += taken
            self.offset += taken
            if self.offset == self.split.train_rows:
                self._seek(self.epoch + 1, 0)
        return rows, epochs, places % pieces

    def masked(
        self,
        rows: NDArray[np.int64],
        epochs: NDArray[np.int64],
        *,
        seed: int,
        rate: float,
        slots: int,
        length: int | None = None,
        pieces: NDArray[np.int64] | None = None,
    ) -> Batch:
        """Rows by number, (n,) -> n sequences masked as (seed, epoch, row, position in the row) says.

        Args:
            rows: their numbers.
            epochs: (n,) how often each was drawn before.
            seed: of the masks.
            rate: share of positions predicted.
            slots: P.
            length: shorter than the rows it truncates or unfolds them, as ``lengths`` says; None: whole rows.
            pieces: (n,) which piece of its row each sequence is, where rows are unfolded: one whose positions begin at
                0; None: the first.
        """
        length = length or self.store.seq_length
        unfolded = self.lengths.pieces(length) > 1
        begins = np.zeros(len(rows), np.int64) if pieces is None else pieces * length
        tokens, filled = self.store.read(rows)
        if unfolded:
            assert filled is None, "padded rows are not unfolded"
            tokens = np.take_along_axis(tokens, begins[:, None] + np.arange(length), axis=1)
        tokens = tokens[:, :length]
        if filled is not None:
            filled = np.minimum(filled, length)

        def moved(values: NDArray[np.integer]) -> torch.Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(self.device)

        starts = None
        if self._separate_documents:  # where the token before ends a document
            ends = tokens[:, :-1] == self.store.tokenizer.sep_id
            starts = torch.from_numpy(np.pad(ends, ((0, 0), (1, 0)), constant_values=True)).to(self.device)
        return self._masking(
            moved(tokens),
            moved(rows),
            moved(epochs),
            None if filled is None else moved(filled),
            seed=seed,
            rate=rate,
            slots=slots,
            offsets=moved(begins) if unfolded else None,
            starts=starts,
        )

    def heldout(self, batch_size: int, *, mask_rate: float, mask_seed: int, limit: int) -> Iterator[Batch]:
        """The first ``limit`` held-out sequences in batches, masked always alike (epoch 0)."""
        total = min(limit, self.split.heldout_rows)
        for start in range(0, total, batch_size):
            rows = self.split.heldout(np.arange(start, min(start + batch_size, total)))
            places = slots(self.store.seq_length, mask_rate)
            yield self.masked(rows, np.zeros_like(rows), seed=mask_seed, rate=mask_rate, slots=places)

    def state_dict(self) -> dict[str, Any]:
        """Two integers: what was consumed."""
        return {"epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind what was consumed."""
        self._seek(state["epoch"], state["offset"])

    def _seek(self, epoch: int, offset: int) -> None:
        self.epoch, self.offset = epoch, offset
        self._rows = self._order(epoch)


def slots(seq_length: int, mask_rate: float) -> int:
    """P, the number of prediction slots of a sequence at a mask rate; at least one."""
    return max(1, round(seq_length * mask_rate))
