"""What is wrong with a file of one's own is said in a line that names the file, and the line in it."""

from pathlib import Path
from typing import Any

import pytest
from own_rows import WORDS, both, labelled, loaded, refused, write

LONG = [f"a rather long sentence about the thing number {n}" for n in range(30)]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("text,label\na,x\nb,y,z\n", {}, ["a.csv: line 3 has 3 columns where the header has 2"]),
        ('text,label\n"a\nb",x\nc\n', {}, ["a.csv: line 4 has 1 columns"]),
        ('text,label\na,x\n"b,y\nc,x\n', {}, ["a.csv: line 3 is not CSV", "unexpected end"]),
        ('text,label\na,x\n"b"c,y\n', {}, ["a.csv: line 3 is not CSV"]),
        ("text,label\n", {}, ["a.csv has no rows", "train split"]),
        ("", {}, ["a.csv has no rows"]),
        ("text,text,label\na,b,x\n", {}, ["column 'text' is there twice"]),
        ("txt,label\na,x\n", {}, ["no column 'text'", "did you mean 'txt'?", "txt, label", "eval.text_column="]),
        ("text,topic\na,x\n", {}, ["no column 'label'", "columns are: text, topic", "eval.label_column="]),
        ("text,label\na,x\n", {"text_pair_column": "b"}, ["no column 'b'", "eval.text_pair_column="]),
        ("text,label\na,x\nb,x\n", {}, ["all of its 2 training rows have the same label"]),
        ("text,label\na,2.5\nb,2.5\n", {}, ["the same label"]),
        ("text,label\na,x|y\nb,x|y\n", {}, ["the same label"]),
        ("text,label\na b,O O\nb c d,O O O\n", {}, ["the same label"]),
        ("text,label\na,\nb,\n", {}, ["every label in column 'label' is missing"]),
        ("text,label\na,-1\nb,-1\n", {"labels": ["0", "1"]}, ["every label in column 'label' is -1", "no class"]),
        ("text,label\na,1\nb,x\n", {"kind": "regression"}, ["line 3", "'x'", "not a number"]),
        ("text,label\na,1\nb,inf\n", {"kind": "regression"}, ["line 3", "'inf'", "not a number"]),
        ("text,label\na b,O O\nb c,O\n", {"kind": "tokens"}, ["line 3 has 1 labels", "2 words"]),
        ("text,label\na b,O O\n,O\n", {"kind": "tokens"}, ["line 3 has no words"]),
        ("text,label\na,x\nb,y\n", {"kind": "clasification"}, ["eval.kind=clasification", "'classification'"]),
        ("text,label\na,x\nb,y\n", {"label_column": "text"}, ["must be different"]),
        ("text,label\na,x\nb,y\n", {"labels": ["x", "y", "x"]}, ["a name twice"]),
        ("text,label\na,1\nb,2\n", {"labels": ["1", "2"], "kind": "regression"}, ["eval.labels names classes"]),
        ("text,label\na,x\nb,y\n", {"task_name": "a/b"}, ["eval.task_name=a/b"]),
        ("text,label\na,x\nb,y\n", {"dataset": "me/x"}, ["not both"]),
        ("text,label\na,x\na,y\na,y\n", {"validation_file": None}, ["too few different rows (3)"]),
    ],
)
def test_mistakes_in_csv(tmp_path: Path, content: str, options: dict[str, Any], words: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    refused(*words, **both(path, **options))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a", "label": 0}\n{"text": \n', ["a.jsonl: line 2 is not JSON"]),
        ('{"text": "a", "label": 0}\n\n[1]\n', ["a.jsonl: line 3 is not a JSON object"]),
        ('{"text": "a", "label": 0}\n{"label": 1}\n', ["a.jsonl: line 2 has no 'text'"]),
        ('{"text": "a", "label": 0}\n{"text": 7, "label": 1}\n', ["line 2", "'text' holds int, not text"]),
        ('{"text": ["a"], "label": 0}\n{"text": ["b"], "label": 1}\n', ["line 1", "list", "eval.kind=tokens"]),
        ('{"text": ["a", "b"], "label": [0, 1]}\n{"text": ["a"], "label": [0, 1]}\n', ["line 1", "holds list"]),
        ('{"text": ["a", ""], "label": [0, 1]}\n', ["line 1: word 2"]),
    ],
)
def test_mistakes_in_jsonl(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    refused(*words, **both(path))


def test_labels_that_training_has_not(tmp_path: Path) -> None:
    train = labelled(tmp_path / "t.csv", ["sports", "politics", "sports"])
    dev = labelled(tmp_path / "d.csv", ["sports", "sport"], ["two\nlines", "x"])
    refused(
        "d.csv: line 4", "'sport'", "did you mean 'sports'", split="validation", train_file=train, validation_file=dev
    )
    words = write(tmp_path / "w.jsonl", WORDS)
    other = write(tmp_path / "v.jsonl", [{"words": ["x"], "tags": ["B-ORG"]}])
    said = {"text_column": "words", "label_column": "tags", "train_file": words, "validation_file": other}
    refused("v.jsonl: line 1", "'B-ORG'", split="validation", **said)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    path = labelled(tmp_path / "train.csv", ["a", "b"])
    refused("eval.train_file=", "tran.csv does not exist", "did you mean 'train.csv'", train_file=tmp_path / "tran.csv")
    refused("eval.validation_file", "is a folder", split="validation", train_file=path, validation_file=tmp_path)
    refused("eval.train_file=<csv", "eval.dataset=")
    (tmp_path / "a.doc").write_text("x")
    refused("a.doc", "name it .csv, .tsv, .jsonl or .parquet", train_file=tmp_path / "a.doc")
    (tmp_path / "a.parquet").write_text("x")
    refused("a.parquet is not a usable parquet file", train_file=tmp_path / "a.parquet")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ncafé,x\n".encode("latin1"))
    refused("a.csv is not valid UTF-8", "0xe9", "offset 14 ", **both(path))
    path.with_suffix(".jsonl").write_bytes(b'{"text": "\xff"}\n')
    refused("not valid UTF-8", "0xff", "offset 10 ", **both(path.with_suffix(".jsonl")))


@pytest.mark.parametrize("names", [["good", "bad"], [0.25, 0.5]])
def test_columns_that_are_swapped(tmp_path: Path, names: list[Any]) -> None:
    rows = [{"text": names[n % 2], "label": text} for n, text in enumerate(LONG)]
    path = write(tmp_path / "a.csv", rows)
    refused("text_column=text and eval.label_column=label look swapped", **both(path))
    refused("look swapped", **both(path, kind="classification"))
    task, _, _ = loaded(**both(path, text_column="label", label_column="text"))
    assert task.kind in ("classification", "regression")


def test_texts_are_no_classes(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.csv", LONG)
    refused("30 different values in 30 rows", "text, label", "eval.kind=classification", **both(path))
    assert len(loaded(**both(path, kind="classification"))[0].labels) == 30
