"""From logits to predictions to metrics, for every kind of task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from cramming.evaluation.encoded import Cut, Encoded
from cramming.evaluation.scoring import METRICS, chosen, predictions, score
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Task


def task(kind: Any, metrics: Sequence[str], labels: Sequence[str] = ("a", "b"), **more: Any) -> Task:
    return Task("t", "T", "own", kind, ("text",), tuple(labels), tuple(metrics), **more)


def encoded(
    labels: Any, *, texts: int | None = None, choices: int = 1, spans: Sequence[int] | None = None,
    keys: Sequence[Mapping[str, Any]] | None = None,
) -> Encoded:  # fmt: skip
    """A split of texts of three tokens; ``spans`` of each."""
    labels = None if labels is None else np.asarray(labels)
    n = texts if texts is not None else (0 if labels is None else len(labels)) * choices
    counts = [0] * n if spans is None else list(spans)
    return Encoded(
        tokens=np.zeros(3 * n, np.uint16),
        types=np.zeros(3 * n, np.uint8),
        starts=np.arange(n + 1, dtype=np.int64) * 3,
        span_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        spans=np.ones((sum(counts), 2), np.int32),
        labels=labels,
        choices=choices,
        keys=keys or [{"index": i} for i in range(n // choices)],
        cut=Cut(),
        sha256="",
    )


def logits(*rows: Sequence[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_classes_are_the_largest_logits() -> None:
    rows, split = logits([0.1, 0.2], [3, -1], [5, 5], [-2, -1]), encoded([1, 1, 0, 1])
    asked = task("classification", ("accuracy", "f1", "matthews_correlation"))
    assert predictions(asked, rows, split).tolist() == [1, 0, 0, 1]
    found = score(asked, rows, split)
    assert list(found) == ["accuracy", "f1", "matthews_correlation"]
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))


def test_values_are_taken_as_they_are() -> None:
    asked, split = task("regression", ("pearson", "spearmanr"), ()), encoded(np.array([0.0, 1.0, 5.0], np.float32))
    for rows in (logits([-1], [0], [7]), np.array([-1, 0, 7], np.float32)):
        assert predictions(asked, rows, split).tolist() == [-1.0, 0.0, 7.0]
        assert score(asked, rows, split)["spearmanr"] == pytest.approx(1.0)
    assert score(asked, logits([2], [2], [2]), split) == {"pearson": None, "spearmanr": None}


def test_labels_are_those_above_zero() -> None:
    asked = task("multilabel", ("micro_f1", "macro_f1", "subset_accuracy"))
    rows, split = logits([1, -1], [0, 2], [-3, -1]), encoded(np.array([[1, 0], [1, 1], [0, 0]], np.float32))
    assert predictions(asked, rows, split).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert score(asked, rows, split) == {"micro_f1": pytest.approx(0.8), "macro_f1": pytest.approx((2 / 3 + 1) / 2),
                                         "subset_accuracy": pytest.approx(2 / 3)}  # fmt: skip


def test_a_choice_is_the_text_with_the_largest_logit() -> None:
    asked, split = task("choice", ("accuracy",), choices=2), encoded([0, 1, 1], choices=2)
    rows = logits([1, 0], [-5, -4], [3, 2])
    assert predictions(asked, rows, split).tolist() == [0, 1, 0]
    assert score(asked, rows, split) == {"accuracy": pytest.approx(2 / 3)}


def test_words_are_judged_one_by_one_and_as_entities_of_their_text() -> None:
    names = ("O", "B-x", "I-x")
    asked = task("tokens", ("entity_f1", "accuracy"), names)
    # Two texts of three and two words; the second word of the first is not to be judged.
    split = encoded(np.array([1, -100, 2, 1, 0]), texts=2, spans=[3, 2])
    right = np.eye(3, dtype=np.float32)[[1, 0, 2, 1, 0]]
    assert predictions(asked, right, split).tolist() == [1, 0, 2, 1, 0]
    assert score(asked, right, split) == {"entity_f1": 1.0, "accuracy": 1.0}  # what is not judged is not there
    # An I- at a text's beginning does not go on with the entity that ended the text before.
    split = encoded(np.array([0, 1, 1, 0]), texts=2, spans=[2, 2])
    across = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    assert score(asked, across, split) == {"entity_f1": 1.0, "accuracy": 0.75}


def test_multirc_is_judged_by_question() -> None:
    multirc = registry.find("multirc")
    keys = [{"index": i, "idx": 0, "paragraph": p, "question": q, "answer": a}
            for i, (p, q, a) in enumerate([(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1)])]  # fmt: skip
    split = encoded([1, 0, 0, 1, 1], keys=keys)
    found = score(multirc, np.eye(2, dtype=np.float32)[[1, 0, 1, 1, 0]], split)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["f1_a"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_record_takes_the_most_likely_entity_of_each_query() -> None:
    record = registry.find("record")
    said = [(0, "Paris", ["the Paris", "Rome"]), (0, "Rome", ["the Paris", "Rome"]), (1, "New York", ["New York City"]),
            (0, "Oslo", ["the Paris", "Rome"]), (1, "Bonn", ["New York City"])]  # fmt: skip
    keys = [{"index": 0, "passage": 7, "query": q, "entity": e, "answers": a} for q, e, a in said]
    split = encoded([0, 1, 0, 0, 0], keys=keys)
    # Differences 1, 1, -2, 0, -3: all are unlikely in the second query, and the first of equals is taken in the first.
    rows = logits([0, 1], [4, 5], [3, 1], [0, 0], [3, 0])
    assert chosen(record, rows, split) == [0, 2]
    found = score(record, rows, split)
    assert found == {"record_f1": pytest.approx((1 + 2 * 1 * (2 / 3) / (1 + 2 / 3)) / 2), "record_exact_match": 0.5}
    alone = (rows[:, 1:] - rows[:, :1]).astype(np.float32)
    assert chosen(record, alone, split) == [0, 2]


def test_pairs_of_axg() -> None:
    axg = registry.find("axg")
    split = encoded([0, 0, 1, 1], keys=[{"index": i, "pair": i // 2} for i in range(4)])
    found = score(axg, np.eye(2, dtype=np.float32)[[0, 0, 1, 0]], split)
    assert found == {"accuracy": 0.75, "gender_parity": 0.5}


def test_unlabelled_rows_have_predictions_and_no_scores() -> None:
    split = encoded(None, texts=2)
    asked = task("classification", ("accuracy",))
    assert predictions(asked, logits([1, 0], [0, 1]), split).tolist() == [0, 1]
    assert score(asked, logits([1, 0], [0, 1]), split) == {}


def test_logits_of_another_split_are_not_scored() -> None:
    with pytest.raises(AssertionError, match="another split"):
        predictions(task("classification", ("accuracy",)), logits([1, 0]), encoded([1, 0]))


def test_every_metric_of_every_task_is_known() -> None:
    for name, known in registry.TASKS.items():
        assert set(known.metrics) <= set(METRICS), name
