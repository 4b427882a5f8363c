"""Files of one's own tasks, written and read back; for tests."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cramming.errors import UserError
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.rows import own
from cramming.evaluation.tasks.task import Example, Task

Rows = Sequence[dict[str, Any]]
TOPICS: Rows = [
    {"text": 'She said "no", twice.', "topic": "talk", "n": 1},
    {"text": "one line\nand another", "topic": "form", "n": 2},
    {"text": "commas, semicolons; tabs\tand | bars", "topic": "form", "n": 3},
    {"text": "Grüße aus Köln \u2603", "topic": "talk", "n": 4},
    {"text": "", "topic": "none", "n": 5},
]
WORDS: Rows = [
    {"words": ["Ada", "Lovelace", "wrote"], "tags": ["B-PER", "I-PER", "O"]},
    {"words": ["in", "London"], "tags": ["O", "B-LOC"]},
]


def write(path: Path, rows: Rows, **options: Any) -> Path:
    """Rows in the format that the name tells; lists are JSON in csv files."""
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return path
    if name.endswith(".json"):
        content = json.dumps(list(rows))
    elif name.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = io.StringIO()
        writer = csv.writer(text, **{"delimiter": "\t" if name.endswith(".tsv") else ",", **options})
        writer.writerow(rows[0])
        writer.writerows([json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in rows)
        content = text.getvalue()
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        file.write(content)
    return path


def config(**options: Any) -> EvalConfig:
    return EvalConfig(**{"name": "task", "suite": "task", **{k: _plain(v) for k, v in options.items()}})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def loaded(split: str = "train", **options: Any) -> tuple[Task, list[Example], list[str]]:
    """The task, a split of it, and what was noted."""
    asked, notes = config(**options), list[str]()
    task = own.own_task(asked, Path("unused"))
    return task, own.examples_of(asked, task, split, Path("unused"), notes), notes


def refused(*words: str, split: str = "train", **options: Any) -> str:
    """The one line that is said."""
    with pytest.raises(UserError) as error:
        loaded(split, **options)
    said = str(error.value)
    assert "\n" not in said
    for word in words:
        assert word in said, said
    return said


def both(path: Path, **options: Any) -> dict[str, Any]:
    """A file for training and for validation."""
    return {"train_file": path, "validation_file": path, **options}


def labelled(path: Path, labels: Sequence[Any], texts: Sequence[Any] | None = None) -> Path:
    """A file of these labels."""
    texts = [f"text {n} of them" for n in range(len(labels))] if texts is None else texts
    return write(path, [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)])
