"""What no reading at all gets: the same answer for everything, and lengths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cramming.evaluation.baselines import of, of_splits
from cramming.evaluation.encoded import Cut, Encoded
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Task


def task(kind: Any, metrics: tuple[str, ...], labels: tuple[str, ...] = ("a", "b"), **more: Any) -> Task:
    return Task("t", "T", "own", kind, ("text",), labels, metrics, **more)


def split(
    labels: Any, lengths: Any = None, seconds: Any = 0, *, choices: int = 1, spans: Any = None, keys: Any = None
) -> Encoded:
    """Texts of these numbers of tokens, ``seconds`` of them in the second segment; ``spans``: words of each text."""
    labels = np.asarray(labels)
    texts = len(spans) if spans is not None else len(labels) * choices
    lengths = np.broadcast_to(np.asarray(5 if lengths is None else lengths), texts)
    seconds = np.broadcast_to(np.asarray(seconds), texts)
    types = [np.arange(whole) >= whole - after for whole, after in zip(lengths, seconds, strict=True)]
    words = [] if spans is None else [word for text in spans for word in text]
    counts = [0] * texts if spans is None else [len(text) for text in spans]
    return Encoded(
        tokens=np.zeros(lengths.sum(), np.uint16),
        types=np.concatenate(types).astype(np.uint8),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        span_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        spans=np.array(words, np.int32).reshape(-1, 2),
        labels=labels,
        choices=choices,
        keys=keys or [{"index": i} for i in range(texts // choices)],
        cut=Cut(),
        sha256="",
    )


def test_majority_is_that_of_the_training_rows() -> None:
    asked = task("classification", ("accuracy", "matthews_correlation"), ("a", "b", "c"))
    found = of(asked, split([2, 2, 2, 0, 0, 1]), split([2, 0, 0, 0, 1]))["majority"]
    assert found == {"accuracy": 0.2, "matthews_correlation": 0.0}


def test_mrpcs_known_majority(shared: Path) -> None:
    """F1 81.2 and accuracy 68.4, which papers name, from the official dev set's labels."""
    labels = {}
    for name in ("train", "dev"):
        lines = (shared / "data" / "glue" / "MRPC" / f"{name}.tsv").read_text(encoding="utf-8-sig").splitlines()[1:]
        labels[name] = [int(line.split("\t", 1)[0]) for line in lines]
    found = of(registry.find("mrpc"), split(labels["train"]), split(labels["dev"]))
    assert found["majority"] == {"f1": pytest.approx(0.8122, abs=5e-5), "accuracy": pytest.approx(0.6838, abs=5e-5)}
    assert "positive" not in found  # the majority is positive here


def test_where_the_majority_is_negative_always_yes_is_there_too() -> None:
    found = of(registry.find("qqp"), split([0, 0, 1]), split([0, 0, 1, 1]))
    assert found["majority"] == {"f1": 0.0, "accuracy": 0.5}
    assert found["positive"] == {"f1": pytest.approx(2 / 3), "accuracy": 0.5}


def test_length_finds_what_lengths_tell_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    asked = task("classification", ("accuracy",))

    def rows(n: int, told: bool) -> Encoded:
        labels = np.arange(n) % 2
        lengths = np.where(labels == 1, draw.integers(4, 10, n), draw.integers(10, 20, n))
        return split(labels, lengths if told else draw.permutation(lengths))

    assert of(asked, rows(200, True), rows(100, True))["length"]["accuracy"] == 1.0
    alone = of(asked, rows(200, False), rows(100, False))["length"]["accuracy"]
    assert alone is not None
    assert abs(alone - 0.5) < 0.2


def test_the_segments_are_told_apart() -> None:
    draw = np.random.default_rng(1)
    after = draw.integers(2, 18, 200)
    found = of(
        task("classification", ("accuracy",)), *(split(part > 9, 20, part) for part in (after[:150], after[150:]))
    )
    assert found["length"]["accuracy"] == pytest.approx(1.0, abs=0.03)


