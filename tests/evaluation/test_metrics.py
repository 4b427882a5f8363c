"""Metrics against the reference values, and against their definitions written out."""

import json
import math
import os
import string
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cramming.evaluation.metrics import answers, entities, grouped, single

REPOSITORY = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-6  # of golden/metrics.json
NAMES = {"matthews_correlation", "accuracy", "f1", "pearson", "spearmanr"}


@pytest.fixture
def golden(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "golden" / "metrics.json").read_text())
    return found


def equal(found: float | None, wanted: float | None) -> bool:
    return found is wanted if wanted is None or found is None else math.isclose(found, wanted, abs_tol=TOLERANCE)


def test_every_reference_case(golden: dict[str, Any]) -> None:
    checked = 0
    for case, values in golden["results"].items():
        if case in ("superglue/multirc", "superglue/record"):
            continue
        predictions, labels = np.array(values["predictions"]), np.array(values["labels"])
        found = {
            metric: (single.macro_f1 if (case, metric) == ("superglue/cb", "f1") else getattr(single, metric))
            for metric in values["metrics"]
            if metric in NAMES
        }
        for metric, function in found.items():
            assert equal(function(predictions, labels), values["metrics"][metric]), (case, metric)
            checked += 1
    assert checked == 27  # none was passed over


def test_the_reference_multirc(golden: dict[str, Any]) -> None:
    values = golden["results"]["superglue/multirc"]
    questions = [(idx["paragraph"], idx["question"]) for idx in values["idx"]]
    found = grouped.multirc(np.array(values["predictions"]), np.array(values["labels"]), questions)
    assert found == pytest.approx({key: values["metrics"][key] for key in found}, abs=TOLERANCE)
    assert len(found) == 4


def test_the_reference_record(golden: dict[str, Any]) -> None:
    values = golden["results"]["superglue/record"]
    texts = [prediction["prediction_text"] for prediction in values["predictions"]]
    wanted = [reference["answers"] for reference in values["references"]]
    found = answers.record(texts, wanted)
    assert found["record_f1"] == pytest.approx(values["metrics"]["f1"], abs=TOLERANCE)
    assert found["record_exact_match"] == pytest.approx(values["metrics"]["exact_match"], abs=TOLERANCE)
    each = [max(answers.token_f1(text, answer) for answer in of) for text, of in zip(texts, wanted, strict=True)]
    assert each == pytest.approx(values["per_query_f1"])


def test_the_official_glue_and_superglue_means_of_two_metrics(golden: dict[str, Any]) -> None:
    for case, first, second, name in (
        ("glue/mrpc", single.accuracy, single.f1, "f1_and_accuracy_mean"),
        ("glue/qqp", single.accuracy, single.f1, "f1_and_accuracy_mean"),
        ("glue/stsb", single.pearson, single.spearmanr, "mean"),
        ("superglue/cb", single.accuracy, single.macro_f1, "mean"),
    ):
        values = golden["results"][case]
        pair = np.array(values["predictions"]), np.array(values["labels"])
        scores = first(*pair), second(*pair)
        assert sum(score or 0.0 for score in scores) / 2 == pytest.approx(values["metrics"][name], abs=TOLERANCE)


# The definitions, written out.


def f1_of(predicted: set[Any], right: set[Any]) -> float:
    """F1 of two sets."""
    hits = len(predicted & right)
    if not hits:
        return 0.0
    precision, recall = hits / len(predicted), hits / len(right)
    return 2 * precision * recall / (precision + recall)


def of_class(values: list[int], wanted: int) -> set[int]:
    return {place for place, value in enumerate(values) if value == wanted}


