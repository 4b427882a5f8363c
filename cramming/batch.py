"""A batch of masked sequences.

Shape legend: B sequences, S positions, P prediction slots, K kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_PER_SEQUENCE = ("ids", "epochs", "inputs", "positions", "labels", "weights", "lengths", "starts", "kept")


@dataclass(frozen=True)
class Batch:
    """Masked sequences, ready for the model.

    ``normalizer`` is the number of predicted tokens of the whole batch (one optimizer step); parts of a batch keep
    it, so that the sum of their losses is the mean over the batch however it is cut.
    """

    ids: Tensor  # (B,) int64: row numbers in the token store, for ever; pieces of an unfolded row share its number
    epochs: Tensor  # (B,) int64: how often the sequence was drawn before
    inputs: Tensor  # (B, S) int64: token ids with masks applied
    positions: Tensor  # (B, P) int64: predicted positions, in the order of their hash
    labels: Tensor  # (B, P) int64: true token ids there
    weights: Tensor  # (B, P) float32: 1 where the slot is predicted, 0 where it is empty
    lengths: Tensor | None  # (B,) int64: tokens before the padding; None where nothing is padded
    normalizer: Tensor  # () float32
    starts: Tensor | None = None  # (B, S) bool: first tokens of documents that are apart; None: a sequence is one
    index: int = 0  # number of this draw group within its batch
    kept: Tensor | None = None  # (B, K) int64: positions, ascending, that layers of ``kept_depth`` see; None: all
    kept_depth: tuple[float, float] = (0.0, 0.0)  # shares of the active layers where that begins and ends

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """S, the padded sequence length."""
        return self.inputs.shape[1]

    def groups(self, sequences: int | None) -> Iterator["Batch"]:
        """Draw groups: consecutive parts of ``sequences`` each (``None``: the whole), numbered by ``index``."""
        for number, part in enumerate(self.split(sequences)):
            yield replace(part, index=number)

    def split(self, sequences: int | None) -> Iterator["Batch"]:
        """Consecutive parts of ``sequences`` each (``None``: the whole), still of the draw group they were of."""
        if sequences is None or sequences >= len(self):
            yield self
            return
        for start in range(0, len(self), sequences):
            yield self._rows(slice(start, start + sequences))

    def select(self, rows: Tensor) -> "Batch":
        """The sequences ``rows`` (int64 or bool) as a batch of their own, with its own normalizer."""
        part = self._rows(rows)
        return replace(part, normalizer=part.weights.sum(), index=0)

    @staticmethod
    def concatenate(parts: "list[Batch]") -> "Batch":
        """One batch of all sequences of ``parts``, in their order; they must be equally long."""
        assert parts, "nothing to concatenate"
        joined: dict[str, Tensor | None] = {}
        for name in _PER_SEQUENCE:
            values = [getattr(part, name) for part in parts]
            joined[name] = None if values[0] is None else torch.cat(values)
        weights = joined["weights"]
        assert weights is not None
        return replace(parts[0], **joined, normalizer=weights.sum(), index=0)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved = {name: getattr(self, name) for name in (*_PER_SEQUENCE, "normalizer")}
        return replace(self, **{k: v if v is None else v.to(device) for k, v in moved.items()})  # type: ignore[arg-type]

    def _rows(self, rows: slice | Tensor) -> "Batch":
        taken = {name: getattr(self, name) for name in _PER_SEQUENCE}
        return replace(self, **{k: v if v is None else v[rows] for k, v in taken.items()})  # type: ignore[arg-type]
