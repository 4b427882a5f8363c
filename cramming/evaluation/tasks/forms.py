"""From rows to examples: every field of every task reaches a text, and every word a task asks about is a span.

A row is a dict under the column names of the Hugging Face datasets, with ``label`` (-1, None or absent: unlabelled) and
``idx`` as its makers number it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.tasks.task import Example, Label, Span, Task, Text

Row = Mapping[str, Any]
COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
PLACEHOLDER = "@placeholder"
_HIGHLIGHT = re.compile(r"\s*@highlight\s*")
_ENDS = (".", "!", "?", '"', "'", "\u201d", "\u2019", ":", ";")


def formed(task: Task, choices: str) -> Task:
    """The task as it is asked with ``choices``: ``joint`` makes a multiple choice one text and a class of it."""
    return replace(task, kind="classification", choices=1) if task.kind == "choice" and choices == "joint" else task


def to_examples(task: Task, rows: Sequence[Row], choices: str = "each") -> list[Example]:
    """Examples of all rows, in their order; ReCoRD has one for each entity of a row.

    Args:
        task: of the registry, or what ``formed`` made of it.
        rows: under the column names of the Hugging Face datasets.
        choices: ``each``: a text for every choice; ``joint``: all in one text, which is classified.

    Raises:
        UserError: a row lacks a column, a label is outside the map, or a place in a text does not exist.
    """
    if task.kind == "choice" and choices == "joint":
        task = formed(task, choices)
    builder = _BUILDERS.get(task.name, _plain)
    examples: list[Example] = []
    for number, row in enumerate(rows):
        try:
            examples.extend(builder(task, row, number))
        except KeyError as error:
            raise UserError(
                f"{task.title}: row {number} has no column {error.args[0]!r}; it has: {', '.join(map(str, row))}"
            ) from error
    return examples


def label_of(task: Task, row: Row, number: int) -> Label | None:
    """The label of a row; None where nobody says.

    Raises:
        UserError: it is no number, or a class that the task does not have.
    """
    label = row.get("label")
    if label is None:
        return None
    if task.kind == "regression":
        if isinstance(label, bool) or not isinstance(label, int | float) or math.isnan(label):
            raise UserError(f"{task.title}: row {number}: the label {label!r} is no number")
        return None if label < 0 else float(label)
    if isinstance(label, bool) or not isinstance(label, int) or label >= len(task.labels):
        known = ", ".join(f"{place} {name}" for place, name in enumerate(task.labels))
        raise UserError(f"{task.title}: row {number}: the label {label!r} is none of: {known}")
    return None if label < 0 else label


def _key(row: Row, number: int, **more: Any) -> dict[str, Any]:
    return {"index": number, "idx": row.get("idx", number), **more}


def _plain(task: Task, row: Row, number: int) -> Iterator[Example]:
    """One segment for each field."""
    text = Text(tuple(str(row[field]) for field in task.fields))
    yield Example((text,), label_of(task, row, number), _key(row, number))


def _copa(task: Task, row: Row, number: int) -> Iterator[Example]:
    asked = str(row["question"])
    question = COPA_QUESTIONS.get(asked, asked)
    yield _choice(task, row, number, (row["premise"], question), (row["choice1"], row["choice2"]))


def _swag(task: Task, row: Row, number: int) -> Iterator[Example]:
    yield _choice(task, row, number, (row["startphrase"],), [row[field] for field in task.fields[1:]])


def _race(task: Task, row: Row, number: int) -> Iterator[Example]:
    if row.get("label") is None and row.get("answer") in task.labels:
        row = {**row, "label": task.labels.index(row["answer"])}
    if len(row["options"]) != len(task.labels):
        raise UserError(f"{task.title}: row {number} has {len(row['options'])} options, not {len(task.labels)}")
    yield _choice(task, row, number, (row["article"], row["question"]), row["options"])


def _choice(task: Task, row: Row, number: int, told: Sequence[str], offered: Sequence[str]) -> Example:
    """A text of what is told and one choice, for each; or what is told and all of them in one text."""
    together = [tuple(map(str, (*told, *offered)))]
    texts = [(*map(str, told), str(choice)) for choice in offered] if task.kind == "choice" else together
    return Example(tuple(Text(segments) for segments in texts), label_of(task, row, number), _key(row, number))


def _wic(task: Task, row: Row, number: int) -> Iterator[Example]:
    """The word, and where it is used in each sentence, by the characters its makers marked."""
    spans = []
    for segment, which in ((1, "1"), (2, "2")):
        sentence, start, end = str(row[f"sentence{which}"]), int(row[f"start{which}"]), int(row[f"end{which}"])
        if not 0 <= start < end <= len(sentence):
            raise UserError(
                f"{task.title}: row {number}: characters {start} to {end} are outside of sentence{which} ({sentence!r})"
            )
        spans.append(Span(segment, start, end))
    text = Text((str(row["word"]), str(row["sentence1"]), str(row["sentence2"])), tuple(spans))
    yield Example((text,), label_of(task, row, number), _key(row, number))


def _wsc(task: Task, row: Row, number: int) -> Iterator[Example]:
    """The text with its two spans, and each span's words again, as its makers wrote them."""
    text = str(row["text"])
    spans = []
    for which in ("1", "2"):
        words, place = str(row[f"span{which}_text"]), int(row[f"span{which}_index"])
        found = locate(text, words, place)
        if found is None:
            raise UserError(f"{task.title}: row {number}: its text has no word {place} ({text!r})")
        spans.append(Span(0, *found))
    segments = (text, str(row["span1_text"]), str(row["span2_text"]))
    yield Example((Text(segments, tuple(spans)),), label_of(task, row, number), _key(row, number))


