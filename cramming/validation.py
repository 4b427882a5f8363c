"""Held-out loss, perplexity and accuracy at predicted positions: always the same sequences under the same masks.

Validation is not charged to the clock. Sums are taken over predicted tokens, in float64 and in a fixed order, so that a
token weighs the same in every batch.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from cramming.data.stream import VALIDATION_SEQUENCES
from cramming.parallel.ranks import here

if TYPE_CHECKING:
    from cramming.train import Run

MASK_RATE = 0.15
MASK_SEED = 0
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Validation:
    """What was measured on the held-out part."""

    loss: float  # natural logarithm, mean over predicted tokens
    accuracy: float  # share of predicted tokens whose best guess is right
    predicted_tokens: int
    sequences: int

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that cannot be written."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.no_grad()
def validate(
    run: "Run", *, mask_rate: float = MASK_RATE, mask_seed: int = MASK_SEED, limit: int = VALIDATION_SEQUENCES
) -> Validation | None:
    """Measure the run's model at full depth, with the weights its method lends for evaluation.

    Args:
        run: the run.
        mask_rate: share of positions predicted.
        mask_seed: of the masks.
        limit: at most so many held-out sequences.

    Returns:
        None if nothing is held out.
    """
    loss, right, predicted, sequences = 0.0, 0, 0, 0
    depth = run.model.active_layers
    with run.method.evaluating(run):
        for all_of_it in run.stream.heldout(_BATCH_SIZE, mask_rate=mask_rate, mask_seed=mask_seed, limit=limit):
            sequences += len(all_of_it)
            batch = all_of_it.shared()
            logits = run.engine.uncharged_logits(batch).float()
            losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
            loss += float((losses.view_as(batch.weights) * batch.weights).sum(dtype=torch.float64))
            right += int(((logits.argmax(-1) == batch.labels) & (batch.weights > 0)).sum())
            predicted += int(batch.weights.sum())
    loss, right, predicted = here().sum_(torch.tensor([loss, right, predicted], dtype=torch.float64)).tolist()
    assert run.model.active_layers == depth, "evaluating() must leave the depth as it was"
    if not predicted:
        return None
    return Validation(loss / predicted, right / predicted, int(predicted), sequences)
