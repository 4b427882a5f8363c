"""A suite's tasks and where their rows come from; rows made here, which a clone checks itself with."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.evaluation import material
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.rows import generated
from cramming.evaluation.tasks.registry import TASKS


def suite(**options: Any) -> EvalConfig:
    return EvalConfig(name="x", suite="x", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tasks_in_their_order_and_once(tmp_path: Path) -> None:
    config = suite(tasks=["rte", "cola", "rte"], per_task={"rte": {"lr": 1e-5}})
    assert [task.name for task in material.tasks_of(config, tmp_path)] == ["rte", "cola"]


def test_a_multiple_choice_in_the_form_that_is_asked_for(tmp_path: Path) -> None:
    config = suite(tasks=["copa", "swag"], per_task={"copa": {"choices": "joint"}}, data_dir="generated")
    copa, swag = material.tasks_of(config, tmp_path)
    assert [(copa.kind, copa.choices), (swag.kind, swag.choices)] == [("classification", 1), ("choice", 4)]
    for task in (copa, swag):
        assert {len(e.texts) for e in material.examples_of(config, task, "train", tmp_path, [])} == {task.choices}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ["rtee"]}, "there is no task 'rtee'; did you mean 'rte'"),
        ({"tasks": ["cb", "axb"]}, "answered by the model of rte_superglue: add rte_superglue, or leave axb out"),
        (
            {"tasks": ["rte"], "per_task": {"rt": {"lr": 1}}},
            "eval.per_task.rt: there is no such task; did you mean 'rte'",
        ),
        ({"tasks": ["rte"], "per_task": {"rte": {"rate": 1}}}, "eval.per_task.rte.rate is no setting"),
    ],
)
def test_bad_suites(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        material.tasks_of(suite(**options), tmp_path)
    assert said in str(error.value)


def test_a_task_of_ones_own_from_rows_made_here(tmp_path: Path) -> None:
    config = suite(data_dir="generated", label_column="topic")
    (task,) = material.tasks_of(config, tmp_path)
    assert (task.collection, task.labels) == ("own", ("food", "music", "sport"))
    for split, rows in (("train", 200), ("validation", 50)):
        examples = material.examples_of(config, task, split, tmp_path, [])
        assert len(examples) == rows
        assert max(Counter(example.label for example in examples).values()) < 0.5 * rows


def test_a_task_of_ones_own_beside_others(tmp_path: Path) -> None:
    generated.write(tmp_path / "made", ["rte"])
    config = suite(
        tasks=["rte"], train_file=str(tmp_path / "made" / "topics.csv"), label_column="topic", max_train_rows=70
    )
    rte, own = material.tasks_of(config, tmp_path)
    assert (rte.name, own.name) == ("rte", "task")
    assert len(material.examples_of(config, own, "train", tmp_path, [])) == 70


def test_rows_made_here_are_the_same_every_time(tmp_path: Path) -> None:
    generated.write(tmp_path / "one")
    generated.write(tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert {Path(name).parts[0] for name in contents(tmp_path / "one")} == {
        "glue", "superglue", "choice", generated.OWN_TRAIN, generated.OWN_VALIDATION,
    }  # fmt: skip
    folder = generated.folder(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert generated.folder(tmp_path / "data") == folder
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert before


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_rows_made_here(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    data_dir = tmp_path_factory.getbasetemp() / "made"
    task = TASKS[name]
    config = suite(tasks=[name], data_dir="generated")
    for split in task.rows:
        notes: list[str] = []
        examples = material.examples_of(config, task, split, data_dir, notes)
        assert notes == []
        assert len({example.texts for example in examples}) > 0.4 * len(examples)
        if (split == "train" or split in task.evaluated) and task.labels:
            found = {example.label for example in examples}
            assert found == set(range(len(task.labels)))


@pytest.mark.parametrize("name", ["cola", "rte", "sst2"])
def test_the_rule_of_rows_made_here_can_be_learned_and_no_class_is_most_of_them(tmp_path: Path, name: str) -> None:
    config = suite(tasks=[name], data_dir="generated")
    seen: dict[str, Counter[Any]] = {}
    train, validation = (material.examples_of(config, TASKS[name], s, tmp_path, []) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (200, 50)
    for example in train:
        for word in set(example.texts[0].segments[-1].lower().split()):
            seen.setdefault(word, Counter())[example.label] += 1
    # Words that only ever stand in one class decide.
    deciding = {word: max(counts) for word, counts in seen.items() if len(counts) == 1 and counts.total() > 3}
    for example in validation:
        said = {deciding[word] for word in example.texts[0].segments[-1].lower().split() if word in deciding}
        assert said <= {example.label}
    for examples in (train, validation):
        assert 0.25 < sum(example.label == 1 for example in examples) / len(examples) < 0.75
