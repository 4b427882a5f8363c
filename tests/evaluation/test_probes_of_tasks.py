"""Linear and kNN probes: rules that are known are found, by definition, and chance is chance."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import probed
import pytest
import small_tasks
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from cramming.errors import UserError
from cramming.evaluation import encoding
from cramming.evaluation.probes import features, knn, linear, of_task
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.features import Table
from cramming.evaluation.probes.sampling import sampled
from cramming.evaluation.tasks.task import Example, Kind, Task
from cramming.progress import Silent

WORDS = small_tasks.letters()
KINDS: list[Kind] = ["classification", "regression", "multilabel", "tokens", "choice"]


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()


# ---- features that are there ----


def test_standardised_features_have_the_fitted_rows_mean_and_spread() -> None:
    fitted, asked = 3 + 2 * drawn(50, 4), 3 + 2 * drawn(20, 4, seed=1)
    fitted[:, 3] = asked[:, 3] = 7.0
    asked[0, 3] = 8.0
    left, right = linear.standardised(fitted, asked)
    np.testing.assert_allclose(left.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(left.std(0), [1, 1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(right[:, :3], (asked[:, :3] - fitted[:, :3].mean(0)) / fitted[:, :3].std(0))
    assert (right[:, 3] == 0).all(), "what never varied says nothing"


def test_logistic_regression_is_the_minimum_it_says_it_is() -> None:
    fitted, labels, l2 = drawn(40, 3), np.arange(40) % 3, 0.05

    def objective(flat: np.ndarray) -> float:
        weights, biases = flat[:9].reshape(3, 3), flat[9:]
        odds = fitted @ weights.T + biases
        right = odds[np.arange(40), labels] - np.log(np.exp(odds).sum(1))
        return float(-right.mean() + l2 / 2 * (weights**2).sum())

    best = minimize(objective, np.zeros(12), method="BFGS", options={"gtol": 1e-7}).x
    odds = linear.classes(fitted, labels, fitted, 3, l2)
    expected = fitted @ best[:9].reshape(3, 3).T + best[9:]
    np.testing.assert_allclose(
        odds - odds.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=2e-3
    )


def test_ridge_regression_is_the_minimum_it_says_it_is() -> None:
    fitted, l2 = drawn(40, 3), 0.3
    labels = fitted @ [1.0, -2.0, 0.5] + 4 + drawn(40, seed=1)
    centred = fitted - fitted.mean(0)
    weights = np.linalg.solve(centred.T @ centred / 40 + l2 * np.eye(3), centred.T @ (labels - labels.mean()) / 40)
    expected = labels.mean() + (fitted - fitted.mean(0)) @ weights
    np.testing.assert_allclose(linear.values(fitted, labels, fitted, l2), expected)


def test_the_penalty_means_the_same_for_twice_the_rows() -> None:
    fitted, asked, labels = drawn(30, 4), drawn(10, 4, seed=1), np.arange(30) % 2
    twice = np.concatenate([fitted, fitted]), np.concatenate([labels, labels])
    once = linear.classes(fitted, labels, asked, 2, 0.1)
    np.testing.assert_allclose(linear.classes(*twice, asked, 2, 0.1), once, atol=1e-3)
    np.testing.assert_allclose(
        linear.values(twice[0], twice[1].astype(float), asked, 0.1),
        linear.values(fitted, labels.astype(float), asked, 0.1),
    )


@pytest.mark.parametrize("present", [[1], [0, 2]])
def test_a_class_without_rows_is_never_chosen(present: list[int]) -> None:
    labels = np.array(present * 6)
    odds = linear.classes(drawn(len(labels), 3), labels, drawn(20, 3, seed=1), 4, 0.1)
    assert odds.shape == (20, 4)
    assert set(odds.argmax(1)) <= set(present)


GRIDS = hnp.arrays(
    np.float64, st.tuples(st.integers(2, 12), st.just(2)), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])
)


def one_by_one(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, k: int) -> tuple[list[int], float]:
    """The nearest, their class by majority, then by the nearest; in plain Python."""

    def cosine(left: np.ndarray, right: np.ndarray) -> float:
        lengths = float(np.sqrt((left @ left) * (right @ right)))
        return round(float(left @ right) / lengths, 7) if lengths else 0.0

    order = sorted(range(len(known)), key=lambda row: (-cosine(known[row], asked), row))[:k]
    votes = Counter(int(labels[row]) for row in order)
    most = max(votes.values())
    return order, next(int(labels[row]) for row in order if votes[int(labels[row])] == most)


@given(GRIDS, GRIDS, st.integers(1, 5))
def test_nearest_neighbours_are_those_of_brute_force_ties_included(
    known: np.ndarray, asked: np.ndarray, k: int
) -> None:
    labels = np.arange(len(known)) % 3
    found, votes = knn.neighbours(known, asked, k), knn.classes(known, labels, asked, 3, k)
    means = knn.values(known, labels.astype(float), asked, k)
    for row in range(len(asked)):
        order, chosen = one_by_one(known, labels, asked[row], k)
        assert found[row].tolist() == order
        assert votes[row].argmax() == chosen
        assert np.floor(votes[row]).sum() == len(order)
        assert means[row] == pytest.approx(labels[order].mean())


def test_equal_rows_are_neighbours_in_their_order_wherever_they_stand() -> None:
    known = np.repeat(drawn(1, 300), 400, axis=0)
    assert (knn.neighbours(known, drawn(300, 300, seed=1), 8) == np.arange(8)).all()


# ---- a task's own rows ----


def told(kind: Kind) -> Task:
    """The made-up task of a kind, with metrics that exist."""
    metrics = {"regression": ("pearson", "spearmanr"), "multilabel": ("micro_f1",)}.get(kind, ("accuracy",))
    return replace(small_tasks.task(kind), metrics=metrics)


def split(kind: Kind, count: int, seed: int = 0) -> list[Example]:
    return small_tasks.examples(kind, count, seed)


def table_of(kind: Kind, examples: list[Example], options: ProbeOptions) -> Table:
    """Features of a model that tells tokens apart and nothing else."""
    reader = probed.reader_of(WORDS, hidden=lambda batch: probed.shown(batch, WORDS.vocab_size))
    return features.table(reader, told(kind), examples, options=options, progress=Silent())


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_of_one_word_is_read_from_features_that_hold_it(kind: Kind) -> None:
    options = ProbeOptions(l2=1e-4)
    fitted, asked = table_of(kind, split(kind, 200), options), table_of(kind, split(kind, 60, seed=1), options)
    result = of_task.result("linear", told(kind), fitted, asked, options)
    assert result.score is not None
    assert result.chance is not None
    assert result.score > 0.9
    assert result.chance < 0.7
    assert result.interval is not None
    assert result.interval[0] > result.chance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "knn"])
def test_features_that_hold_nothing_give_chance(kind: Kind, name: str) -> None:
    """All texts alike: the most frequent class, one choice in four, and no correlation."""
    options = ProbeOptions(k=200)
    fitted, asked = table_of(kind, split(kind, 199), options), table_of(kind, split(kind, 60, seed=1), options)
    blank = [replace(table, features=np.zeros((len(table.features), 3))) for table in (fitted, asked)]
    result = of_task.result(name, told(kind), *blank, options)
    if kind == "regression":
        assert result.score is None
        assert result.interval is None
    else:
        assert result.score == pytest.approx(result.chance)


def test_words_that_nobody_labelled_are_not_judged() -> None:
    options = ProbeOptions(l2=1e-4)
    fitted, asked = (
        table_of("tokens", split("tokens", 200), options),
        table_of("tokens", split("tokens", 60, 1), options),
    )
    assert (asked.labels == -100).sum() > 100
    assert len(asked.features) == len(asked.labels)
    result = of_task.result("linear", told("tokens"), fitted, asked, options)
    assert result.examples == (asked.labels != -100).sum()


def test_the_words_a_task_asks_about_stand_beside_the_text_with_their_difference() -> None:
    width = WORDS.vocab_size
    reader = probed.reader_of(WORDS, hidden=lambda batch: probed.shown(batch, width))
    task = replace(told("classification"), span_count=2)
    text = small_tasks.Text(("the river", "old map"), (small_tasks.Span(0, 4, 9), small_tasks.Span(1, 4, 7)))
    made = features.table(reader, task, [Example((text,), 1, {"index": 0})], options=ProbeOptions(), progress=Silent())
    ids = [WORDS.cls_id, *WORDS.encode("the river"), WORDS.sep_id, *WORDS.encode("old map"), WORDS.sep_id]
    mean, river, chart = (np.zeros(width) for _ in range(3))
    for token in ids:
        mean[token] += 1 / len(ids)
    river[WORDS.encode("river")[0]] = chart[WORDS.encode("map")[0]] = 1
    np.testing.assert_allclose(made.features[0], np.concatenate([mean, river, chart, np.abs(river - chart)]), atol=1e-7)


def test_features_of_a_text_do_not_depend_on_the_texts_beside_it() -> None:
    from cramming.architectures import BertConfig
    from cramming.evaluation.probes.reader import Reader

    torch.manual_seed(0)
    model = BertConfig(layers=2, hidden=32, heads=2, intermediate=64, init_std=0.2).build(WORDS.vocab_size, 64)
    reader = Reader.of_model(model.eval(), WORDS)
    examples = split("classification", 20)
    task, options = told("classification"), ProbeOptions(max_length=16)
    together = features.table(reader, task, examples, options=options, progress=Silent()).features
    for row, example in enumerate(examples):
        alone = features.table(reader, task, [example], options=options, progress=Silent()).features
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)
    one = replace(options, layer=1)
    shallow = features.table(reader, task, examples, options=one, progress=Silent()).features
    model.active_layers = (0,)
    np.testing.assert_array_equal(
        shallow, features.table(reader, task, examples, options=options, progress=Silent()).features
    )
    with pytest.raises(UserError, match=r"probe\.layer=2, but the model has 1"):
        features.table(reader, task, examples, options=replace(options, layer=2), progress=Silent())
    assert model.active_layers == (0,)


def test_texts_that_are_cut_are_said(tmp_path: Path) -> None:
    rows = features.TaskRows(told("classification"), split("classification", 20), split("classification", 9, 1))
    reader = probed.reader_of(WORDS, hidden=lambda batch: probed.shown(batch, WORDS.vocab_size))
    (result,) = of_task.probe(reader, ["knn"], rows, options=ProbeOptions(max_length=8), progress=Silent())
    cut = sum(
        encoding.in_memory(rows.task, part, WORDS, max_length=8, spans="pooled").cut.texts
        for part in (rows.train, rows.evaluated)
    )
    assert cut > 0
    assert result.remarks == (f"{cut} texts were cut to 8 tokens",)


def test_rows_are_drawn_from_all_of_a_file() -> None:
    rows, remark = sampled(range(10_000), 500, "rows")
    assert rows == sorted(set(rows))
    assert len(rows) == 500
    assert remark == ("500 of 10,000 rows",)
    assert np.histogram(rows, bins=10)[0].min() > 25
    assert sampled(rows, None, "rows") == sampled(rows, 500, "rows") == (rows, ())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ProbeOptions(task="sst"), "there is no task 'sst'; did you mean 'sst2'"),
        (ProbeOptions(task="ax"), r"probe\.task=ax has nothing to fit a probe to: take probe\.task=mnli"),
        (ProbeOptions(train_file="absent.csv"), r"probe\.train_file=absent\.csv does not exist"),
        (ProbeOptions(task="sst2", data_dir="absent"), r"probe\.data_dir=absent is no folder"),
    ],
)
def test_a_task_that_cannot_be_probed_is_refused(options: ProbeOptions, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        features.read(options, tmp_path)


def test_a_task_of_ones_own_goes_by_the_name_it_is_given(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("dev", 10)):
        lines = [f"{example.texts[0].segments[0]},{example.label}" for example in split("classification", count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    options = ProbeOptions(
        task="mood", train_file=str(tmp_path / "train.csv"), validation_file=str(tmp_path / "dev.csv"), max_rows=30
    )
    rows = features.read(options, tmp_path)
    assert (rows.task.name, len(rows.train), len(rows.evaluated)) == ("mood", 30, 10)