def locate(text: str, words: str, place: int) -> tuple[int, int] | None:
    """The characters of ``words``, which begin at word ``place`` of ``text`` (split at white space).

    WSC's places are sometimes off by some words; then it is the occurrence nearest to the place, whole words before
    parts of others. Upper and lower case count as the same. Words that are nowhere in the text are spelled otherwise
    there: then as many words as they are count, from the place on.

    Returns:
        First character and one past the last; None: the text has no such place.
    """
    found_words = [match.span() for match in re.finditer(r"\S+", text)]
    if not 0 <= place < len(found_words) or not words.split():
        return None
    expected = found_words[place][0]
    inner = r"\s+".join(re.escape(word) for word in words.split())
    for pattern in (rf"(?<!\w){inner}(?!\w)", inner):
        found = [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]
        if found:
            return min(found, key=lambda span: (abs(span[0] - expected), span))
    last = min(place + len(words.split()), len(found_words)) - 1
    return expected, found_words[last][1]


def _multirc(task: Task, row: Row, number: int) -> Iterator[Example]:
    idx = row["idx"]
    text = Text(tuple(str(row[field]) for field in task.fields))
    yield Example((text,), label_of(task, row, number), _key(row, number, **idx))


def _record(task: Task, row: Row, number: int) -> Iterator[Example]:
    """Each entity in the query's gap: is it the answer?"""
    idx, answers = row["idx"], [str(answer) for answer in row["answers"]]
    query = str(row["query"])
    if PLACEHOLDER not in query:
        raise UserError(f"{task.title}: row {number}: its query has no {PLACEHOLDER} ({query!r})")
    passage = sentences(str(row["passage"]))
    for entity in dict.fromkeys(str(entity) for entity in row["entities"]):
        label = int(entity in answers) if answers else None
        key = _key(row, number, **idx, entity=entity, answers=answers)
        yield Example((Text((passage, query.replace(PLACEHOLDER, entity))),), label, key)


def sentences(passage: str) -> str:
    """ReCoRD's passage with its bullet points as sentences: each ``@highlight`` ends the one before it."""
    parts = [part.strip() for part in _HIGHLIGHT.split(passage)]
    return " ".join(part if part.endswith(_ENDS) else f"{part}." for part in parts if part)


def _axg(task: Task, row: Row, number: int) -> Iterator[Example]:
    """Two rows that follow one another differ in one pronoun alone; they are judged together."""
    text = Text(tuple(str(row[field]) for field in task.fields))
    key = _key(row, number, pair=number // 2, pair_id=row.get("pair_id"))
    yield Example((text,), label_of(task, row, number), key)


_BUILDERS: dict[str, Callable[[Task, Row, int], Iterator[Example]]] = {
    "axg": _axg,
    "copa": _copa,
    "multirc": _multirc,
    "race": _race,
    "record": _record,
    "swag": _swag,
    "wic": _wic,
    "wsc": _wsc,
}