def correlation(a: list[float], b: list[float]) -> float:
    """Covariance over the product of standard deviations."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    products = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return products / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def ranks(values: list[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    return [(sum(v < x for v in values) + 1 + sum(v <= x for v in values)) / 2 for x in values]


CLASSES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30)


@given(CLASSES)
def test_single_metrics_are_their_definitions(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = [a for a, _ in pairs], [b for _, b in pairs]
    arrays = np.array(predicted), np.array(labels)
    hits = sum(a == b for a, b in pairs)
    assert single.accuracy(*arrays) == pytest.approx(hits / len(pairs))
    assert single.micro_f1(*arrays) == pytest.approx(hits / len(pairs))  # every error is one FP and one FN
    assert single.f1(*arrays) == pytest.approx(f1_of(of_class(predicted, 1), of_class(labels, 1)))
    there = sorted({*predicted, *labels})
    each = [f1_of(of_class(predicted, c), of_class(labels, c)) for c in there]
    assert single.macro_f1(*arrays) == pytest.approx(sum(each) / len(each))
    # Matthews' is Pearson's correlation of all (example, class) indicators, centred by class.
    x = [[float(a == c) for c in range(3)] for a in predicted]
    y = [[float(b == c) for c in range(3)] for b in labels]
    centred = [np.array(v) - np.mean(v, axis=0) for v in (x, y)]
    below = math.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    wanted = (centred[0] * centred[1]).sum() / below if below > 1e-12 else 0.0
    assert single.matthews_correlation(*arrays) == pytest.approx(wanted, abs=1e-12)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_correlations_are_their_definitions(pairs: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    found = single.pearson(np.array(a), np.array(b)), single.spearmanr(np.array(a), np.array(b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found == (None, None)
    else:
        assert found == pytest.approx((correlation(a, b), correlation(ranks(a), ranks(b))), abs=1e-9)


def test_correlations_that_are_undefined() -> None:
    ramp = np.arange(4.0)
    for spoiled in (np.array([0.0, 1.0, np.nan, 2.0]), np.full(4, 2.5), np.array([0.0, 1.0, np.inf, 2.0])):
        for correlate in (single.pearson, single.spearmanr):
            assert correlate(spoiled, ramp) is None
            assert correlate(ramp, spoiled) is None
    assert single.pearson(ramp[:1], ramp[:1]) is None


ANSWERS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=40)


@given(ANSWERS)
def test_multirc_is_its_definition(rows: list[tuple[int, int, int]]) -> None:
    questions: dict[int, list[tuple[int, int]]] = {}
    for predicted, right, question in rows:
        questions.setdefault(question, []).append((predicted, right))
    exact = [all(a == b for a, b in own) for own in questions.values()]
    binary = [f1_of(of_class([a for a, _ in own], 1), of_class([b for _, b in own], 1)) for own in questions.values()]
    macro = [
        f1_score([b for _, b in own], [a for a, _ in own], average="macro", zero_division=0)
        for own in questions.values()
    ]
    predicted, right = [row[0] for row in rows], [row[1] for row in rows]
    found = grouped.multirc(np.array(predicted), np.array(right), [row[2] for row in rows])
    assert found == pytest.approx({
        "f1_a": f1_of(of_class(predicted, 1), of_class(right, 1)),
        "exact_match": sum(exact) / len(exact),
        "f1_m": sum(macro) / len(macro),
        "f1_m_binary": sum(binary) / len(binary),
    })  # fmt: skip


@given(st.lists(st.integers(0, 1), min_size=2, max_size=20).filter(lambda values: len(values) % 2 == 0), st.randoms())
def test_gender_parity_counts_pairs_that_agree(predicted: list[int], random: Any) -> None:
    rows = [(value, place // 2) for place, value in enumerate(predicted)]
    wanted = sum(a == b for a, b in zip(predicted[::2], predicted[1::2], strict=True)) / (len(predicted) / 2)
    random.shuffle(rows)
    assert grouped.gender_parity(np.array([r[0] for r in rows]), [r[1] for r in rows]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Apple!", "apple"), ("an A.C. Milan", "ac milan"), ("theatre and a", "theatre and"),
        ("São Paulo", "são paulo"),
        ("don't", "dont"), ("", ""), ("\tNew\nYork ", "new york"), ("the-man", "theman"), ("l’a", "l’"),
        (string.punctuation, ""),
    ],
)  # fmt: skip
def test_answers_are_normalized_as_squad_does(text: str, wanted: str) -> None:
    assert answers.normalized(text) == wanted


def test_words_count_as_often_as_they_occur() -> None:
    # Shared: b b of "b b b" and "b b c": precision 2/3, recall 2/3.
    assert answers.token_f1("b b b", "b b c") == pytest.approx(2 / 3)
    assert answers.token_f1("b b b", "b") == pytest.approx(2 * (1 / 3) / (1 / 3 + 1))
    assert answers.record(["b"], [["c", "b d", "b"]]) == {"record_f1": 1.0, "record_exact_match": 1.0}
    assert answers.record(["b"], [["c", "b d"]]) == {"record_f1": pytest.approx(2 / 3), "record_exact_match": 0.0}


def spans_by_brute_force(tags: list[str]) -> set[tuple[int, int, str]]:
    """Every stretch of words that begins, stays and ends as an entity must."""
    found = set()
    for start, end in combinations(range(len(tags) + 1), 2):
        kind = tags[start][2:]
        begins = tags[start][0] == "B" or (
            tags[start][0] == "I" and (start == 0 or tags[start - 1] == "O" or tags[start - 1][2:] != kind)
        )
        inside = all(tag == f"I-{kind}" for tag in tags[start + 1 : end])
        ends = end == len(tags) or tags[end] != f"I-{kind}"
        if begins and inside and ends:
            found.add((start, end, kind))
    return found


TAGS = st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), max_size=12)


@given(st.lists(st.tuples(TAGS, TAGS).map(lambda p: (p[0][: min(map(len, p))], p[1][: min(map(len, p))])), max_size=4))
def test_entities_are_their_definition(texts: list[tuple[list[str], list[str]]]) -> None:
    for tags, _ in texts:
        assert {entity[1:] for entity in entities.entities(tags)} == spans_by_brute_force(tags)
    predicted, right = (
        {(i, *e) for i, pair in enumerate(texts) for e in spans_by_brute_force(pair[k])} for k in (0, 1)
    )
    found = entities.entity_f1([pair[0] for pair in texts], [pair[1] for pair in texts])
    assert found == pytest.approx(f1_of(predicted, right))


def test_multilabel_metrics() -> None:
    predicted = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    assert single.subset_accuracy(predicted, labels) == 0.5
    assert single.micro_f1(predicted, labels) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert single.macro_f1(predicted, labels) == pytest.approx((0.5 + 1.0 + 0.0) / 3)


_CLASSES_PROGRAM = """
import json, socket, sys
def no_network(*a, **k): raise OSError("this test has no network")
socket.socket.connect = no_network
import numpy as np
from cramming.evaluation.metrics import modules, single
p, r = np.array([1, 0, 1, 1, 0]), np.array([1, 1, 0, 1, 0])
for module, function in ((modules.Accuracy, single.accuracy), (modules.F1, single.f1),
                         (modules.MacroF1, single.macro_f1), (modules.MicroF1, single.micro_f1),
                         (modules.MatthewsCorrelation, single.matthews_correlation),
                         (modules.Pearson, single.pearson), (modules.SpearmanR, single.spearmanr)):
    assert module().compute(predictions=p, references=r) == {function.__name__: function(p, r)}, module
