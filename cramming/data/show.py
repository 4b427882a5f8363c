"""``python -m cramming.data.show data=... n=4``: what the model sees, readable."""

import sys
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from cramming.cli import run_command
from cramming.data.prepare import prepared
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError

_USAGE = """\
Print training sequences as the model sees them: one document a line; predicted tokens in brackets.

  python -m cramming.data.show data=python_docs n=4

  ‹true›         [MASK] stands there        ‹true→other›   another token does        ‹true=›   left as it was

Options: n=4 sequences, and those of pretrain_bert.py that begin with data, train.mask_rate, seed"""


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


def command(argv: list[str]) -> None:
    """Prepare the data ``argv`` describes and print the first sequences of the stream with their masks.

    Raises:
        UserError: what is wrong with it.
        SystemExit: after ``--help``.
    """
    count = _count([word.removeprefix("n=") for word in argv if word.startswith("n=")])
    config, store = prepared([word for word in argv if not word.startswith("n=")], _USAGE)
    import torch

    from cramming.build import Parts

    parts = Parts(config, store.tokenizer.vocab_size, torch.device("cpu"))
    batch = parts.stream(store, lambda: config.train.mask_rate).draw(count)
    predicted = [row[weight > 0].numpy() for row, weight in zip(batch.positions, batch.weights, strict=True)]
    rows = store.read(batch.ids.numpy())[0].astype(np.int64)
    for line in show(rows, store.tokenizer, batch.ids.tolist(), batch.inputs.numpy(), predicted):
        print(line)


def _count(values: list[str]) -> int:
    value = values[-1] if values else "4"
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"n={value} must be a whole number from 1")
    return int(value)


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
