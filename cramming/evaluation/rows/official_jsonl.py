"""SuperGLUE's official files: one object a line, some with objects inside, made flat as in the Hugging Face dataset.

Files of the multiple choice tasks are read too, under the Hugging Face column names.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cramming.data.sources.formats import records
from cramming.errors import UserError
from cramming.evaluation.rows.classes import class_of
from cramming.evaluation.tasks.task import Task

FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
Record = dict[str, Any]


def file_name(task: Task, split: str) -> str:
    """What a split's official file is called."""
    return f"{task.title}.jsonl" if task.name in ("axb", "axg") else FILES[split]


def read(task: Task, path: Path) -> list[Record]:
    """The rows of an official file, under Hugging Face's column names: an answer of MultiRC, a query of ReCoRD.

    Raises:
        UserError: it is not UTF-8 or not JSON, lacks a key, or has a label that the task does not have.
    """
    flatten = _FLATTENERS.get(task.name, _flat)
    rows: list[Record] = []
    for number, (line, _) in enumerate(records(path, keep_ends=False), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON ({error}): it is damaged; download it again") from error
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object; each row is one")
        try:
            for row in flatten(record):
                row["label"] = class_of(task, row.get("label"), where)
                row.setdefault("idx", len(rows))
                rows.append(row)
        except (KeyError, TypeError) as error:
            what = f"has no {error.args[0]!r}" if isinstance(error, KeyError) else f"has another form ({error})"
            raise UserError(f"{where} {what}; it has: {', '.join(record)}; is it a file of {task.title}?") from error
    return rows


def _flat(record: Record) -> Iterator[Record]:
    if isinstance(record.get("idx"), str) and record["idx"].isdigit():  # AX-b's are written as words
        record["idx"] = int(record["idx"])
    yield record


def _wsc(record: Record) -> Iterator[Record]:
    target = record.pop("target")
    names = ("span1_index", "span1_text", "span2_index", "span2_text")
    yield record | {name: target[name] for name in names}


def _multirc(record: Record) -> Iterator[Record]:
    passage, paragraph = record["passage"], record["idx"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": paragraph, "question": question["idx"], "answer": answer["idx"]},
                "label": answer.get("label"),
            }


def _record(record: Record) -> Iterator[Record]:
    text = record["passage"]["text"]
    places = [(place["start"], place["end"]) for place in record["passage"]["entities"]]
    for query in record["qas"]:
        yield {
            "passage": text,
            "query": query["query"],
            "entities": [text[start : end + 1] for start, end in places],  # their ends are inclusive
            "answers": [answer["text"] for answer in query.get("answers", ())],
            "idx": {"passage": record["idx"], "query": query["idx"]},
        }


_FLATTENERS: dict[str, Callable[[Record], Iterator[Record]]] = {"multirc": _multirc, "record": _record, "wsc": _wsc}
