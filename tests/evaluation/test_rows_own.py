"""Tasks of one's own: every format says the same, kinds are told by their labels, a split is what it should be."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_rows import TOPICS, WORDS, Rows, both, config, labelled, loaded, refused, write

from cramming.errors import UserError
from cramming.evaluation.rows import own

NAMES = ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "a.jsonl.xz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_says_the_same(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, TOPICS)
    task, examples, notes = loaded(**both(path, label_column="topic"))
    assert (task.kind, task.labels) == ("classification", ("form", "none", "talk"))
    assert [example.texts[0].segments for example in examples] == [(row["text"],) for row in TOPICS]
    assert [task.labels[example.label] for example in examples] == [row["topic"] for row in TOPICS]  # type: ignore[index]
    assert [example.key["index"] for example in examples] == list(range(5))
    assert any("1 texts are empty" in note for note in notes)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_words_and_where_they_are(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, WORDS)
    task, examples, _ = loaded(**both(path, text_column="words", label_column="tags"))
    assert (task.kind, task.labels, task.metrics) == (
        "tokens",
        ("B-LOC", "B-PER", "I-PER", "O"),
        ("entity_f1", "accuracy"),
    )
    for example, row in zip(examples, WORDS, strict=True):
        (text,) = example.texts
        (segment,) = text.segments
        assert [segment[span.start : span.end] for span in text.spans] == row["words"]
        assert [task.labels[part] for part in example.label] == row["tags"]  # type: ignore[union-attr]


def test_words_between_blanks_are_the_same(tmp_path: Path) -> None:
    spelled = [{key: " ".join(value) for key, value in row.items()} for row in WORDS]
    lists = loaded(**both(write(tmp_path / "a.jsonl", WORDS), text_column="words", label_column="tags"))
    blanks = loaded(**both(write(tmp_path / "b.csv", spelled), text_column="words", label_column="tags"))
    assert lists[1] == blanks[1]
    assert lists[0].labels == blanks[0].labels


def test_words_nobody_judged(tmp_path: Path) -> None:
    rows = [{"text": ["a", "b", "c"], "label": [1, -100, 0]}, {"text": ["d"], "label": [None]}]
    task, examples, _ = loaded(**both(write(tmp_path / "a.jsonl", rows)))
    assert task.metrics == ("accuracy",)
    assert [example.label for example in examples] == [(1, -100, 0), (-100,)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff")), min_size=2, max_size=6),
    name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl"]),
)
def test_any_text_survives(tmp_path: Path, texts: list[str], name: str) -> None:
    path = labelled(tmp_path / name, [n % 2 for n in range(len(texts))], texts)
    own.tables._read.cache_clear()  # the same name, and perhaps the same size within the clock's resolution
    _, examples, _ = loaded(**both(path, kind="classification"))
    assert [example.texts[0].segments[0] for example in examples] == texts


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_csv_is_separated_by(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path / "a.csv", TOPICS, delimiter=delimiter)
    _, examples, _ = loaded(**both(path, label_column="topic"))
    assert [example.texts[0].segments[0] for example in examples] == [row["text"] for row in TOPICS]


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (['"no one\t1', 'said " that\t0'], ['"no one', 'said " that']),
        (['"no one\t1', "said\t0", 'that"\t0'], ['"no one', "said", 'that"']),  # well-formed if lines run together
    ],
)
def test_a_tsv_without_quoting(tmp_path: Path, rows: list[str], texts: list[str]) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(["text\tlabel", *rows, ""]))
    _, examples, notes = loaded(**both(path, kind="classification"))
    assert [example.texts[0].segments[0] for example in examples] == texts
    assert any("quotes are read as characters" in note for note in notes)


def test_official_files(shared: Path) -> None:
    """Quotes in them are characters, which the reader finds out."""
    rte = shared / "data" / "glue" / "RTE"
    asked: dict[str, Any] = {"text_column": "sentence1", "text_pair_column": "sentence2"}
    asked |= {f"{split}_file": rte / f"{split}.tsv" for split in ("train", "test")}
    asked["validation_file"] = rte / "dev.tsv"
    found = {split: loaded(split, **asked) for split in own.SPLITS}
    assert {split: len(examples) for split, (_, examples, _) in found.items()} == {
        "train": 2490,
        "validation": 277,
        "test": 3000,
    }
    assert found["train"][0].labels == ("entailment", "not_entailment")
    lines = (rte / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [list(example.texts[0].segments) for example in found["validation"][1]] == [
        line.split("\t")[1:3] for line in lines
    ]


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["pos", "neg", "pos"], "classification", ("neg", "pos")),
        ([0, 1, 1], "classification", ("0", "1")),
        ([10, 9, 2], "classification", ("2", "9", "10")),
        ([1.0, 0.0, 1.0], "classification", ("0", "1")),
        ([True, False, True], "classification", ("false", "true")),
        ([0.5, 1.0, 2.0], "regression", ()),
        (list(range(40)), "regression", ()),
        ([["a", "b"], [], ["c"]], "multilabel", ("a", "b", "c")),
        (["a|b", "", "c"], "multilabel", ("a", "b", "c")),
        (["O O O B-X", "O O O O", "O O B-X O"], "tokens", ("B-X", "O")),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_kinds_are_told_by_labels(
    tmp_path: Path, labels: list[Any], kind: str, names: tuple[str, ...], name: str
) -> None:
    path = labelled(tmp_path / name, labels)
    task, _, notes = loaded(**both(path))
    if name == "a.csv" and kind == "classification":  # which holds what Python has written
        names = tuple(map(str, labels))
    assert task.kind == kind
    assert set(task.labels) == set(names)
    assert name == "a.csv" or task.labels == names
    assert any(f"eval.kind={kind}, since" in note for note in notes)


def test_several_classes_in_a_cell(tmp_path: Path) -> None:
    bars = labelled(tmp_path / "bars.csv", ["b, c|a", "", "a"])
    task, examples, _ = loaded(**both(bars))
    assert (task.labels, [example.label for example in examples]) == (("a", "b, c"), [(1, 1), (0, 0), (1, 0)])
    commas = labelled(tmp_path / "commas.csv", ["b,a", "", "a"])
    task, examples, _ = loaded(**both(commas, kind="multilabel"))
    assert (task.labels, [example.label for example in examples]) == (("a", "b"), [(1, 1), (0, 0), (1, 0)])
    assert loaded(**both(commas, kind="classification"))[0].labels == ("a", "b,a")


def test_metrics_follow_the_kind(tmp_path: Path) -> None:
    two, three = labelled(tmp_path / "two.csv", ["a", "b"]), labelled(tmp_path / "three.csv", ["a", "b", "c"])
    assert loaded(**both(two))[0].metrics == ("accuracy", "macro_f1", "f1", "matthews_correlation")
    assert loaded(**both(three))[0].metrics == ("accuracy", "macro_f1")
    assert loaded(**both(labelled(tmp_path / "x.csv", [0.5, 1.5])))[0].metrics == ("pearson", "spearmanr")
    multilabel = labelled(tmp_path / "m.csv", ["a|b", "a"])
    assert loaded(**both(multilabel))[0].metrics == ("micro_f1", "macro_f1", "subset_accuracy")
    assert loaded(**both(two, metric="f1"))[0].metrics == ("f1", "accuracy", "macro_f1", "matthews_correlation")
    refused("eval.metric=macro-f1", "did you mean 'macro_f1'", **both(three, metric="macro-f1"))


def test_names_in_an_order_of_ones_own(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.csv", ["low", "high", "low"])
    task, examples, _ = loaded(**both(path, labels=["low", "middle", "high"]))
    assert (task.labels, [example.label for example in examples]) == (("low", "middle", "high"), [0, 2, 0])
    refused("line 3", "'high'", "a.csv", "there are: low, mid", **both(path, labels=["low", "mid"]))


def test_pairs(tmp_path: Path) -> None:
    rows = [{"text": "a", "other": "b", "label": 0}, {"text": "c", "other": "d", "label": 1}]
    task, examples, _ = loaded(**both(write(tmp_path / "a.tsv", rows), text_pair_column="other"))
    assert task.fields == ("text", "other")
    assert [example.texts[0].segments for example in examples] == [("a", "b"), ("c", "d")]


def many(path: Path, n: int = 200) -> Rows:
    rows = [{"text": f"text {n // 2 if n < 20 else n}", "label": n % 3} for n in range(n)]
    write(path, rows)
    return rows


def test_a_tenth_is_held_out_the_same_every_time(tmp_path: Path) -> None:
    rows = many(tmp_path / "a.csv")
    write(tmp_path / "reversed.csv", rows[::-1])
    _, kept, _ = loaded("train", train_file=tmp_path / "a.csv")
    _, chosen, notes = loaded("validation", train_file=tmp_path / "a.csv")
    assert any(f"{len(chosen)} of 200 training rows are held out" in note for note in notes)
    assert 20 <= len(chosen) <= 21
    assert sorted(example.key["index"] for example in kept + chosen) == list(range(200))
    texts = [{example.texts[0].segments[0] for example in part} for part in (kept, chosen)]
    assert not texts[0] & texts[1]  # rows of equal texts stay together
    _, again, _ = loaded("validation", train_file=tmp_path / "reversed.csv")
    assert {example.texts[0].segments[0] for example in again} == texts[1]


def test_a_split_of_its_own_is_used_whole(tmp_path: Path) -> None:
    train, dev = labelled(tmp_path / "t.csv", ["1", "2", "1"]), labelled(tmp_path / "d.csv", ["2.0", "1"])
    assert [e.label for e in loaded("train", train_file=train, validation_file=dev)[1]] == [0, 1, 0]
    _, examples, notes = loaded("validation", train_file=train, validation_file=dev)
    assert [example.label for example in examples] == [1, 0]  # 2.0 is the 2 of a column that has gaps
    assert any("2 of 2 validation texts are training texts" in note for note in notes)


def test_rows_without_a_label_are_left_out_and_said(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.csv", ["x", "", "y", ""])
    _, examples, notes = loaded(**both(path))
    assert [example.key["index"] for example in examples] == [0, 2]
    assert any("2 rows without a label" in note and "line 3 first" in note for note in notes)


@pytest.mark.parametrize("labels", [None, ["", "", ""], [-1, -1, -1], ["?", "?", "?"]])
def test_a_test_split_needs_no_labels(tmp_path: Path, labels: list[Any] | None) -> None:
    rows = [{"text": f"t{n}"} | ({} if labels is None else {"label": labels[n]}) for n in range(3)]
    train = labelled(tmp_path / "a.csv", ["x", "y", "x"])
    _, examples, _ = loaded("test", **both(train, test_file=write(tmp_path / "b.csv", rows)))
    assert [example.label for example in examples] == [None] * 3


def test_a_test_split_with_labels_has_them(tmp_path: Path) -> None:
    train, test = labelled(tmp_path / "a.csv", ["x", "y", "x"]), labelled(tmp_path / "b.csv", ["y", "x"])
    assert [example.label for example in loaded("test", **both(train, test_file=test))[1]] == [1, 0]
    refused("no test split", "eval.test_file", split="test", **both(train))


def parquet_of_classes(path: Path, labels: list[int]) -> Path:
    """As ``datasets`` writes it: numbers, and names for them beside the columns."""
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {"text": [f"text {n}" for n in range(len(labels))], "label": labels}
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(said), path)
    return path


def test_class_numbers_with_names(tmp_path: Path) -> None:
    path = parquet_of_classes(tmp_path / "a.parquet", [1, 0, -1, 1])
    task, examples, notes = loaded(**both(path))
    assert (task.labels, [example.label for example in examples]) == (("no", "yes"), [1, 0, 1])
    assert any("1 rows without a label" in note and "row 3" in note for note in notes)
    refused("every label", "is missing", **both(parquet_of_classes(tmp_path / "b.parquet", [-1, -1])))


def test_a_folder_that_the_library_can_load(tmp_path: Path) -> None:
    for split, labels in {"train": [1, 0, 1], "dev": [0, 1], "test": [-1, -1]}.items():
        parquet_of_classes(tmp_path / "own" / f"{split}-00000-of-00001.parquet", labels)
    asked, notes = config(dataset=tmp_path / "own"), list[str]()
    task = own.own_task(asked, tmp_path / "data")
    splits = {split: own.examples_of(asked, task, split, tmp_path / "data", notes) for split in own.SPLITS}
    assert task.labels == ("no", "yes")
    assert {split: [example.label for example in examples] for split, examples in splits.items()} == {
        "train": [1, 0, 1],
        "validation": [0, 1],
        "test": [None, None],
    }


def test_a_dataset_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = config(dataset="me/missing")
    with pytest.raises(UserError, match=r"eval\.dataset=me/missing .*HF_HUB_OFFLINE.*eval\.train_file"):
        own.own_task(asked, tmp_path)
    with pytest.raises(UserError, match=r"eval\.dataset=missing is neither an id"):
        own.own_task(config(dataset="missing"), tmp_path)
    labelled(tmp_path / "test.csv", ["a", "b"])
    (tmp_path / "only").mkdir()
    labelled(tmp_path / "only" / "test.csv", ["a", "b"])
    with pytest.raises(UserError, match=r"no split 'train'; its splits are: test"):
        own.own_task(config(dataset=tmp_path / "only"), tmp_path)
