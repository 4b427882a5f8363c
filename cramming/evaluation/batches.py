"""Batches of an encoded split: in random order for training, by length for evaluation.

Shape legend: E examples of the split, B of the batch, R texts of the batch (R = B * choices), S positions, K spans of
the text that has most, C classes.

In training, batches hold texts of similar length, yet their order is random: a keyed permutation of all examples is cut
into pools, each pool is sorted by length and cut into batches, and these come in random order. Everything follows from
the seed, the epoch and the batch's number, so that any batch can be made by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cramming.data.permutation import Permutation
from cramming.evaluation.encoded import Encoded

_POOL = 50  # batches that are sorted by length together, at most
_POOLS = 8  # of an epoch, at least: the neighbours of an example must differ between epochs of small tasks, too


@dataclass(frozen=True)
class Inputs:
    """What a model is asked at once.

    Attributes:
        tokens: (R, S) int64; the texts of an example follow one another.
        mask: (R, S) bool: True where a token is; None where nothing is padded.
        types: (R, S) int64: 1 from the second segment on, else 0.
        spans: (R, K, 2) int64: first token and one past the last; (0, 0): lost to truncation; (-1, -1): there is none,
            other texts have more; None: no text has any.
        labels: (B,) int64 or float32; (B, C) float32 for multi-label; (R, K) int64 for tokens, -100 where none counts;
            None: nobody knows them.
        examples: (B,) int64: their numbers in the split.
    """

    tokens: Tensor
    mask: Tensor | None
    types: Tensor
    spans: Tensor | None
    labels: Tensor | None
    examples: Tensor

    def __len__(self) -> int:
        return self.examples.shape[0]

    @property
    def choices(self) -> int:
        """Texts of each example."""
        return self.tokens.shape[0] // len(self)

    def to(self, device: torch.device | str) -> "Inputs":
        """The same on another device."""
        held: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {name: t if t is None else t.to(device) for name, t in held.items()}
        return Inputs(**moved)

    def split(self, examples: int | None) -> Iterator["Inputs"]:
        """Consecutive parts of ``examples`` each (None: the whole), as wide as the whole."""
        if examples is None or examples >= len(self):
            yield self
            return
        for first in range(0, len(self), examples):
            part = slice(first, first + examples)
            texts = slice(first * self.choices, (first + examples) * self.choices)
            yield replace(
                self,
                tokens=self.tokens[texts],
                mask=None if self.mask is None else self.mask[texts],
                types=self.types[texts],
                spans=None if self.spans is None else self.spans[texts],
                labels=None if self.labels is None else self.labels[part],
                examples=self.examples[part],
            )


def lengths(encoded: Encoded) -> np.ndarray:
    """Tokens of the longest text of each example, (E,) int64."""
    return np.diff(encoded.starts).reshape(-1, encoded.choices).max(axis=1)


def count(examples: int, batch_size: int, drop_last: bool = False) -> int:
    """Batches of an epoch."""
    return examples // batch_size if drop_last else -(-examples // batch_size)


def training(
    encoded: Encoded,
    batch_size: int,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    *,
    start: int = 0,
    multiple: int = 1,
) -> Iterator[Inputs]:
    """One epoch: every example once, in an order that follows from ``seed`` and ``epoch``.

    Only the last batch may be smaller; who is in it is random.

    Args:
        encoded: the split.
        batch_size: B, examples of a batch.
        seed: of the order.
        epoch: its number.
        drop_last: leave the smaller batch out.
        start: number of the batch to begin with; what comes is the same as without it.
        multiple: S is rounded up to a multiple of it (8 suits GPUs; 1 elsewhere).
    """
    for examples in order(encoded, batch_size, seed, epoch, drop_last, start=start):
        yield gather(encoded, examples, multiple)


def order(
    encoded: Encoded, batch_size: int, seed: int, epoch: int, drop_last: bool = False, *, start: int = 0
) -> Iterator[np.ndarray]:
    """The examples of each batch of ``training``, (B,) int64."""
    if not len(encoded):
        return
    length, whole = lengths(encoded), len(encoded) // batch_size
    shuffled = Permutation(len(encoded), seed, epoch, "examples")
    pool = max(1, min(_POOL, whole // _POOLS))
    for number in range(start // pool, -(-whole // pool)):
        first, last = number * pool, min((number + 1) * pool, whole)
        members = shuffled(np.arange(first * batch_size, last * batch_size))
        members = members[np.argsort(length[members], kind="stable")].reshape(-1, batch_size)
        turns = Permutation(last - first, seed, epoch, "batches", number)(np.arange(last - first))
        yield from members[turns[max(start - first, 0) :]]
    if not drop_last and len(encoded) % batch_size and start <= whole:
        yield shuffled(np.arange(whole * batch_size, len(encoded)))


def evaluation(encoded: Encoded, tokens_per_batch: int, *, multiple: int = 1) -> Iterator[Inputs]:
    """Every example once, the longest first, so that memory that does not suffice shows at once.

    ``Inputs.examples`` says where results belong.

    Args:
        encoded: the split.
        tokens_per_batch: at most so many with padding, unless a single example has more.
        multiple: S is rounded up to a multiple of it.
    """
    length = lengths(encoded)
    longest_first = np.argsort(-length, kind="stable")
    first = 0
    while first < len(longest_first):
        width = _rounded(length[longest_first[first]], multiple) * encoded.choices
        last = first + max(1, tokens_per_batch // width)
        yield gather(encoded, longest_first[first:last], multiple)
        first = last


def gather(encoded: Encoded, examples: np.ndarray, multiple: int = 1) -> Inputs:
    """The batch of these examples: (B,) int64, in their order."""
    texts = (examples[:, None] * encoded.choices + np.arange(encoded.choices)).ravel()
    inside, places = _grid(encoded.starts, texts, multiple)
    tokens = np.asarray(encoded.tokens)[places].astype(np.int64)
    types = np.asarray(encoded.types)[places].astype(np.int64)
    padded = not inside.all()
    if padded:
        tokens[~inside] = encoded.pad_id
        types[~inside] = 0
    labels = None if encoded.labels is None else np.asarray(encoded.labels)
    spans = None
    if len(encoded.spans) or encoded.per_span:
        filled, places = _grid(encoded.span_starts, texts)
        spans = np.where(filled[..., None], np.asarray(encoded.spans)[places], -1).astype(np.int64)
        if labels is not None and encoded.per_span:
            labels = np.where(filled, labels[places], -100)
    if labels is not None and not encoded.per_span:
        labels = labels[examples]
    return Inputs(
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(inside) if padded else None,
        types=torch.from_numpy(types),
        spans=None if spans is None else torch.from_numpy(spans),
        labels=None if labels is None else torch.from_numpy(labels),
        examples=torch.from_numpy(examples.astype(np.int64)),
    )


def _grid(starts: np.ndarray, rows: np.ndarray, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Ragged rows side by side: whether each cell holds an item, and its place; that of an empty cell is some item's.

    Args:
        starts: where each row begins, one more than there are rows.
        rows: (n,) those wanted.
        multiple: of which the width is one.
    """
    begin, size = starts[rows], starts[rows + 1] - starts[rows]
    columns = np.arange(_rounded(size.max(initial=0), multiple))
    inside = columns < size[:, None]
    return inside, np.where(inside, begin[:, None] + columns, 0)


def _rounded(length: int, multiple: int) -> int:
    return -(-int(length) // multiple) * multiple
