"""Texts that a person asks about, from the command line, a file or standard input, as examples of a task."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.rows import columns, tables
from cramming.evaluation.rows.labels import Labels
from cramming.evaluation.rows.tables import Row, Table
from cramming.evaluation.tasks import forms
from cramming.evaluation.tasks.task import Example, Task

STANDARD_INPUT = "-"
# What a file may call the columns of a task with one or two texts.
GENERAL = ("text", "text_pair")
_FILES = "csv, tsv, jsonl, parquet, or txt with a text a line"


def typed(task: Task, texts: Sequence[str], pair: str | None) -> Table:
    """Texts of the command line.

    Args:
        task: that reads them.
        texts: each a text; of a task that reads pairs, one first text.
        pair: the second text; None: none was given.

    Raises:
        UserError: another number of texts than the task reads, whose fields are named.
    """
    fields = ", ".join(task.fields)
    if len(task.fields) > 2 or task.span_count:
        raise UserError(f"{task.name} reads {fields}: give them as columns of a file, file=...")
    if len(task.fields) == 1 and pair is not None:
        raise UserError(f"text_pair= is for tasks that read two texts; {task.name} reads {fields}")
    if len(task.fields) == 2 and pair is None:
        raise UserError(f"{task.name} reads {fields}: give the second with text_pair=..., or columns of a file=...")
    if len(task.fields) == 2 and len(texts) > 1:
        raise UserError(f"text_pair= goes with one text, not {len(texts)}: for several pairs give a file=...")
    rows = [(text,) if pair is None else (text, pair) for text in texts]
    return _table(task, "the command line", "text", rows)


def read(task: Task, given: str) -> Table:
    """Texts of a file.

    Args:
        task: that reads them.
        given: its path, or ``-``: standard input, JSON objects or texts a line.

    Raises:
        UserError: there is no such file, it is empty, or has not the columns that the task reads.
    """
    if given == STANDARD_INPUT:
        return _of_lines(task, "standard input", _decoded("standard input", sys.stdin.buffer.read()))
    path = Path(given).expanduser()
    if path.suffix == ".txt":
        if not path.is_file():
            raise UserError(f"file={given} does not exist (looked in {path.parent.resolve()})")
        return _of_lines(task, given, _decoded(given, path.read_bytes()))
    if path.is_file() and not path.suffix:
        raise UserError(f"file={given} has no ending that tells its format; it takes {_FILES}")
    outline = tables.read(path, "file", ())
    return _fitting(task, tables.read(path, "file", outline.columns))


def examples(task: Task, table: Table) -> list[Example]:
    """The rows of a table as examples without labels.

    Raises:
        UserError: a row cannot be used.
    """
    if not table.rows:
        raise UserError(f"{table.name} has no texts")
    if task.collection == "own":
        reader = Labels(task.kind, "", task.labels)
        return [columns.example(table, i, task.fields, reader, labelled=False) for i in range(len(table.rows))]
    made = forms.to_examples(task, [{**row.values, **_alone(number)} for number, row in enumerate(table.rows)])
    empty = set(range(len(table.rows))) - {example.key["index"] for example in made}
    if empty:
        raise UserError(f"{table.at(table.rows[min(empty)])} offers nothing to choose from: repair or remove the row")
    return made


def _alone(number: int) -> dict[str, Any]:
    """What rows have beside their texts: nobody says what is right, and each is a question of its own."""
    parts = ("paragraph", "question", "answer", "passage", "query")
    return {"idx": dict.fromkeys(parts, number), "answers": [], "label": None}


def _of_lines(task: Task, name: str, text: str) -> Table:
    """A text a line, two with a tab between them, or JSON objects; empty lines are none."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if lines and lines[0][1].lstrip().startswith("{"):
        return _of_objects(task, name, lines)
    rows = []
    for number, line in lines:
        parts = line.split("\t") if len(task.fields) > 1 else [line]
        if len(parts) != len(task.fields):
            raise UserError(
                f"{name}: line {number} has {len(parts)} texts with tabs between them, and {task.name} reads "
                f"{len(task.fields)}: {', '.join(task.fields)}"
            )
        rows.append(tuple(parts))
    return _table(task, name, "line", rows, [number for number, _ in lines])


def _of_objects(task: Task, name: str, lines: Sequence[tuple[int, str]]) -> Table:
    rows: list[Row] = []
    known: dict[str, None] = {}
    for number, line in lines:
        try:
            said = json.loads(line)
        except ValueError as error:
            raise UserError(f"{name}: line {number} is not JSON ({error}); each line is one object") from error
        if not isinstance(said, dict):
            raise UserError(f"{name}: line {number} is no JSON object with the task's fields as keys")
        known.update(dict.fromkeys(said))
        rows.append(Row(number, said))
    return _fitting(task, Table(name, "line", tuple(known), tuple(rows)))


def _fitting(task: Task, table: Table) -> Table:
    """The table with the task's fields as columns, which a file of one or two texts may call ``text``, ``text_pair``.

    Raises:
        UserError: it lacks one.
    """
    missing = [name for name in task.fields if name not in table.columns]
    if not missing:
        return table
    general = GENERAL[: len(task.fields)]
    if len(task.fields) <= len(GENERAL) and not task.span_count and set(general) <= set(table.columns):
        named = dict(zip(general, task.fields, strict=True))
        rows = tuple(Row(row.number, _renamed(row.values, named)) for row in table.rows)
        return replace(table, columns=tuple(named.get(name, name) for name in table.columns), rows=rows)
    raise UserError(
        f"{table.name} lacks {', '.join(missing)}: {task.name} reads the columns {', '.join(task.fields)}, "
        f"and there are: {', '.join(table.columns[:30]) or 'none'}"
    )


def _renamed(values: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    return {named.get(name, name): value for name, value in values.items()}


def _table(
    task: Task, name: str, unit: str, rows: Sequence[tuple[str, ...]], numbers: Sequence[int] | None = None
) -> Table:
    numbered = zip(numbers or range(1, len(rows) + 1), rows, strict=True)
    made = (Row(number, dict(zip(task.fields, row, strict=True))) for number, row in numbered)
    return Table(name, unit, task.fields, tuple(made))


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 (byte {error.start}): convert it, iconv -t utf-8") from error
