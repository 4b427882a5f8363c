"""What kind of task a training file holds, by its label column (``eval.kind=auto``); and files that look wrong."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.rows.labels import each_word, listed, missing, named, number
from cramming.evaluation.rows.tables import Table
from cramming.evaluation.tasks.task import Kind

_MOST_CLASSES = 20  # of whole numbers; more values than that are amounts
_FEWEST_ROWS = 10  # from which a column can be told by its values
_SCHEME = ("B", "I", "E", "S", "L", "U")  # what begins the labels of words in an entity; O is outside of all
_LONG, _WORDS = 20, 3  # characters and words, on average, from which values are texts rather than labels


def decide(table: Table, text_column: str, label_column: str, named_classes: bool = False) -> tuple[Kind, str]:
    """The kind of task, and why in words.

    Args:
        table: the training rows.
        text_column, label_column: of what is read, and of what is asked.
        named_classes: the user says what the classes are called, so there are some.

    Raises:
        UserError: the column holds no labels.
    """
    pairs = [(row.values.get(text_column), row.values.get(label_column)) for row in table.rows]
    pairs = [(text, label) for text, label in pairs if not missing(label)]
    labels = [label for _, label in pairs]
    if not labels:
        raise UserError(f"{table.name}: every label in column {label_column!r} is missing; nothing can be learned")
    if label_column in table.names and not any(isinstance(label, list) for label in labels):
        return "classification", f"column {label_column!r} has names for its numbers"
    if any(listed(label) is not None for label in labels):
        if all(_one_each(text, label) for text, label in pairs):
            return "tokens", f"column {label_column!r} has a label for each word of {text_column!r}"
        return "multilabel", f"column {label_column!r} holds lists"
    if any(isinstance(label, bool) for label in labels):
        return "classification", f"column {label_column!r} holds true and false"
    if not named_classes and all(number(label) is not None for label in labels):
        return _of_numbers(label_column, labels)
    if any("|" in str(label) for label in labels):
        return "multilabel", f"column {label_column!r} holds names with | between them"
    if all(_one_each(text, label) for text, label in pairs) and any(len(str(label).split()) > 1 for label in labels):
        return "tokens", f"column {label_column!r} has a label for each word of {text_column!r}"
    distinct = len({named(label) for label in labels})
    if not named_classes and len(labels) >= _FEWEST_ROWS and 2 * distinct > len(labels):
        raise UserError(
            f"{table.name}: column {label_column!r} has {distinct} different values in {len(labels)} rows, which "
            "are no classes; choose another with eval.label_column=<name> (there are: "
            f"{', '.join(table.columns[:30])}), or say eval.kind=classification"
        )
    return "classification", f"column {label_column!r} holds {distinct} names"


def _of_numbers(column: str, labels: Sequence[Any]) -> tuple[Kind, str]:
    values = {number(label) for label in labels}
    whole = all(value is not None and value.is_integer() for value in values)
    if whole and len(values) <= _MOST_CLASSES:
        return "classification", f"column {column!r} holds {len(values)} whole numbers"
    what = f"{len(values)} different whole numbers" if whole else "numbers with fractions"
    return "regression", f"column {column!r} holds {what}"


def _one_each(text: Any, label: Any) -> bool:
    return not missing(text) and len(each_word(text)) == len(each_word(label))


def check_not_swapped(table: Table, text_column: str, label_column: str) -> None:
    """Refuse labels that read like texts, each another, where the texts read like labels.

    Raises:
        UserError: they do.
    """
    texts = [value for row in table.rows if isinstance(value := row.values.get(text_column), str)]
    labels = [value for row in table.rows if isinstance(value := row.values.get(label_column), str)]
    if len(labels) < 2 or not len(texts) == len(labels) == len(table.rows):
        return
    like_texts = (
        2 * len(set(labels)) > len(labels)
        and fmean(len(label) for label in labels) >= _LONG
        and fmean(len(label.split()) for label in labels) >= _WORDS
    )
    few = 2 * len(set(texts)) <= len(texts) or all(number(text) is not None for text in texts)
    if like_texts and few and fmean(len(text) for text in texts) < fmean(len(label) for label in labels):
        raise UserError(
            f"{table.name}: eval.text_column={text_column} and eval.label_column={label_column} look swapped "
            f"(the labels are {len(set(labels))} different texts, the texts {len(set(texts))} different names)"
        )


def marks_entities(labels: Sequence[str]) -> bool:
    """Whether labels of words are of a scheme like BIO: ``O``, ``B-PER``, ``I-PER``."""
    inside = [label for label in labels if label != "O"]
    parts = [label.split("-", 1) for label in inside]
    return any(part[0] in ("B", "I") for part in parts) and all(
        len(part) == 2 and part[0] in _SCHEME and bool(part[1]) for part in parts
    )