assert modules.Pearson().compute(predictions=[1.0, 1.0], references=[1.0, 2.0]) == {"pearson": None}
assert modules.SubsetAccuracy().compute(predictions=[[1, 0], [0, 1]], references=[[1, 1], [0, 1]]) == {
    "subset_accuracy": 0.5}
assert modules.MultilabelMicroF1().compute(predictions=[[1, 0]], references=[[1, 1]])["micro_f1"] == 2 / 3
assert modules.MultilabelMacroF1().compute(predictions=[[1, 0]], references=[[1, 1]])["macro_f1"] == 0.5
found = modules.MultiRC().compute(predictions=[1, 0, 1], references=[1, 0, 0], groups=["a", "a", "b"])
assert found["exact_match"] == 0.5
assert modules.ReCoRD().compute(predictions=["The b"], references=[["c", "b"]])["record_exact_match"] == 1.0
assert modules.GenderParity().compute(predictions=[1, 1, 0, 1], groups=["a", "a", "b", "b"]) == {"gender_parity": 0.5}
assert modules.EntityF1().compute(predictions=[["B-x", "O"]], references=[["B-x", "B-x"]])["entity_f1"] == 2 / 3
metric = modules.Accuracy()
metric.add_batch(predictions=[1, 0], references=[1, 1])
metric.add_batch(predictions=[1], references=[1])
assert metric.compute() == {"accuracy": 2 / 3}
on_disk = modules.Accuracy(keep_in_memory=False, cache_dir=sys.argv[1])
assert on_disk.compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}
"""


def test_the_classes_say_the_same_without_network_and_files(tmp_path: Path) -> None:
    """In a process of its own: the package takes seconds to import, and a home that cannot be written to is a case."""
    environment = {**os.environ, "HOME": str(tmp_path / "none"), "HF_HOME": str(tmp_path / "none"), "PYTHONPATH": "."}
    (tmp_path / "disk").mkdir()
    words = [sys.executable, "-c", _CLASSES_PROGRAM, str(tmp_path / "disk")]
    ended = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not list((tmp_path / "none").rglob("*.arrow"))
