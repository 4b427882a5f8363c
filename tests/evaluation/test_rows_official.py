"""Official folders: the real files whole, with their odd rows; every format; and what can be wrong with a file."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.evaluation import material
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.rows import generated, official
from cramming.evaluation.tasks.registry import TASKS
from cramming.evaluation.tasks.task import Example

COMPLETE = [
    ("glue", name, split) for name in ("cola", "sst2", "mrpc", "rte") for split in ("train", "validation", "test")
] + [
    ("glue", "ax", "test"),
    *[
        ("superglue", name, split)
        for name in ("cb", "wic", "rte_superglue")
        for split in ("train", "validation", "test")
    ],
    *[("superglue", "boolq", split) for split in ("validation", "test")],
    ("superglue", "axb", "test"),
    ("superglue", "axg", "test"),
]


def examples(folder: Path | str, name: str, split: str, tmp: Path, **more: Any) -> tuple[list[Example], list[str]]:
    """The examples of a split, and what is said about them."""
    config = EvalConfig(name="x", suite="x", tasks=[name], data_dir=str(folder), **more)
    notes: list[str] = []
    return material.examples_of(config, TASKS[name], split, tmp, notes), notes


@pytest.mark.parametrize(("collection", "name", "split"), COMPLETE)
def test_files_that_are_complete_have_the_official_number_of_rows(
    shared: Path, tmp_path: Path, collection: str, name: str, split: str
) -> None:
    found, notes = examples(shared / "data" / collection, name, split, tmp_path)
    assert len(found) == TASKS[name].rows[split]
    assert notes == []
    labelled = split != "test" or name in ("axb", "axg")
    assert all((example.label is not None) == labelled for example in found)
    assert [example.key["index"] for example in found] == list(range(len(found)))
    assert all(segment.strip() for example in found for text in example.texts for segment in text.segments)


def test_real_rows_are_what_the_files_say(shared: Path, tmp_path: Path) -> None:
    glue, superglue = shared / "data" / "glue", shared / "data" / "superglue"
    cola = examples(glue, "cola", "train", tmp_path)[0]
    assert cola[0].texts[0].segments == ("Our friends won't buy this analysis, let alone the next one we propose.",)
    assert sum(example.label == 1 for example in cola) == 6023
    rte = examples(glue, "rte", "validation", tmp_path)[0]
    assert rte[0].texts[0].segments[1] == "Christopher Reeve had an accident."
    assert [example.label for example in rte[:2]] == [1, 0]
    assert [example.label for example in examples(superglue, "rte_superglue", "validation", tmp_path)[0]] == [
        example.label for example in rte
    ]
    cb = examples(superglue, "cb", "train", tmp_path)[0]
    assert [sum(example.label == label for example in cb) for label in range(3)] == [115, 119, 16]
    axb = examples(superglue, "axb", "test", tmp_path)[0]
    assert axb[3].key["idx"] == 3


@pytest.mark.parametrize("split", ["train", "dev"])
def test_odd_rows_of_mrpc_survive(shared: Path, tmp_path: Path, split: str) -> None:
    path = shared / "data" / "glue" / "MRPC" / f"{split}.tsv"
    with open(path, encoding="utf-8-sig", newline="") as file:
        told = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = examples(path.parent.parent, "mrpc", "train" if split == "train" else "validation", tmp_path)[0]
    assert [example.texts[0].segments for example in found] == [(row["#1 String"], row["#2 String"]) for row in told]
    assert [example.label for example in found] == [int(row["Quality"]) for row in told]
    unclosed = [example for example in found if sum(s.count('"') for s in example.texts[0].segments) % 2]
    assert len(unclosed) > 10  # quotes that a reader of quoted files would join rows by


@pytest.fixture
def sampled(shared: Path, tmp_path: Path) -> Path:
    """The samples, laid out as the official folders are."""
    data = shared / "data"
    for source, target in {
        "glue_samples/MNLI/dev_matched.tsv": "MNLI/dev_matched.tsv",
        "glue_samples/SNLI/dev.tsv": "MNLI/train.tsv",
        "glue_samples/QQP/train_sample.tsv": "QQP/train.tsv",
        "glue_samples/QQP/dev_sample.tsv": "QQP/dev.tsv",
        "glue_samples/QNLI/train_sample.tsv": "QNLI/train.tsv",
        "glue_samples/STS-B/train_sample.tsv": "STS-B/train.tsv",
        "glue_samples/STS-B/test_sample.tsv": "STS-B/test.tsv",
        "glue_samples/WNLI/train_sample.tsv": "WNLI/train.tsv",
        "superglue_samples/BoolQ/train_sample.jsonl": "BoolQ/train.jsonl",
        "superglue_samples/COPA/train_sample.jsonl": "COPA/train.jsonl",
        "superglue_samples/MultiRC/train_sample.jsonl": "MultiRC/train.jsonl",
        "superglue_samples/ReCoRD/train_sample.jsonl": "ReCoRD/train.jsonl",
        "superglue_samples/WSC/train_sample.jsonl": "WSC/train.jsonl",
    }.items():
        (tmp_path / "official" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / source, tmp_path / "official" / target)
    return tmp_path / "official"


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("mnli", "validation_matched", (9815, None)),
        ("mnli", "train", (9842, "392,702")),
        ("qqp", "train", (20000, "363,849")),
        ("qqp", "validation", (3497, "40,430")),
        ("qnli", "train", (2000, "104,743")),
        ("stsb", "train", (20, "5,749")),
        ("stsb", "test", (20, "1,379")),
        ("wnli", "train", (20, "635")),
        ("boolq", "train", (261, "9,427")),
        ("copa", "train", (20, "400")),
        ("wsc", "train", (20, "554")),
        ("record", "train", (64, "100,730")),
    ],
)
def test_every_format_is_read_and_a_different_number_of_rows_is_said(
    sampled: Path, tmp_path: Path, name: str, split: str, counts: tuple[int, str | None]
) -> None:
    rows, official_rows = counts
    found, notes = examples(sampled, name, split, tmp_path)
    assert len({example.key["index"] for example in found}) == rows
    expected = [] if official_rows is None else [f"{rows:,} rows, officially {official_rows}"]
    assert [note.split(": ")[-1] for note in notes] == expected
    if split != "test":
        assert len({example.label for example in found}) > 1


def test_the_first_rows_of_a_task(sampled: Path, tmp_path: Path) -> None:
    every, few = (examples(sampled, "wnli", "train", tmp_path, max_train_rows=n)[0] for n in (None, 12))
    assert few == every[:12]
    shutil.copy(sampled / "WNLI" / "train.tsv", sampled / "WNLI" / "dev.tsv")
    assert len(examples(sampled, "wnli", "validation", tmp_path, max_train_rows=12)[0]) == 20
    with pytest.raises(UserError, match=r"have the label .* take more than eval.max_train_rows=2"):
        examples(sampled, "wnli", "train", tmp_path, max_train_rows=2)


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def test_rows_that_lack_fields_are_left_out_of_training_and_said(tmp_path: Path) -> None:
    rows = [f"{n}\t1\t2\twho {n}?\twhat?\t{n % 2}\n" for n in range(40)]
    rows[7] = "7\t1\t2\thow\n"
    rows[9] = '9\t1\t2\t"\t\t1\n'  # an empty question and a quote alone are a row
    write(tmp_path / "QQP" / "train.tsv", QQP + "".join(rows))
    found, notes = examples(tmp_path, "qqp", "train", tmp_path)
    assert [example.key["idx"] for example in found] == [n for n in range(40) if n != 7]
    assert found[8].texts[0].segments == ('"', "")
    assert any("1 row has too few or too many fields (line 9); left out" in note for note in notes)
    write(tmp_path / "QQP" / "test.tsv", "id\tquestion1\tquestion2\n0\twho?\n1\twho?\twhat?\n" + "2\ta\tb\n" * 9)
    found, notes = examples(tmp_path, "qqp", "test", tmp_path)
    assert [example.texts[0].segments for example in found[:2]] == [("who?", ""), ("who?", "what?")]
    assert any("kept as far as there is text" in note for note in notes)


def test_rows_without_consensus_are_left_out_and_counted(tmp_path: Path) -> None:
    labels = ["neutral", "-", "entailment", "-", "contradiction"]
    rows = [f"{n}\ta\tb\t{label}\n" for n, label in enumerate(labels)]
    write(tmp_path / "MNLI" / "train.tsv", "index\tsentence1\tsentence2\tgold_label\n" + "".join(rows))
    found, notes = examples(tmp_path, "mnli", "train", tmp_path)
    assert [(example.label, example.key["idx"]) for example in found] == [(1, 0), (0, 2), (2, 4)]
    assert "2 rows were left out, whose label is '-'" in notes[0]


def test_windows_line_ends_and_unusual_characters_are_no_rows_of_their_own(tmp_path: Path) -> None:
    text = "sentence\tlabel\r\ngood \u2028 or\x85 so\t1\r\nbad\x0c\t0\r\n"
    write(tmp_path / "SST-2" / "train.tsv", text)
    found = examples(tmp_path, "sst2", "train", tmp_path)[0]
    assert [(example.texts[0].segments[0], example.label) for example in found] == [
        ("good \u2028 or\x85 so", 1),
        ("bad\x0c", 0),
    ]


@pytest.mark.parametrize("spelled", [True, "true", "True", 1])
def test_yes_and_no_in_any_spelling(tmp_path: Path, spelled: Any) -> None:
    rows = [{"question": "a", "passage": "b", "label": label} for label in (spelled, False)]
    write(tmp_path / "boolq" / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [example.label for example in examples(tmp_path, "boolq", "train", tmp_path)[0]] == [1, 0]


@pytest.mark.parametrize("place", ["RTE", "rte", "glue/RTE", "glue_data/rte"])
def test_where_a_folder_may_lie(tmp_path: Path, place: str) -> None:
    generated.write(tmp_path / "made", ["rte"])
    shutil.copytree(tmp_path / "made" / "glue" / "RTE", tmp_path / "data" / place)
    for folder in (tmp_path / "data", tmp_path / "data" / place):
        assert len(examples(folder, "rte", "validation", tmp_path)[0]) == 50


def cut_last_column(text: str) -> str:
    return "".join("\t".join(line.split("\t")[:-1]) + "\n" for line in text.splitlines())


def relabelled(label: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        header, *lines = text.splitlines()
        return "\n".join([header, *("\t".join([*line.split("\t")[:-1], label]) for line in lines)]) + "\n"

    return change


def swapped(text: str) -> str:
    return "".join(f"{line.split(chr(9))[1]}\t{line.split(chr(9))[0]}\n" for line in text.splitlines())


def swapped_below_the_header(text: str) -> str:
    header, *lines = text.splitlines()
    return f"{header}\n{swapped(chr(10).join(lines))}"


@pytest.mark.parametrize(
    ("name", "file", "change", "said"),
    [
        ("rte", "RTE/train.tsv", lambda text: text.splitlines()[0] + "\n", ["RTE's train split", "is empty"]),
        ("rte", "RTE/train.tsv", lambda _: "", ["RTE's train split", "is empty"]),
        ("cola", "CoLA/train.tsv", lambda _: "", ["CoLA's train split", "is empty"]),
        ("rte", "RTE/train.tsv", cut_last_column, ["has no column 'label'", "index, sentence1, sentence2"]),
        (
            "rte",
            "RTE/train.tsv",
            relabelled("maybe"),
            ["train.tsv: line 2: the label is 'maybe'", "entailment (0), not_"],
        ),
        ("rte", "RTE/train.tsv", relabelled("-1"), ["no labels (all are -1", "nothing can be learned"]),
        ("rte", "RTE/dev.tsv", relabelled("-1"), ["no labels (all are -1", "nothing can be scored"]),
        (
            "rte",
            "RTE/train.tsv",
            relabelled("entailment"),
            ["all 200 examples of RTE's train split", "label entailment"],
        ),
        (
            "rte",
            "RTE/train.tsv",
            relabelled("A whole sentence that is much longer than a label."),
            ["are its columns swapped"],
        ),
        (
            "sst2",
            "SST-2/train.tsv",
            swapped_below_the_header,
            ["train.tsv: line 2: the label is 'her song is worst", "negative (0)"],
        ),
        (
            "sst2",
            "SST-2/test.tsv",
            lambda text: text.replace("sentence", "text"),
            ["has no column 'sentence'", "index, text"],
        ),
        ("stsb", "STS-B/train.tsv", relabelled("7.5"), ["line 2: the label is 7.5; STS-B's are from 0 to 5"]),
        ("stsb", "STS-B/train.tsv", relabelled("high"), ["line 2: the label is 'high', no number"]),
        ("rte", "RTE/train.tsv", lambda text: text.replace(".\t", ". ", 60), ["rows have too few or too many fields"]),
        ("cb", "CB/train.jsonl", lambda text: text + "{", ["train.jsonl: line 21 is not JSON"]),
        ("cb", "CB/train.jsonl", lambda text: "[1]\n" + text, ["line 1 is not a JSON object"]),
        (
            "cb",
            "CB/train.jsonl",
            lambda text: text.replace('"premise"', '"p"'),
            ["has no column 'premise'", "p, hypothesis"],
        ),
        ("cb", "CB/train.jsonl", lambda text: text.replace('"neutral"', '"unsure"'), ["line 3: the label is 'unsure'"]),
        (
            "wsc",
            "WSC/train.jsonl",
            lambda text: text.replace('"target"', '"goal"'),
            ["line 1 has no 'target'", "of WSC?"],
        ),
        ("multirc", "MultiRC/train.jsonl", lambda _: '{"idx": 1, "passage": "x"}\n', ["line 1 has another form"]),
    ],
)
def test_bad_files(tmp_path: Path, name: str, file: str, change: Callable[[str], str], said: list[str]) -> None:
    generated.write(tmp_path, [name])
    path = tmp_path / TASKS[name].collection / file
    path.write_text(change(path.read_text(encoding="utf-8-sig")))
    split = {"train": "train", "dev": "validation", "test": "test"}[path.stem]
    with pytest.raises(UserError) as error:
        examples(tmp_path, name, split, tmp_path)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert "\n" not in str(error.value)


def test_columns_that_hold_labels_only(tmp_path: Path) -> None:
    rows = "".join(f"{n}\t{('not_', '')[n % 2]}entailment\ta text {n}\t{n % 2}\n" for n in range(20))
    write(tmp_path / "RTE" / "train.tsv", "index\tsentence1\tsentence2\tlabel\n" + rows)
    with pytest.raises(UserError, match="column 'sentence1' holds only labels, no text; are its columns swapped"):
        examples(tmp_path, "rte", "train", tmp_path)


def test_files_that_are_not_text(tmp_path: Path) -> None:
    write(tmp_path / "SST-2" / "train.tsv", b"sentence\tlabel\ncaf\xe9\t1\nbad\t0\n" * 20)
    with pytest.raises(UserError, match="is not valid UTF-8: byte 0xe9 at offset 18"):
        examples(tmp_path, "sst2", "train", tmp_path)
    write(tmp_path / "boolq" / "train.jsonl", b'{"question": "caf\xe9"}\n')
    with pytest.raises(UserError, match="is not valid UTF-8"):
        examples(tmp_path, "boolq", "train", tmp_path)


def test_what_is_missing_is_named_and_so_is_what_exists(tmp_path: Path) -> None:
    generated.write(tmp_path, ["rte", "cola"])
    glue = tmp_path / "glue"
    with pytest.raises(UserError, match=r"has no folder MRPC, where mrpc's files would be; its folders are: CoLA, RTE"):
        examples(glue, "mrpc", "train", tmp_path)
    (glue / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"RTE has no dev.tsv and no validation.parquet.* it has: test.tsv, train.tsv;"):
        examples(glue, "rte", "validation", tmp_path)
    with pytest.raises(
        UserError, match=r"has no train.jsonl.*rte_superglue's train split; it has: test.tsv, train.tsv"
    ):
        examples(glue, "rte_superglue", "train", tmp_path)
    with pytest.raises(UserError, match=f"eval.data_dir={re.escape(str(tmp_path / 'none'))} is no folder"):
        examples(tmp_path / "none", "rte", "train", tmp_path)


def test_ax_may_lie_with_mnli(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "glue" / "diagnostic" / "diagnostic.tsv"
    write(tmp_path / "MNLI" / "diagnostic.tsv", source.read_bytes())
    assert len(official.read(TASKS["ax"], "test", tmp_path, [])) == 1104
