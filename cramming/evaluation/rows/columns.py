"""From the rows of a table to examples: texts of their columns, words of a text, and a tenth that is held out."""

from collections.abc import Sequence
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.rows.labels import Labels, each_word, missing
from cramming.evaluation.rows.tables import Row, Table
from cramming.evaluation.tasks.task import Example, Span, Text
from cramming.hashing import key

_HELD_OUT = 10  # one in so many


def texts(table: Table, row: Row, columns: Sequence[str]) -> Text:
    """The segments of a row; a null is an empty text.

    Raises:
        UserError: a column holds something else.
    """
    return Text(tuple(_text(table, row, column) for column in columns))


def _text(table: Table, row: Row, column: str) -> str:
    value = _value(table, row, column)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    hint = "eval.kind=tokens reads words" if isinstance(value, list) else "choose another with eval.text_column=<name>"
    raise UserError(f"{table.at(row)}: column {column!r} holds {type(value).__name__}, not text; {hint}")


def _value(table: Table, row: Row, column: str) -> Any:
    if column not in row.values:
        raise UserError(f"{table.at(row)} has no {column!r}, which other rows have; repair the row")
    return row.values[column]


def words(table: Table, row: Row, column: str) -> Text:
    """The words of a row joined with blanks, and where each is.

    Raises:
        UserError: there are none, or one is no text.
    """
    value = _value(table, row, column)
    found = [] if missing(value) else each_word(value)
    if not found:
        raise UserError(f"{table.at(row)} has no words in column {column!r}; remove the row")
    spans, at = [], 0
    for place, word in enumerate(found, 1):
        if not isinstance(word, str) or not word.strip():
            raise UserError(f"{table.at(row)}: word {place} of column {column!r} is {word!r}; each must be text")
        spans.append(Span(0, at, at + len(word)))
        at += len(word) + 1
    return Text((" ".join(found),), tuple(spans))


def example(table: Table, index: int, fields: Sequence[str], labels: Labels, labelled: bool = True) -> Example:
    """A row as an example.

    Args:
        table: with the row.
        index: of the row in the table, from 0; the example's ``index``.
        fields: columns that are read.
        labels: read the label.
        labelled: false: as if nobody said.

    Raises:
        UserError: the row cannot be used.
    """
    row = table.rows[index]
    text = words(table, row, fields[0]) if labels.kind == "tokens" else texts(table, row, fields)
    label = labels.of(table, row, len(text.spans)) if labelled else None
    return Example((text,), label, {"index": index})


def held_out(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """The rest, and a tenth chosen by a hash of the text, so that equal texts stay on one side.

    The same rows are chosen at every repetition, on every machine, wherever in the file they are.
    """
    hashes = [key("held out", *example.texts[0].segments) for example in examples]
    wanted = max(1, round(len(examples) / _HELD_OUT))
    limit = sorted(hashes)[wanted - 1] if hashes else 0
    kept = [example for example, hashed in zip(examples, hashes, strict=True) if hashed > limit]
    chosen = [example for example, hashed in zip(examples, hashes, strict=True) if hashed <= limit]
    return kept, chosen
