"""Tasks and their examples: every field reaches a text, spans cut out the right words, labels have their numbers."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.evaluation.rows import generated, official, official_jsonl
from cramming.evaluation.tasks import forms, registry
from cramming.evaluation.tasks.registry import TASKS
from cramming.evaluation.tasks.task import Example, Task

MARK = "quizzical"
METRICS = {
    "accuracy", "f1", "macro_f1", "matthews_correlation", "pearson", "spearmanr", "f1_a", "f1_m", "exact_match",
    "record_f1", "record_exact_match", "gender_parity",
}  # fmt: skip
# As in the Hugging Face datasets `glue` and `super_glue`.
NUMBERS = {
    "cola": ["unacceptable", "acceptable"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "ax": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
    "cb": ["entailment", "contradiction", "neutral"],
    "wic": ["False", "True"],
    "axb": ["entailment", "not_entailment"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Official folders of every task, with rows made here."""
    folder = tmp_path_factory.mktemp("made")
    generated.write(folder)
    return folder


def split_of(task: Task) -> str:
    """A split that every task has rows of."""
    return "train" if "train" in task.rows else "test"


def rows_of(task: Task, folder: Path) -> list[dict[str, Any]]:
    return official.read(task, split_of(task), folder, [])


def joined(example: Example) -> str:
    return " | ".join(segment for text in example.texts for segment in text.segments)


def test_the_tasks_are_those_of_their_collections() -> None:
    counts = Counter(task.collection for task in TASKS.values())
    assert counts == {"glue": 10, "superglue": 10, "choice": 2}
    for name, task in TASKS.items():
        assert task.name == name
        assert set(task.metrics) <= METRICS
        assert (task.kind == "regression") == (not task.labels)
        assert task.choices == (len(task.labels) if task.kind == "choice" else 1)
        assert set(task.evaluated) <= set(task.rows)
        trainer = TASKS[task.trained_by or name]
        assert trainer.labels == task.labels
        assert "train" in trainer.rows
        assert ("train" in task.rows) == (task.trained_by is None)
    assert {name: list(TASKS[name].labels) for name in NUMBERS} == NUMBERS
    assert TASKS["rte_superglue"].title == TASKS["rte"].title == "RTE"


