"""What ``python -m cramming.predict`` says: of every kind of task, from texts and files, and of what is wrong."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fine_tuned
import numpy as np
import pytest
import small_tasks
from scipy.special import expit, softmax

from cramming import predict
from cramming.errors import UserError
from cramming.evaluation import finished, saved
from cramming.evaluation.config import Search, Setting
from cramming.evaluation.encoding import in_memory
from cramming.evaluation.finetune import evaluate
from cramming.evaluation.tasks.registry import TASKS
from cramming.evaluation.tasks.task import Example, Task, Text

TEXTS = ["a lovely map", "the pilot found an awful, dull river", "old"]


def own(kind: str, **more: object) -> Task:
    """A task of one's own; ``good`` and ``bad`` are its classes."""
    return replace(small_tasks.task(kind, f"my_{kind}"), fields=("text",), **more)


def kept(folder: Path, task: Task, **options: object) -> Path:
    """The folder of a model of a task."""
    setting = Setting(max_length=fine_tuned.POSITIONS, **options)
    model = fine_tuned.model(task, setting)
    saved.save(model, folder, tokenizer=small_tasks.letters(), setting=setting)
    return folder


def logits(folder: Path, examples: list[Example]) -> np.ndarray:
    """What a model says, by another way than the command's."""
    one = saved.load(folder)
    encoded = in_memory(one.task, examples, one.tokenizer, max_length=one.max_length, spans=one.setting.spans)
    return evaluate(one.model, encoded)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that breaks no line."""
    monkeypatch.setenv("COLUMNS", "200")


def test_classes_come_with_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = kept(tmp_path / "model", TASKS["mnli"])
    predict.command([f"model={folder}", "a [MASK]=map, it is 3: no", "text_pair=1e5", "top=2"])
    out = capsys.readouterr().out
    assert "a [MASK]=map, it is 3: no" in out
    assert "1e5" in out
    expected = softmax(logits(folder, [Example((Text(("a [MASK]=map, it is 3: no", "1e5")),), None, {"index": 0})])[0])
    names = TASKS["mnli"].labels
    order = np.argsort(-expected)
    assert f"{names[order[0]]} {expected[order[0]]:.1%}  {names[order[1]]} {expected[order[1]]:.1%}" in out
    assert f"{names[order[2]]} {expected[order[2]]:.1%}" not in out


def test_a_batch_changes_nothing_but_the_pace(tmp_path: Path) -> None:
    folder, out = kept(tmp_path / "model", TASKS["sst2"]), tmp_path / "out.jsonl"
    predict.command([f"model={folder}", f"out={out}", *TEXTS])
    once = rows(out)
    predict.command([f"model={folder}", f"out={out}", *TEXTS, "batch=1"])
    for one, other in zip(once, rows(out), strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    shares = softmax(logits(folder, [Example((Text((t,)),), None, {"index": i}) for i, t in enumerate(TEXTS)]), axis=1)
    for row, text, share in zip(once, TEXTS, shares, strict=True):
        assert row["sentence"] == text
        assert row["probabilities"] == pytest.approx(dict(zip(("negative", "positive"), share, strict=True)), abs=1e-5)


def test_values_several_labels_choices_and_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.jsonl"
    examples = [Example((Text((text,)),), None, {"index": i}) for i, text in enumerate(TEXTS)]
    folder = kept(tmp_path / "regression", own("regression"))
    predict.command([f"model={folder}", f"out={out}", *TEXTS])
    assert [row["prediction"] for row in rows(out)] == pytest.approx(logits(folder, examples)[:, 0].tolist(), abs=1e-5)

    folder = kept(tmp_path / "multilabel", own("multilabel"))
    predict.command([f"model={folder}", f"out={out}", *TEXTS])
    for row, said in zip(rows(out), expit(logits(folder, examples)), strict=True):
        assert row["probabilities"] == pytest.approx(dict(zip(("bad", "good"), said, strict=True)), abs=1e-5)
        assert set(row["prediction"]) == {
            name for name, share in zip(("bad", "good"), said, strict=True) if share > 0.5
        }

    folder = kept(tmp_path / "tokens", own("tokens"))
    predict.command([f"model={folder}", f"out={out}", *TEXTS])
    assert [row["words"] for row in rows(out)] == [text.split() for text in TEXTS]
    assert all(len(row["prediction"]) == len(row["words"]) for row in rows(out))
    predict.command([f"model={folder}", TEXTS[0]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("│")[2].strip() for line in lines if "│ 1 " in line] == TEXTS[0].split()

    folder = kept(tmp_path / "choice", TASKS["copa"])
    offered = {"premise": "It rained.", "question": "effect", "choice1": "wet", "choice2": "dry"}
    (tmp_path / "copa.jsonl").write_text(json.dumps(offered) + "\n" + json.dumps({**offered, "choice2": "wet"}))
    predict.command([f"model={folder}", f"file={tmp_path}/copa.jsonl", f"out={out}"])
    first, second = rows(out)
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert second["probabilities"] == pytest.approx({"choice1": 0.5, "choice2": 0.5}, abs=1e-5)


def test_words_asked_about_and_entities(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    folder = kept(tmp_path / "wic", TASKS["wic"])
    row = {"word": "map", "sentence1": "a map is old", "sentence2": "map the river", "start1": 2, "end1": 5}
    (tmp_path / "wic.jsonl").write_text(
        "".join(json.dumps({**row, "start2": start, "end2": start + 3}) + "\n" for start in (0, 4))
    )
    predict.command([f"model={folder}", f"file={tmp_path}/wic.jsonl", f"out={out}"])
    first, second = rows(out)
    assert first["probability"] != second["probability"], "the place of the word matters"

    folder = kept(tmp_path / "record", TASKS["record"])
    asked = {"passage": "The old pilot met Ann.", "query": "@placeholder is old", "entities": ["Ann", "pilot", "Ann"]}
    (tmp_path / "r.jsonl").write_text(json.dumps(asked) + "\n" + json.dumps({**asked, "entities": ["river"]}))
    predict.command([f"model={folder}", f"file={tmp_path}/r.jsonl", f"out={out}"])
    first, second = rows(out)
    assert set(first["probabilities"]) == {"Ann", "pilot"}
    assert first["prediction"] == max(first["probabilities"], key=first["probabilities"].get)
    assert second["prediction"] == "river"
    (tmp_path / "r.jsonl").write_text(json.dumps(asked) + "\n" + json.dumps({**asked, "entities": []}))
    with pytest.raises(UserError, match=r"r.jsonl: line 2 offers nothing to choose from"):
        predict.command([f"model={folder}", f"file={tmp_path}/r.jsonl"])


def test_files_of_every_form_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = kept(tmp_path / "model", TASKS["rte"]), tmp_path / "out.csv"
    pairs = [("it is, old", "a map"), ("the pilot", "found it")]
    (tmp_path / "a.csv").write_text('sentence1,sentence2,label\n"it is, old",a map,x\nthe pilot,found it,\n')
    (tmp_path / "a.tsv").write_text("text\ttext_pair\n" + "".join(f"{a}\t{b}\n" for a, b in pairs))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"sentence2": b, "sentence1": a}) + "\n" for a, b in pairs))
    (tmp_path / "a.txt").write_text("\ufeff" + "\n\n".join(f"{a}\t{b}" for a, b in pairs))
    found = []
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.txt", "-", "-"):
        if name == "-":
            text = (tmp_path / ("a.txt" if len(found) == 4 else "a.jsonl")).read_bytes()
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        predict.command([f"model={folder}", f"file={name if name == '-' else tmp_path / name}", f"out={out}"])
        found.append(out.read_text())
    assert len(set(found)) == 1
    read = list(csv.DictReader(io.StringIO(found[0])))
    assert [(row["sentence1"], row["sentence2"]) for row in read] == pairs
    assert {row["prediction"] for row in read} <= set(TASKS["rte"].labels)


def test_texts_that_are_too_long_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = kept(tmp_path / "model", TASKS["sst2"])
    predict.command([f"model={folder}", "old", "river " * 70])
    # [CLS], 70 words, [SEP] are 8 more than 64
    said = capsys.readouterr().err
    assert "1 of 2 texts are longer than the 64 tokens the model reads: 8 tokens were cut off" in said
    predict.command([f"model={folder}", "old"])
    assert not capsys.readouterr().err


def test_the_best_seed_of_the_newest_suite_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sst2, mnli = TASKS["sst2"], TASKS["mnli"]
    first, second = (tmp_path / "run" / "eval" / name for name in ("old", "new"))
    fine_tuned.finished(first, sst2, {0: 0.7, 1: 0.9, 2: 0.9, 5: None})
    predict.command([f"base_dir={tmp_path}", "old"])  # the one task there is
    assert "run, sst2: seed 1 (accuracy 0.9000 on dev, old), the best of 4 seeds" in capsys.readouterr().out
    predict.command([f"base_dir={tmp_path}", "task=sst2", "seed=2", "old"])
    assert "seed 2 (accuracy 0.9000 on dev, old)\n" in capsys.readouterr().out

    fine_tuned.finished(second, mnli, {3: 0.4, 4: 0.5}, kept=(3,))
    for number, suite in enumerate((first, second)):
        for file in suite.glob("jobs/*/result.json"):
            os.utime(file, (number, number))
    predict.command([f"base_dir={tmp_path}", "name=run", "task=ax", "a", "text_pair=b"])
    said = "seed 3 (accuracy 0.4000 on dev, new), the best whose model was kept; better, but not kept: seed 4 (accur"
    assert said in capsys.readouterr().out
    fine_tuned.finished(second, sst2, {7: 0.1})
    predict.command([f"base_dir={tmp_path}", "task=sst2", "old"])
    assert "seed 7" in capsys.readouterr().out, "the newest results"
    predict.command([f"base_dir={tmp_path}", "task=sst2", "suite=old", "old"])
    assert "seed 1 (" in capsys.readouterr().out


def test_results_of_other_settings_do_not_count(tmp_path: Path) -> None:
    suite_dir, task = tmp_path / "run" / "eval" / "suite", TASKS["sst2"]
    length = fine_tuned.POSITIONS
    fine_tuned.finished(suite_dir, task, {0: 0.9}, setting=Setting(lr=1.0, max_length=length), kept=())
    fine_tuned.finished(suite_dir, task, {0: 0.5, 1: 0.4}, setting=Setting(lr=1e-3, max_length=length), kept=())
    fine_tuned.finished(suite_dir, task, {2: 0.99}, setting=Setting(lr=1e-3, max_length=length), purpose="search")

    def seeds() -> list[tuple[int, float | None]]:
        return [(done.result.seed, done.score) for done in finished.finished(suite_dir)["sst2"]]

    fine_tuned.suite(suite_dir, lr=1e-3, max_length=2 * length)  # the model takes no more
    assert seeds() == [(0, 0.5), (1, 0.4)]
    fine_tuned.suite(suite_dir, lr=1.0, per_task={"sst2": {"lr": 1.0}})
    assert seeds() == [(0, 0.9)]
    fine_tuned.suite(suite_dir, lr=1.0, search=Search(kind="grid"))
    assert [seed for seed, _ in seeds()] == [0, 1], "a search chooses settings of its own"


def test_mistakes_are_named(tmp_path: Path) -> None:
    base = f"base_dir={tmp_path}"
    with pytest.raises(UserError, match=r"nothing in .* is fine-tuned; do it with eval.py"):
        predict.command([base, "x"])
    fine_tuned.finished(tmp_path / "run" / "eval" / "glue", TASKS["sst2"], {0: 0.5, 1: 0.6}, kept=())
    (tmp_path / "other").mkdir()
    fine_tuned.finished(tmp_path / "run" / "eval" / "own", own("classification"), {0: 0.5}, kept=())
    model = kept(tmp_path / "model", TASKS["rte"])
    (tmp_path / "x.csv").write_text("text\na\n")
    (tmp_path / "x.txt").write_text("a\tb\nno pair\n")
    (tmp_path / "x.tsv").write_bytes(b"text\n\xff\n")
    (tmp_path / "x").write_text("a\n")
    (tmp_path / "empty.txt").write_text("\n")
    for words, wrong in (
        ([base], "give a text, such as"),
        ([base, "a", f"file={tmp_path}/x.csv"], "give either texts or file="),
        ([base, "name=other", "a"], "other is not fine-tuned on anything: python eval.py name=other"),
        ([base, "name=runs", "a"], "there is no 'runs' in .* that is fine-tuned; did you mean 'run'"),
        ([base, "a"], "task= is needed: run is fine-tuned on my_classification, sst2"),
        ([base, "task=sst", "a"], "run is not fine-tuned on task=sst; did you mean 'sst2'"),
        ([base, "suite=glu", "task=sst2", "a"], "run has no results of suite=glu; did you mean 'glue'"),
        ([base, "suite=own", "task=sst2", "a"], "run's own is not fine-tuned on task=sst2"),
        ([base, "task=sst2", "seed=7", "a"], "sst2 was not fine-tuned with seed=7; there are: 0, 1"),
        ([base, "task=sst2", "a"], "no model of sst2 was kept in glue .*eval.save_models=none keeps none"),
        ([f"model={tmp_path}", "a"], "is no fine-tuned model: it has no cramming_task.json"),
        ([f"model={model}", "seed=1", "a"], "seed=1 has no say beside model="),
        ([f"model={model}", "task=cola", "a", "text_pair=b"], "this model is fine-tuned on rte, not on task=cola"),
        ([f"model={model}", "a"], "rte reads sentence1, sentence2: give the second with text_pair="),
        ([f"model={model}", "a", "b", "text_pair=c"], "text_pair= goes with one text, not 2"),
        (
            [f"model={model}", f"file={tmp_path}/x.csv"],
            r"x.csv lacks sentence1, sentence2: rte reads .*there are: text$",
        ),
        ([f"model={model}", f"file={tmp_path}/x.txt"], "line 2 has 1 texts with tabs .* reads 2: sentence1, sentence2"),
        ([f"model={model}", f"file={tmp_path}/x.tsv"], "UTF-8"),
        ([f"model={model}", f"file={tmp_path}/x"], "has no ending that tells its format"),
        ([f"model={model}", f"file={tmp_path}/y.txt"], "y.txt does not exist"),
        ([f"model={model}", f"file={tmp_path}/empty.txt"], "empty.txt has no texts"),
        ([f"model={model}", "out=x.txt", "a"], "out=x.txt must end in .csv or .jsonl"),
        ([f"model={model}", "top=0", "a"], "top=0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=wrong):
            predict.command(words)
    with pytest.raises(UserError, match="text_pair= is for tasks that read two texts; sst2 reads sentence"):
        predict.command([f"model={kept(tmp_path / 'sst2', TASKS['sst2'])}", "a", "text_pair=b"])
    with pytest.raises(UserError, match="wic reads word, sentence1, sentence2: give them as columns of a file"):
        predict.command([f"model={kept(tmp_path / 'wic', TASKS['wic'])}", "a"])


def test_help_needs_no_torch() -> None:
    for module in ("cramming.predict", "cramming.evaluation.submit"):
        code = (
            f"import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('{module}', run_name='__main__')\n"
        )
        code += "except SystemExit as end: assert not end.code; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
