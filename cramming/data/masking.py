"""Masking as a pure function of (mask seed, epoch, sequence id, position).

Positions of a sequence are ranked by a hash and the first ``round(rate x length)`` are predicted, so masks of different
rates are nested; a second, independent hash decides which of them become [MASK] (80 %), a random token (10 %) or stay
as they are (10 %; Devlin et al. 2019, section 3.1). Special tokens are never predicted; random tokens are real ones.
The same sequence gets the same mask on any machine, at any microbatch size, on any number of ranks, after any resume.

Shape legend: B sequences, S positions, P prediction slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cramming.batch import Batch
from cramming.hashing import key, mix

_NEVER = (1 << 63) - 1  # rank of a position that must not be predicted
_KEPT_BITS = 0xFFFF  # low bits of a rank hold the position, so that no two ranks of a sequence are equal


@dataclass(frozen=True)
class Masking:
    """What masking needs to know of the tokenizer, on the device where it happens."""

    mask_id: int
    special: Tensor  # (V,) bool: never predicted
    real_ids: Tensor  # (R,) int64: what a random token is drawn from

    @classmethod
    def of(cls, vocab_size: int, mask_id: int, special_ids: list[int], device: torch.device) -> "Masking":
        """For a tokenizer's vocabulary."""
        special = torch.zeros(vocab_size, dtype=torch.bool)
        special[special_ids] = True
        return cls(mask_id, special.to(device), torch.arange(vocab_size)[~special].to(device))

    def __call__(
        self,
        tokens: Tensor,
        ids: Tensor,
        epochs: Tensor,
        lengths: Tensor | None,
        *,
        seed: int,
        rate: float,
        slots: int,
        offsets: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Batch:
        """Mask sequences.

        Args:
            tokens: (B, S) int64 token ids.
            ids: (B,) int64 row numbers.
            epochs: (B,) int64.
            lengths: (B,) int64 tokens before the padding, or None where nothing is padded.
            seed: the mask seed.
            rate: share of a sequence's tokens to predict.
            slots: P, the fixed number of prediction slots; at least ``round(rate x S)``.
            offsets: (B,) int64 where in its row each sequence begins, so that pieces of one row are masked each in
                their own way; None: at the row's beginning.
            starts: (B, S) bool first tokens of documents that are to be kept apart; None: a sequence is one.

        Returns:
            A batch whose empty slots (fewer candidates than slots, or a rate below the slots') have weight 0.
        """
        size, length = tokens.shape
        position = torch.arange(length, device=tokens.device)
        sequence = mix(mix(epochs + key("mask", seed)) ^ mix(ids))
        # Hashed by the position in the row: a truncated row ranks its tokens as the whole row does.
        sequence = sequence[:, None] if offsets is None else sequence[:, None] + offsets[:, None]
        hashes = mix(sequence + position)  # (B, S)
        candidates = ~self.special[tokens]
        if lengths is not None:
            candidates &= position < lengths[:, None]
        ranks = (hashes & (_NEVER ^ _KEPT_BITS)) | position
        ranks, positions = ranks.masked_fill_(~candidates, _NEVER).topk(slots, dim=1, largest=False, sorted=True)
        wanted = torch.full((size,), length, device=tokens.device) if lengths is None else lengths
        count = (wanted.double() * rate).round()  # float32 would round 150 x 0.07 down, and leave a slot empty
        predicted = (position[:slots] < count[:, None]) & (ranks != _NEVER)
        labels = tokens.gather(1, positions)
        draw = mix(sequence + positions + key("replace", seed)) & _NEVER
        random = mix(sequence + positions + key("random", seed)) & _NEVER
        shown = torch.where(draw < int(0.8 * _NEVER), self.mask_id, labels)
        swapped = (draw >= int(0.8 * _NEVER)) & (draw < int(0.9 * _NEVER))
        shown = torch.where(swapped, self.real_ids[random % len(self.real_ids)], shown)
        inputs = tokens.scatter(1, positions, torch.where(predicted, shown, labels))
        weights = predicted.to(torch.float32)
        return Batch(ids, epochs, inputs, positions, labels, weights, lengths, weights.sum(), starts)
