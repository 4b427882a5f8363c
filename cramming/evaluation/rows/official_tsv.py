"""GLUE's official files: tab-separated, quotes are characters like any other, each task with columns of its own.

Rows with too few or too many fields, which the official QQP file has, are left out where they would be learned from and
kept where every row needs a prediction; either is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming.data.sources.files import chunks
from cramming.errors import UserError
from cramming.evaluation.rows.classes import class_of
from cramming.evaluation.tasks.task import Task

FILES = {
    "train": "train.tsv",
    "validation": "dev.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test": "test.tsv",
    "test_matched": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
FOLDERS = {"ax": "diagnostic"}  # where it is not called by the task's title
_NO_CONSENSUS = "-"  # MNLI's (and SNLI's) label where the annotators disagreed
_MOST_ODD = 0.1  # of a file's rows; with more it is another file
_COLA = ("source", "label", "original_label", "sentence")  # its train and dev files have no header


@dataclass(frozen=True)
class Columns:
    """What the columns are called in the official files."""

    texts: Mapping[str, str]  # by their Hugging Face names
    label: str | None
    idx: str = "index"


COLUMNS = {
    "cola": Columns({"sentence": "sentence"}, "label"),
    "sst2": Columns({"sentence": "sentence"}, "label"),
    "mrpc": Columns({"sentence1": "#1 String", "sentence2": "#2 String"}, "Quality"),
    "stsb": Columns({"sentence1": "sentence1", "sentence2": "sentence2"}, "score"),
    "qqp": Columns({"question1": "question1", "question2": "question2"}, "is_duplicate", "id"),
    "mnli": Columns({"premise": "sentence1", "hypothesis": "sentence2"}, "gold_label"),
    "qnli": Columns({"question": "question", "sentence": "sentence"}, "label"),
    "rte": Columns({"sentence1": "sentence1", "sentence2": "sentence2"}, "label"),
    "wnli": Columns({"sentence1": "sentence1", "sentence2": "sentence2"}, "label"),
    "ax": Columns({"premise": "sentence1", "hypothesis": "sentence2"}, None),
}


def file_name(task: Task, split: str) -> str:
    """What a split's official file is called."""
    return "diagnostic.tsv" if task.name == "ax" else FILES[split]


def read(task: Task, split: str, path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of an official file, under Hugging Face's column names.

    Args:
        task: of GLUE.
        split: which one it is.
        path: the file.
        notes: gets a line for rows that were left out or are not whole.

    Raises:
        UserError: it is not UTF-8, lacks a column, or has a label that the task does not have.
    """
    lines = "".join(chunk.text for chunk in chunks(path)).split("\n")
    if lines == [""]:
        return []
    header, first = _header(task, split, lines)
    columns = COLUMNS[task.name]
    missing = [name for name in columns.texts.values() if name not in header]
    labelled = columns.label in header
    if not labelled and not split.startswith("test"):
        missing.append(str(columns.label))
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; its columns are: {', '.join(header)[:200]}")
    places = {name: header.index(official) for name, official in columns.texts.items()}
    idx_place = header.index(columns.idx) if columns.idx in header else None
    label_place = header.index(str(columns.label)) if labelled else None
    keep_all = split.startswith("test")
    rows: list[dict[str, Any]] = []
    odd: list[int] = []
    undecided = 0
    for number, line in enumerate(lines[first:], first + 1):
        if not line and number == len(lines):
            break  # behind the last line's end
        fields = line.split("\t")
        if len(fields) != len(header):
            odd.append(number)
            if not keep_all:
                continue
            fields += [""] * (len(header) - len(fields))
        row: dict[str, Any] = {name: fields[place] for name, place in places.items()}
        row["idx"] = _whole(fields[idx_place] if idx_place is not None else "", len(rows))
        label = "" if label_place is None else fields[label_place]
        if label == _NO_CONSENSUS:
            undecided += 1
            continue
        row["label"] = class_of(task, label, f"{path}: line {number}")
        rows.append(row)
    if odd:
        _say_odd(path, odd, len(rows), keep_all, notes)
    if undecided:
        notes.append(f"{path}: {undecided:,} rows were left out, whose label is {_NO_CONSENSUS!r} (no consensus)")
    return rows


def _header(task: Task, split: str, lines: list[str]) -> tuple[list[str], int]:
    """The names of the columns, and how many lines they take."""
    names = [name.strip() for name in lines[0].split("\t")]
    if task.name == "cola" and split != "test" and "sentence" not in names and len(names) == len(_COLA):
        return list(_COLA), 0
    return names, 1


def _whole(text: str, otherwise: int) -> int:
    return int(text) if text.isascii() and text.isdigit() else otherwise


def _say_odd(path: Path, odd: list[int], kept: int, keep_all: bool, notes: list[str]) -> None:
    lines = ", ".join(map(str, odd[:5])) + (", ..." if len(odd) > 5 else "")
    what = f"{len(odd):,} {'row has' if len(odd) == 1 else 'rows have'} too few or too many fields (line {lines})"
    if len(odd) > max(1, _MOST_ODD * (kept + len(odd))):
        raise UserError(f"{path}: {what}: it is no official file, or it is damaged; download it again")
    notes.append(f"{path}: {what}; {'kept as far as there is text' if keep_all else 'left out'}")