@pytest.mark.parametrize(("typed", "said"), [("rte_super", "did you mean 'rte_superglue'"), ("xyz", "there are: ax,")])
def test_a_task_that_does_not_exist(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        registry.find(typed)


def test_collections() -> None:
    assert [task.name for task in registry.of_collection("choice")] == ["swag", "race"]
    with pytest.raises(UserError, match="did you mean 'superglue'"):
        registry.of_collection("super_glue")


@pytest.mark.parametrize("choices", ["each", "joint"])
@pytest.mark.parametrize("name", TASKS)
def test_every_field_reaches_a_text(made: Path, name: str, choices: str) -> None:
    task = TASKS[name]
    row = rows_of(task, made)[0]
    before = [joined(example) for example in forms.to_examples(task, [row], choices)]
    assert MARK not in " ".join(before)
    for field in task.fields:
        changed = {**row, field: marked(row[field])}
        after = [joined(example) for example in forms.to_examples(task, [changed], choices)]
        assert MARK in " ".join(after), f"{field} is not read"


def marked(value: Any) -> Any:
    """A value of a field with a word in it that is nowhere else, places of words before it unmoved."""
    return [*value[:-1], MARK] if isinstance(value, list) else f"{value} {MARK}"


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_of_the_form_their_task_says(made: Path, name: str) -> None:
    task = TASKS[name]
    rows = rows_of(task, made)
    for choices in ("each", "joint"):
        form = forms.formed(task, choices)
        examples = forms.to_examples(task, rows, choices)
        assert len(examples) >= len(rows)
        for example in examples:
            assert len(example.texts) == form.choices
            assert all(len(text.spans) == form.span_count for text in example.texts)
            assert set(form.groups) <= set(example.key)
            assert example.key["index"] in range(len(rows))
            json.dumps(example.key)


def test_copa_by_each_choice_and_in_one_text() -> None:
    task = TASKS["copa"]
    row = {"premise": "P", "question": "cause", "choice1": "A", "choice2": "B", "label": 1, "idx": 7}
    (each,) = forms.to_examples(task, [row])
    question = forms.COPA_QUESTIONS["cause"]
    assert [text.segments for text in each.texts] == [("P", question, "A"), ("P", question, "B")]
    assert (each.label, each.key) == (1, {"index": 0, "idx": 7})
    together = forms.formed(task, "joint")
    assert (together.kind, together.choices, together.outputs) == ("classification", 1, 2)
    for examples in (forms.to_examples(task, [row], "joint"), forms.to_examples(together, [row], "joint")):
        assert [text.segments for text in examples[0].texts] == [("P", question, "A", "B")]
    effect = forms.to_examples(task, [{**row, "question": "effect"}])
    assert effect[0].texts[0].segments[1] != question
    assert forms.formed(TASKS["rte"], "joint") is TASKS["rte"]


def test_race_takes_its_labels_from_letters() -> None:
    row = {"article": "A", "question": "Q", "options": ["w", "x", "y", "z"], "answer": "C"}
    (example,) = forms.to_examples(TASKS["race"], [row])
    assert example.label == 2
    assert [text.segments for text in example.texts][2] == ("A", "Q", "y")
    with pytest.raises(UserError, match="row 0 has 3 options, not 4"):
        forms.to_examples(TASKS["race"], [{**row, "options": ["w", "x", "y"]}])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_wic_spans_are_whole_words(shared: Path, split: str) -> None:
    task = TASKS["wic"]
    rows = official_jsonl.read(task, shared / "data" / "superglue" / "WiC" / f"{split}.jsonl")
    alike = 0
    for example in forms.to_examples(task, rows):
        (text,) = example.texts
        for span in text.spans:
            segment = text.segments[span.segment]
            assert segment[span.start : span.end].strip() == segment[span.start : span.end] != ""
            assert segment[span.end - 1].isalnum()
            before, after = segment[: span.start], segment[span.end :]
            assert before == "" or not before[-1].isalnum() or segment[span.start] == "'"  # I've
            assert after == "" or not after[0].isalnum() or after.startswith("n't")  # does|n't
            alike += segment[span.start].lower() == text.segments[0][0]
        assert [span.segment for span in text.spans] == [1, 2]
    assert alike > 0.99 * 2 * len(rows)  # others are forms such as went for go


def test_wic_refuses_places_outside_of_a_sentence() -> None:
    row = {"word": "a", "sentence1": "a b", "sentence2": "a", "start1": 0, "end1": 1, "start2": 0, "end2": 5}
    with pytest.raises(UserError, match="characters 0 to 5 are outside of sentence2"):
        forms.to_examples(TASKS["wic"], [row])


def test_wsc_spans_are_the_words_that_are_asked_about(shared: Path) -> None:
    task = TASKS["wsc"]
    rows = official_jsonl.read(task, shared / "data" / "superglue_samples" / "WSC" / "train_sample.jsonl")
    for row, example in zip(rows, forms.to_examples(task, rows), strict=True):
        (text,) = example.texts
        for which, span in zip("12", text.spans, strict=True):
            cut = text.segments[0][span.start : span.end]
            assert cut.lower() == row[f"span{which}_text"].lower()
            before = len(row["text"][: span.start].split())
            assert abs(before - row[f"span{which}_index"]) <= 1


@pytest.mark.parametrize(
    ("text", "words", "place", "cut"),
    [
        ("He saw him, and he ran.", "he", 4, (16, 18)),
        ("He saw him, and he ran.", "He", 0, (0, 2)),
        ("He saw him, and he ran.", "him", 2, (7, 10)),
        ("He saw him, and he ran.", "he", 5, (16, 18)),  # the place is off by one
        ("the other, then he", "he", 0, (16, 18)),  # no part of another word where there is a whole one
        ('"He  is" here', "he is", 0, (1, 7)),  # quotes, two blanks
        ("Bob 's dog barked", "Bob's dog", 0, (0, 6)),  # spelled otherwise: as many words as they are
        ("one two", "x y z", 1, (4, 7)),
        ("one two", "x", 2, None),
        ("one two", " ", 0, None),
    ],
)
def test_words_are_found_near_their_place(text: str, words: str, place: int, cut: tuple[int, int] | None) -> None:
    assert forms.locate(text, words, place) == cut


def test_wsc_refuses_places_that_do_not_exist() -> None:
    row = {"text": "a b", "span1_text": "a", "span1_index": 0, "span2_text": "c", "span2_index": 9, "label": 0}
    with pytest.raises(UserError, match=r"has no word 9 \('a b'\)"):
        forms.to_examples(TASKS["wsc"], [row])


def test_multirc_has_an_example_for_each_answer(shared: Path) -> None:
    task = TASKS["multirc"]
    path = shared / "data" / "superglue_samples" / "MultiRC" / "train_sample.jsonl"
    examples = forms.to_examples(task, official_jsonl.read(task, path))
    passages = [json.loads(line)["passage"] for line in path.read_text().splitlines()]
    told = [
        ((passage["text"], question["question"], answer["text"]), answer["label"], answer["idx"])
        for passage in passages
        for question in passage["questions"]
        for answer in question["answers"]
    ]
    assert [(e.texts[0].segments, e.label, e.key["answer"]) for e in examples] == told
    assert len({(e.key["paragraph"], e.key["question"]) for e in examples}) == sum(
        len(p["questions"]) for p in passages
    )


def test_record_fills_each_entity_into_the_gap(shared: Path) -> None:
    task = TASKS["record"]
    rows = official_jsonl.read(task, shared / "data" / "superglue_samples" / "ReCoRD" / "train_sample.jsonl")
    assert len(rows) == 64
    examples = forms.to_examples(task, rows)
    for number, row in enumerate(rows):
        own = [example for example in examples if example.key["index"] == number]
        assert [example.key["entity"] for example in own] == list(dict.fromkeys(row["entities"]))
        assert {example.key["entity"] for example in own if example.label == 1} == set(row["answers"]) & set(
            row["entities"]
        )
        assert any(example.label == 1 for example in own)
        for example in own:
            passage, query = example.texts[0].segments
            assert query == row["query"].replace("@placeholder", example.key["entity"])
            assert "@placeholder" not in query
            assert "@highlight" not in passage
            assert re.sub(r"[\W_]", "", row["passage"].replace("@highlight", "")) == re.sub(r"[\W_]", "", passage)
            assert example.key["answers"] == row["answers"]
    unanswered = forms.to_examples(task, [{**rows[0], "answers": []}])
    assert {example.label for example in unanswered} == {None}


def test_highlights_become_sentences() -> None:
    assert forms.sentences("One.\n@highlight\nTwo\n@highlight\nThree?") == "One. Two. Three?"


def test_rows_that_are_judged_in_pairs_differ_in_a_word(shared: Path) -> None:
    task = TASKS["axg"]
    examples = forms.to_examples(task, official_jsonl.read(task, shared / "data" / "superglue" / "AX-g" / "AX-g.jsonl"))
    pairs: dict[int, list[Example]] = {}
    for example in examples:
        pairs.setdefault(example.key["pair"], []).append(example)
        assert isinstance(example.key["pair_id"], int)
    assert len(pairs) == 178
    for one, other in pairs.values():
        words = [example.texts[0].segments[0].split() for example in (one, other)]
        assert sum(first != second for first, second in zip(*words, strict=True)) == 1
        assert one.label == other.label


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [("rte", -1, None), ("rte", None, None), ("rte", 1, 1), ("stsb", -1.0, None), ("stsb", 2.5, 2.5), ("stsb", 3, 3.0)],
)
def test_labels(name: str, label: Any, expected: Any) -> None:
    row = {"sentence1": "a", "sentence2": "b", "label": label}
    assert forms.to_examples(TASKS[name], [row])[0].label == expected


@pytest.mark.parametrize(
    ("name", "label", "said"),
    [("rte", 2, "none of: 0 entailment, 1 not_entailment"), ("rte", "1", "none of"), ("stsb", "high", "no number")],
)
def test_labels_that_are_none(name: str, label: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        forms.to_examples(TASKS[name], [{"sentence1": "a", "sentence2": "b", "label": label}])


def test_a_column_that_is_missing() -> None:
    with pytest.raises(UserError, match="RTE: row 0 has no column 'sentence2'; it has: sentence1, label"):
        forms.to_examples(TASKS["rte"], [{"sentence1": "a", "label": 0}])


def test_an_outcome_is_called_by_its_split_where_that_is_not_the_first() -> None:
    mnli = TASKS["mnli"]
    assert [mnli.outcome("accuracy", split) for split in mnli.evaluated] == ["accuracy", "accuracy@mismatched"]
    assert replace(mnli, evaluated=()).outcome("accuracy", "test") == "accuracy"
