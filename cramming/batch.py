"""A batch of masked sequences, whole or this rank's share of it.

Of R ranks each holds every R-th sequence of a batch, so that any run of R consecutive ones is spread evenly. All hold
equally many: where R does not divide the batch, the last ones are filled up with sequences that weigh nothing.

Shape legend: B sequences here, S positions, P prediction slots, K kept, T sequences of the whole batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cramming.parallel.ranks import here

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
    share: int | None = None  # T of the batch of which these are the sequences of this rank; None: this is all of it
    ends_group: bool = True  # the last part of its draw group
    ends_batch: bool = True  # the last part of all: gradients are complete with it

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """S, the padded sequence length."""
        return self.inputs.shape[1]

    @property
    def sequences(self) -> int:
        """T: those of other ranks counted, those that weigh nothing not."""
        return len(self) if self.share is None else self.share

    @property
    def places(self) -> Tensor:
        """(B,) int64: where in the whole batch each sequence is; from T on it is there to fill up."""
        places = torch.arange(len(self), device=self.ids.device)
        return places if self.share is None else places * here().world + here().rank

    def shared(self) -> "Batch":
        """This rank's share; of one rank the batch itself."""
        ranks = here()
        if self.share is not None or ranks.world == 1:
            return self
        places = torch.arange(ranks.rank, -(-len(self) // ranks.world) * ranks.world, ranks.world)
        return self._rows((places % len(self)).to(self.ids.device)).as_share(len(self))

    def as_share(self, sequences: int) -> "Batch":
        """These rows as this rank's share of a batch of ``sequences``: those beyond its end weigh nothing."""
        part = replace(self, share=sequences)
        return replace(part, weights=self.weights * (part.places < sequences)[:, None])

    def gathered(self, values: Tensor) -> Tensor:
        """What is known of each sequence here, (B, ...) -> of each of the whole batch, (T, ...), on every rank.

        Where this is a share, all ranks have to ask.
        """
        return values if self.share is None else here().gathered(values)[: self.share]

    def whole(self) -> "Batch":
        """All sequences, of every rank; where this is a share, all ranks have to ask."""
        if self.share is None:
            return self
        found = {name: getattr(self, name) for name in _PER_SEQUENCE}
        return replace(self, **{k: v if v is None else self.gathered(v) for k, v in found.items()}, share=None)  # type: ignore[arg-type]

    def groups(self, sequences: int | None) -> Iterator["Batch"]:
        """Draw groups: consecutive parts of ``sequences`` each (``None``: the whole), numbered by ``index``.

        Of a share, this rank's part of each; R divides ``sequences`` wherever there is more than one.
        """
        here_each = sequences
        if self.share is not None and sequences is not None:
            assert self.share <= sequences or sequences % here().world == 0, "build_run refuses it"
            here_each = -(-sequences // here().world)
        for number, part in enumerate(self.split(here_each)):
            yield replace(part, index=number, ends_group=True, ends_batch=self.ends_batch and part.ends_group)

    def split(self, sequences: int | None) -> Iterator["Batch"]:
        """Consecutive parts of ``sequences`` of those here (``None``: all), still of the draw group they were of."""
        if sequences is None or sequences >= len(self):
            yield self
            return
        for start in range(0, len(self), sequences):
            ends = start + sequences >= len(self)
            part = self._rows(slice(start, start + sequences))
            if self.share is not None:
                world = here().world
                part = replace(part, share=min(self.share, (start + len(part)) * world) - start * world)
            yield replace(part, ends_group=self.ends_group and ends, ends_batch=self.ends_batch and ends)

    def select(self, rows: Tensor) -> "Batch":
        """The sequences ``rows`` (int64 or bool, of the whole batch) as a batch of their own, with its own normalizer.

        The result is whole; of a share all ranks have to ask.
        """
        part = self.whole()._rows(rows)
        return replace(part, normalizer=part.weights.sum(), index=0, ends_group=True, ends_batch=True)

    @staticmethod
    def concatenate(parts: "list[Batch]") -> "Batch":
        """One whole batch of all sequences of ``parts``, in their order; they must be equally long."""
        assert parts, "nothing to concatenate"
        parts = [part.whole() for part in parts]
        joined: dict[str, Tensor | None] = {}
        for name in _PER_SEQUENCE:
            values = [getattr(part, name) for part in parts]
            joined[name] = None if values[0] is None else torch.cat(values)
        weights = joined["weights"]
        assert weights is not None
        joined["normalizer"] = weights.sum()
        return replace(parts[0], **joined, index=0, ends_group=True, ends_batch=True)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved = {name: getattr(self, name) for name in (*_PER_SEQUENCE, "normalizer")}
        return replace(self, **{k: v if v is None else v.to(device) for k, v in moved.items()})  # type: ignore[arg-type]

    def _rows(self, rows: slice | Tensor) -> "Batch":
        taken = {name: getattr(self, name) for name in _PER_SEQUENCE}
        return replace(self, **{k: v if v is None else v[rows] for k, v in taken.items()})  # type: ignore[arg-type]
