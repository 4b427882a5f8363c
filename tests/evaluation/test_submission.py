"""The zip for the servers: written from fine-tuned models, filled where asked for, refused where wrong."""

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import fine_tuned
import pytest

from cramming.errors import UserError
from cramming.evaluation import material, submit
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.submission import benchmarks, check, writing
from cramming.evaluation.submission.benchmarks import ANSWERS, ENTITY, GLUE, SUPERGLUE, VALUE, Benchmark, File
from cramming.evaluation.submission.writing import Answers
from cramming.evaluation.tasks.registry import TASKS

GLUE_TRAINED = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
SUPERGLUE_TRAINED = ("boolq", "cb", "copa", "multirc", "record", "rte_superglue", "wic", "wsc")


WORDS: dict[str, set[str]] = {
    **{name: {"0", "1"} for name in ("cola", "sst2", "mrpc", "qqp", "wnli")},
    **{name: {"entailment", "not_entailment"} for name in ("qnli", "rte")},
    "mnli": {"entailment", "neutral", "contradiction"},
}


def sizes(benchmark: Benchmark, config: EvalConfig, data_dir: Path) -> Benchmark:
    """The benchmark of the test sets that are made here."""
    rows, answers = {}, {}
    for file in benchmark.files:
        examples = material.examples_of(config, fine_tuned.task(file.task), file.split, data_dir, [])
        rows[file.name] = len(examples)
        if file.form in (ANSWERS, ENTITY):
            rows[file.name] = len({e.key["query" if file.form == ENTITY else "paragraph"] for e in examples})
            answers[file.name] = 0 if file.form == ENTITY else len(examples)
    return benchmark.resized(rows, answers)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A run with fine-tuned models of all tasks of a benchmark, whose test sets are as small as those made here."""
    benchmark, tasks = request.param
    suite_dir = tmp_path / "first" / "eval" / "suite"
    config = fine_tuned.suite(suite_dir, tasks=list(tasks), data_dir="generated")
    monkeypatch.setitem(benchmarks.BENCHMARKS, benchmark.name, sizes(benchmark, config, tmp_path / "_data"))
    for name in tasks:
        fine_tuned.finished(suite_dir, fine_tuned.task(name), {0: 0.3})
    return tmp_path


def contents(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name).decode() for name in opened.namelist()}


@pytest.mark.parametrize("made", [(GLUE, GLUE_TRAINED)], indirect=True)
def test_glue_has_eleven_files_in_the_official_form(made: Path, capsys: pytest.CaptureFixture) -> None:
    suite_dir = made / "first" / "eval" / "suite"
    fine_tuned.finished(suite_dir, TASKS["cola"], {1: 0.5, 2: 0.4, 3: None})
    submit.command([f"base_dir={made}", "name=first"])
    out = capsys.readouterr().out
    assert "cola: seed 1 (matthews_correlation 0.5000 on dev, suite), the best of 4 seeds" in out
    path = suite_dir / "glue.zip"
    found = contents(path)
    assert list(found) == [
        "CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "QQP.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QNLI.tsv", "RTE.tsv",
        "WNLI.tsv", "AX.tsv",
    ]  # fmt: skip
    for file in benchmarks.BENCHMARKS["glue"].files:
        rows = list(csv.reader(io.StringIO(found[file.name]), delimiter="\t"))
        assert rows[0] == ["index", "prediction"]
        assert [row[0] for row in rows[1:]] == [str(number) for number in range(file.rows)]
        said = {row[1] for row in rows[1:]}
        if file.form == VALUE:
            assert all(0 <= float(value) <= 5 and len(value) == 5 for value in said)
        else:
            assert said <= WORDS[TASKS[file.task].trained_by or file.task], file.name
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["files"]["CoLA.tsv"]["seed"] == 1
    assert about["files"]["AX.tsv"]["task"] == "mnli"
    first = path.read_bytes()
    submit.command([f"check={path}"])
    assert "all 11 files are as https://gluebenchmark.com/submit takes them" in capsys.readouterr().out
    submit.command([f"base_dir={made}", "name=first"])
    assert path.read_bytes() == first, "the same answers are the same bytes"


@pytest.mark.parametrize("made", [(SUPERGLUE, SUPERGLUE_TRAINED)], indirect=True)
def test_superglue_has_ten_files_in_the_official_form(made: Path) -> None:
    submit.command([f"base_dir={made}", f"out={made}/s.zip"])
    found = {name: [json.loads(line) for line in text.splitlines()] for name, text in contents(made / "s.zip").items()}
    assert list(found) == [
        "BoolQ.jsonl", "CB.jsonl", "COPA.jsonl", "MultiRC.jsonl", "ReCoRD.jsonl", "RTE.jsonl", "WiC.jsonl", "WSC.jsonl",
        "AX-b.jsonl", "AX-g.jsonl",
    ]  # fmt: skip
    for name, labels in (
        ("BoolQ", ("false", "true")), ("CB", ("entailment", "contradiction", "neutral")), ("COPA", (0, 1)),
        ("RTE", ("entailment", "not_entailment")), ("WiC", ("false", "true")), ("WSC", ("False", "True")),
        ("AX-b", ("entailment", "not_entailment")), ("AX-g", ("entailment", "not_entailment")),
    ):  # fmt: skip
        rows = found[f"{name}.jsonl"]
        assert [row["idx"] for row in rows] == list(range(len(rows))), name
        assert all(row["label"] in labels and type(row["label"]) is type(labels[0]) for row in rows), name
    config = EvalConfig(name="suite", suite="", data_dir="generated")
    asked = material.examples_of(config, TASKS["record"], "test", made / "_data", [])
    entities: dict[int, set[str]] = {}
    for example in asked:
        entities.setdefault(example.key["query"], set()).add(example.key["entity"])
    assert {row["idx"]: {row["label"]} <= entities[row["idx"]] for row in found["ReCoRD.jsonl"]} == dict.fromkeys(
        entities, True
    )
    wanted = [
        (example.key["paragraph"], example.key["question"], example.key["answer"])
        for example in material.examples_of(config, TASKS["multirc"], "test", made / "_data", [])
    ]
    assert wanted == [
        (passage["idx"], question["idx"], answer["idx"])
        for passage in found["MultiRC.jsonl"]
        for question in passage["passage"]["questions"]
        for answer in question["answers"]
    ]


@pytest.mark.parametrize("made", [(GLUE, ("rte", "cola"))], indirect=True)
def test_missing_tasks_are_named_and_filled_only_when_asked(made: Path, capsys: pytest.CaptureFixture) -> None:
    to = made / "first" / "eval" / "suite" / "glue.zip"
    with pytest.raises(UserError, match=r"lacks sst2, mrpc, .*, wnli, ax \(not fine-tuned\): .*fill=majority"):
        submit.command([f"base_dir={made}"])
    assert not to.exists()
    submit.command([f"base_dir={made}", "fill=majority"])
    out = capsys.readouterr().out
    assert "SST-2.tsv is filled with" in out
    assert "RTE.tsv is filled" not in out
    rows = contents(to)["SST-2.tsv"].splitlines()[1:]
    labels = [e.label for e in material.examples_of(
        EvalConfig(name="s", suite="", data_dir="generated"), TASKS["sst2"], "train", made / "_data", [])]  # fmt: skip
    assert {row.split("\t")[1] for row in rows} == {str(max((0, 1), key=labels.count))}
    assert json.loads(to.with_suffix(".json").read_text())["files"]["AX.tsv"].keys() == {"filled"}


@pytest.mark.parametrize("made", [(GLUE, ("rte",))], indirect=True)
def test_other_sizes_than_the_official_ones_are_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    small = benchmarks.BENCHMARKS["glue"].file("RTE.tsv").rows
    monkeypatch.setitem(benchmarks.BENCHMARKS, "glue", GLUE)
    to = made / "x.zip"
    words = [f"base_dir={made}", f"out={to}", "fill=majority"]
    with pytest.raises(UserError, match=rf"RTE.tsv has {small} rows, the official test set 3,000: give eval.data_dir="):
        submit.command(words)
    assert not to.exists()
    submit.command([*words, "allow_partial=true"])
    assert "NOT TO BE SUBMITTED: RTE.tsv has" in capsys.readouterr().out
    assert contents(to)["README.txt"].startswith("NOT TO BE SUBMITTED: RTE.tsv has")
    with pytest.raises(UserError, match=rf"README.txt is none of the server's files; RTE.tsv: has {small} rows"):
        submit.command([f"check={to}"])
    (made / "first" / "eval" / "suite" / "suite.json").unlink()
    with pytest.raises(UserError, match=r"suite.json .* run eval.py once more, which loses no result"):
        submit.command(words)


def test_test_sets_that_are_absent_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    suite_dir = tmp_path / "first" / "eval" / "suite"
    fine_tuned.suite(suite_dir, tasks=["rte"], data_dir=str(tmp_path / "nothing"))
    fine_tuned.finished(suite_dir, TASKS["rte"], {0: 0.3})
    (tmp_path / "nothing").mkdir()
    submit.command([f"base_dir={tmp_path}", "fill=majority"])
    out = capsys.readouterr().out
    assert "has no folder RTE" in out
    assert "RTE.tsv is filled with 'entailment', the commonest of the official training rows of rte" in out
    check.check(suite_dir / "glue.zip", GLUE)  # no test set is needed to fill in


def test_real_test_sets_have_the_official_sizes(shared: Path, tmp_path: Path) -> None:
    for benchmark, folder, names in (
        (GLUE, "glue", ("CoLA.tsv", "RTE.tsv", "MRPC.tsv", "SST-2.tsv", "AX.tsv")),
        (SUPERGLUE, "superglue", ("CB.jsonl", "WiC.jsonl", "RTE.jsonl", "BoolQ.jsonl", "AX-b.jsonl", "AX-g.jsonl")),
    ):
        config = EvalConfig(name="s", suite="", data_dir=str(shared / "data" / folder))
        for name in names:
            file = benchmark.file(name)
            examples = material.examples_of(config, TASKS[file.task], file.split, tmp_path, [])
            assert len(examples) == file.rows
            lines = writing.lines(file, Answers([e.key for e in examples], [0] * len(examples)))
            assert len(lines) == file.rows, "and its rows are numbered as the server numbers them"
    config = EvalConfig(name="s", suite="", data_dir=str(shared / "data"))
    for name in ("CoLA.tsv", "RTE.tsv", "MRPC.tsv", "SST-2.tsv", "CB.jsonl", "WiC.jsonl"):
        file = next(file for b in (GLUE, SUPERGLUE) for file in b.files if file.name == name)
        labels = [e.label for e in material.examples_of(config, TASKS[file.task], "train", tmp_path, [])]
        assert labels.count(file.commonest) == max(map(labels.count, set(labels))), name


def test_the_tables_agree_with_the_tasks() -> None:
    for benchmark, trained in ((GLUE, GLUE_TRAINED), (SUPERGLUE, SUPERGLUE_TRAINED)):
        for file in benchmark.files:
            task = TASKS[file.task]
            assert task.collection == benchmark.name
            assert task.rows[file.split] == file.size, file.name
            if file.form not in (VALUE, ENTITY):
                assert len(file.words) == len(task.labels), file.name
        assert {TASKS[name].trained_by or name for name in benchmark.tasks} == set(trained)


def small(name: str = "RTE.tsv", rows: int = 3) -> Benchmark:
    """A benchmark of one file."""
    source = GLUE if name.endswith("tsv") else SUPERGLUE
    return replace(source, files=(replace(source.file(name), rows=rows, answers=4 if name[:2] == "Mu" else 0),))


RTE = b"index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tentailment\n"
CB = b'{"idx": 0, "label": "neutral"}\n{"idx": 1, "label": "neutral"}\n'
MULTIRC = (
    b'{"idx": 5, "passage": {"questions": [{"idx": 7, "answers": [{"idx": 1, "label": 0}, {"idx": 2, "label": 1}]}]}}\n'
    b'{"idx": 6, "passage": {"questions": [{"idx": 8, "answers": [{"idx": 3, "label": 0}, {"idx": 4, "label": 1}]}]}}\n'
)


DAMAGED = [
    (RTE, b"index\t", b"id\t", r"its first line is 'id\\tprediction'"),
    (RTE, b"2\tent", b"3\tent", "line 4 has index '3', not 2"),
    (RTE, b"2\tentailment\n", b"", "has 2 rows, the test set has 3"),
    (RTE, b"not_ent", b"Not_ent", "line 3 says 'Not_entailment', not 'entailment' or 'not_entail"),
    (RTE, b"1\tn", b"1\tx\tn", "line 3 has 3 fields, not 2"),
    (RTE, b"2\tentailment\n", b"2\tentailment", "its last line has no end"),
    (RTE, b"not", b"\xff", "is not UTF-8"),
    (CB, b'"neutral"}\n{', b'"Neutral"}\n{', "line 1 says 'Neutral', not 'entailment' or"),
    (CB, b'"idx": 1', b'"idx": 2', "idx does not go from 0 to 1"),
    (CB, b'"idx": 1', b'"idx": 0', "two lines have one idx"),
    (CB, b'"idx": 1', b'"idx": "1"', "line 2 has no whole number idx"),
    (CB, b'{"idx": 1', b'{"idx": 1, "x": 1', "line 2 has idx, x, label, not idx and label"),
    (CB, b'"neutral"}\n{', b"neutral}\n{", "line 1 is not JSON"),
    (MULTIRC, b'"label": 1}]}]}}\n{', b'"label": true}]}]}}\n{', "line 1 says True, not 0 or 1"),
    (MULTIRC, b'"idx": 4', b'"idx": 3', "line 2 has not the form .* each idx once"),
    (MULTIRC, b', {"idx": 4, "label": 1}', b"", "has 3 answers, the test set has 4"),
    (MULTIRC, b'5, "passage": {"questions', b'5, "passage": {"question', "line 1 has not the form"),
]
FILES = {RTE: small("RTE.tsv", 3), CB: small("CB.jsonl", 2), MULTIRC: small("MultiRC.jsonl", 2)}


@pytest.mark.parametrize(("good", "before", "after", "wrong"), DAMAGED)
def test_the_checker_sees_what_is_wrong(tmp_path: Path, good: bytes, before: bytes, after: bytes, wrong: str) -> None:
    path, benchmark = tmp_path / "x.zip", FILES[good]
    name = benchmark.files[0].name

    def zipped(content: bytes, called: str = name) -> None:
        with zipfile.ZipFile(path, "w") as opened:
            opened.writestr(called, content)

    zipped(good)
    assert check.problems(path, benchmark) == []
    assert good.count(before) == 1
    zipped(good.replace(before, after))
    with pytest.raises(UserError, match=f"cannot be submitted to .*{name}: {wrong}"):
        check.check(path, benchmark)
    zipped(good, f"run/{name}")
    assert check.problems(path, benchmark) == [f"run/{name} must be at the root, as {name}"]
    zipped(good, "other.txt")
    assert check.problems(path, benchmark) == [f"{name} is missing", "other.txt is none of the server's files"]


def test_values_are_clipped_and_must_be_numbers(tmp_path: Path) -> None:
    file = File("STS-B.tsv", "stsb", "test", 4, VALUE)
    answers = Answers([{"idx": number} for number in (0, 2, 1, 3)], [-0.2, 3.14159, 7.0, 5.0])
    assert writing.lines(file, answers) == ["0\t0.000", "1\t5.000", "2\t3.142", "3\t5.000"]
    bad = replace(GLUE, files=(replace(file, rows=1),))
    content = {"STS-B.tsv": writing.content(file, Answers([{"idx": 0}], [float("nan")]))}
    with pytest.raises(UserError, match=r"would not take it: STS-B.tsv: line 2 says 'nan', no number from 0 to 5"):
        writing.write(tmp_path / "x.zip", bad, content)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"test rows of stsb are not numbered 0 to 1, each once"):
        writing.lines(file, Answers([{"idx": 0}, {"idx": 2}], [1.0, 1.0]))


def test_what_is_no_submission(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as opened:
        opened.writestr("a", b"a")
    for words, wrong in (
        ([f"check={tmp_path}/absent.zip"], "absent.zip is no zip that can be read"),
        ([f"check={tmp_path}/x.zip"], "is no zip that can be read"),
        ([f"check={tmp_path}/x.zip", "benchmark=glue"], "is no zip, or a damaged one"),
        ([f"check={tmp_path}/other.zip"], "none of the files of GLUE or SuperGLUE"),
        (["benchmark=blue", "check=x"], "benchmark=blue is not known; did you mean 'glue'"),
        (["fill=minority"], "fill=minority is not known; did you mean 'majority'"),
        (["x"], "'x' is not an option"),
        ([f"base_dir={tmp_path}"], "nothing in .* is fine-tuned; do it with eval.py"),
    ):
        with pytest.raises(UserError, match=wrong):
            submit.command(words)
    suite_dir = tmp_path / "first" / "eval" / "task"
    fine_tuned.finished(suite_dir, TASKS["swag"], {0: 0.3}, kept=())
    with pytest.raises(UserError, match="first is fine-tuned on no task of GLUE or SuperGLUE in task"):
        submit.command([f"base_dir={tmp_path}"])