def test_values() -> None:
    lengths = np.arange(4, 24)
    asked = task("regression", ("pearson", "spearmanr"), ())
    train, dev = split(lengths * 0.1, lengths), split(np.array([1.0, 2.0, 1.5]), np.array([10, 20, 15]))
    found = of(asked, train, dev)
    assert found["majority"] == {"pearson": None, "spearmanr": None}
    assert found["length"]["pearson"] == pytest.approx(1.0, abs=1e-2)


def test_several_labels() -> None:
    labels = np.array([[1, 0, 1]] * 3 + [[0, 0, 1]] * 2, np.float32)
    lengths = np.array([9, 10, 11, 3, 4])
    asked = task("multilabel", ("subset_accuracy", "micro_f1"), ("a", "b", "c"))
    found = of(asked, split(labels, lengths), split(labels, lengths))
    assert found["majority"]["subset_accuracy"] == 0.6  # 1 0 1 for every row
    assert found["length"]["subset_accuracy"] == 1.0  # and b, which is nowhere, is never said


def test_choices() -> None:
    draw = np.random.default_rng(2)
    lengths = draw.permuted(np.tile([5, 9, 14], (60, 1)), axis=1)
    right = lengths.argmax(axis=1)  # the longest choice is always right
    asked = task("choice", ("accuracy",), ("a", "b", "c"), choices=3)
    train, dev = (split(right[part], lengths[part].reshape(-1), choices=3) for part in (slice(40), slice(40, 60)))
    found = of(asked, train, dev)
    often = np.bincount(right[:40]).argmax()
    assert found["majority"]["accuracy"] == pytest.approx(np.mean(right[40:] == often))
    assert found["length"]["accuracy"] == 1.0


def test_words() -> None:
    spans = [[(1, 2), (2, 5), (5, 6)], [(1, 4), (4, 5)]] * 10
    labels = np.array([0, 1, 0, 1, 0] * 10)
    labels[2] = -100
    asked = task("tokens", ("entity_f1", "accuracy"), ("O", "B-x"))
    found = of(asked, split(labels, 7, spans=spans), split(labels, 7, spans=spans))
    assert found["majority"] == {"entity_f1": 0.0, "accuracy": pytest.approx(29 / 49)}
    assert found["length"] == {"entity_f1": 1.0, "accuracy": 1.0}  # words of three tokens are entities


def test_record_and_multirc() -> None:
    keys = [{"index": 0, "passage": 0, "query": q, "entity": e, "answers": ["x"]} for q in (0, 1) for e in ("x", "y")]
    record = split([1, 0, 1, 0], keys=keys)
    assert of(registry.find("record"), record, record)["majority"]["record_f1"] == 1.0  # the first entity of each
    keys = [{"index": i, "paragraph": 0, "question": i // 2, "answer": i % 2} for i in range(4)]
    multirc = split([0, 0, 0, 1], keys=keys)
    found = of(registry.find("multirc"), multirc, multirc)
    assert found["majority"]["exact_match"] == 0.5
    assert found["positive"]["f1_a"] == pytest.approx(2 / 5)


def test_training_rows_of_one_class_leave_only_that_class() -> None:
    found = of(task("classification", ("accuracy",)), split([1, 1]), split([1, 0]))
    assert found["length"] == found["majority"] == {"accuracy": 0.5}


def test_every_split_has_its_own_under_the_names_of_results() -> None:
    splits = {"validation_matched": split([0, 0, 1]), "validation_mismatched": split([1, 1, 1])}
    found = of_splits(registry.find("mnli"), split([0, 0, 1, 2]), splits)
    assert found["majority"] == {"accuracy": pytest.approx(2 / 3), "accuracy@mismatched": 0.0}
    assert set(found["length"]) == {"accuracy", "accuracy@mismatched"}


def test_the_same_twice() -> None:
    draw = np.random.default_rng(3)
    labels, lengths = draw.integers(0, 3, 90), draw.integers(3, 40, 90)
    asked = task("classification", ("accuracy", "macro_f1"), ("a", "b", "c"))
    assert of(asked, split(labels, lengths), split(labels, lengths)) == of(
        asked, split(labels, lengths), split(labels, lengths)
    )
