"""``python -m cramming.data.show data=... n=4``: what the model sees, readable."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from cramming.data.tokenizer import Tokenizer


def show(
    rows: Iterable[np.ndarray],
    tokenizer: Tokenizer,
    ids: Iterable[int] | None = None,
    inputs: Iterable[np.ndarray] | None = None,
    positions: Iterable[np.ndarray] | None = None,
) -> Iterator[str]:
    """Lines to print: each row (S,) decoded, documents on lines of their own, ending in [SEP].

    ``ids``: the rows' numbers. ``inputs`` (S,) and ``positions`` (P,) of each row show masking: a predicted token is
    written ``‹true›`` where [MASK] stands for it, ``‹true→other›`` where another token does, ``‹true=›`` where it
    was left.
    """
    numbers = iter(ids) if ids is not None else None
    masked = iter(inputs) if inputs is not None else None
    predicted = iter(positions) if positions is not None else None
    for count, row in enumerate(rows):
        number = count if numbers is None else next(numbers)
        marks: Collection[int] = () if predicted is None else {int(p) for p in next(predicted)}
        given = row if masked is None else next(masked)
        yield f"--- sequence {number}"
        yield from _documents(row, given, marks, tokenizer)


def _documents(row: np.ndarray, given: np.ndarray, marks: Collection[int], tokenizer: Tokenizer) -> Iterator[str]:
    line: list[str] = []
    padding = 0
    for position, (true, seen) in enumerate(zip(row.tolist(), given.tolist(), strict=True)):
        if true == tokenizer.pad_id:
            padding += 1
            continue
        piece = tokenizer.token(true)
        if position in marks:
            change = "" if seen == tokenizer.mask_id else "=" if seen == true else f"→{tokenizer.token(seen)}"
            piece = f"‹{piece}{change}›"
        line.append(piece)
        if true == tokenizer.sep_id:
            yield _joined(line)
            line = []
    if line:
        yield _joined(line) + " ..."
    if padding:
        yield f"({padding} positions of padding)"


def _joined(pieces: list[str]) -> str:
    """Word pieces joined to words; marked ones stay apart, so that what is predicted can be seen."""
    return " ".join(pieces).replace(" ##", "")
