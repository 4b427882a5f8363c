"""The task that is made of what is installed."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from cramming.errors import UserError
from cramming.pipeline import module_task


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_labels_are_balanced_and_the_parts_share_no_sentence(tmp_path: Path) -> None:
    train, validation = map(rows, module_task.write(tmp_path, 40))
    counts = Counter(row["module"] for row in train)
    assert len(counts) == module_task.MODULES
    assert set(counts.values()) == {40}
    assert Counter(row["module"] for row in validation) == dict.fromkeys(counts, 10)
    texts = [row["text"].lower() for row in train + validation]
    assert len(texts) == len(set(texts))
    assert not any(module in text for module in counts for text in texts)


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    first = [file.read_bytes() for file in module_task.write(tmp_path / "a", 20)]
    assert first == [file.read_bytes() for file in module_task.write(tmp_path / "b", 20)]


def test_more_sentences_than_there_are_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few sentences"):
        module_task.write(tmp_path, 10_000_000)
