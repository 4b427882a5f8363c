"""A split of a task as token ids, memory-mapped.

Shape legend: E examples, R texts (R = E * choices), T tokens of all texts, N spans of all texts, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cut:
    """What truncation to ``max_length`` left out."""

    texts: int = 0  # that lost tokens
    tokens: int = 0  # lost
    spans: int = 0  # asked about, and lost with them


@dataclass(frozen=True)
class Encoded:
    """Texts follow one another in ``tokens``; [CLS] and [SEP] are among them, padding is not.

    Attributes:
        tokens: (T,) uint16 or uint32.
        types: (T,) uint8: 1 from the second segment on, else 0.
        starts: (R + 1,) int64: where each text begins; text r of example e is e * choices + r.
        span_starts: (R + 1,) int64: where each text's spans begin.
        spans: (N, 2) int32: first token and one past the last, within the text; (0, 0): it was cut off.
        labels: (E,) int64 or float32; (E, C) float32 for multi-label; (N,) int64, -100 where none counts, for tokens;
            None: unlabelled.
        choices: texts of each example.
        keys: (E,) what metrics and submissions need beside a prediction.
        cut: what truncation left out.
        sha256: of everything else here; results name it.
        pad_id: what fills the end of a row in a batch.
        per_span: labels are of spans, as in token classification.
    """

    tokens: np.ndarray
    types: np.ndarray
    starts: np.ndarray
    span_starts: np.ndarray
    spans: np.ndarray
    labels: np.ndarray | None
    choices: int
    keys: Sequence[Mapping[str, Any]]
    cut: Cut
    sha256: str
    pad_id: int = 0
    per_span: bool = False

    def __len__(self) -> int:
        return (len(self.starts) - 1) // self.choices
