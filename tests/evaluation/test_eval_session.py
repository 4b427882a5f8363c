"""Whole calls of ``eval.py``: what stays of earlier ones, which checkpoint is scored, what a mistake in a task does."""

import shutil
from pathlib import Path
from typing import Any

import eval_calls
import pytest

from cramming.errors import UserError
from cramming.evaluation import finished, results, runner, several
from cramming.evaluation.command import command
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.finished import best
from cramming.evaluation.session import Scored
from cramming.evaluation.tasks import registry


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, and the rows of two tasks."""
    place = tmp_path_factory.mktemp("run")
    eval_calls.make_run(place)
    eval_calls.import_once()
    return place


@pytest.fixture
def folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run, not scored yet; workers are forked."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(runner, "START", "fork")
    return tmp_path


def score(folder: Path, *words: str) -> dict[str, Any]:
    """Score with one epoch of few rows; returns the results."""
    few = ["eval.epochs=1"]
    if not any("max_train_rows" in word for word in words):
        few.append("eval.max_train_rows=48")
    command(eval_calls.words(folder, *few, *words))
    return eval_calls.results(folder)


def done(folder: Path, suite: str = "small") -> dict[str, int]:
    """Jobs that are done, and when."""
    files = (folder / "outputs" / "whole" / "eval" / suite).glob("jobs/*/result.json")
    return {file.parent.name: file.stat().st_mtime_ns for file in files}


def test_earlier_tasks_stay_in_the_results_as_long_as_settings_and_rows_are_the_same(folder: Path) -> None:
    first = score(folder, "eval.tasks=[sst2]", "seed=[0,1]")
    assert list(first["tasks"]) == ["sst2"]
    assert first["average"] is None
    assert first["average_missing"] == ["cola.matthews_correlation"]
    times = done(folder)
    both = score(folder, "eval.tasks=[cola]", "seed=[0,1]")
    assert list(both["tasks"]) == ["sst2", "cola"]
    assert both["tasks"]["sst2"] == first["tasks"]["sst2"]
    assert both["details"]["sst2"]["baselines"] == first["details"]["sst2"]["baselines"] != {}
    assert both["average"] is not None
    assert {key: done(folder)[key] for key in times} == times, "nothing was done twice"
    other_rows = score(folder, "eval.tasks=[sst2]", "seed=[0,1]", "eval.max_train_rows=32")
    assert list(other_rows["tasks"]) == ["sst2"]
    assert other_rows["details"]["sst2"]["rows"]["train"] == 32
    other_setting = score(folder, "eval.tasks=[sst2]", "seed=[0,1]", "eval.per_task.cola.lr=1e-4")
    assert list(other_setting["tasks"]) == ["sst2"]
    suite = finished.config_of(folder / "outputs" / "whole" / "eval" / "small")
    assert suite.tasks == ["sst2"], "what predicting and submitting read"


@pytest.mark.full
def test_untrained_weights_have_a_folder_of_their_own(folder: Path) -> None:
    score(folder, "eval.tasks=[sst2]")
    command(
        eval_calls.words(folder, "eval.tasks=[sst2]", "eval.epochs=1", "eval.max_train_rows=48", "weights=untrained")
    )
    trained, fresh = (eval_calls.results(folder, suite=suite) for suite in ("small", "small-untrained"))
    assert fresh["provenance"]["weights_sha256"] == "untrained" != trained["provenance"]["weights_sha256"]
    assert not set(done(folder)) & set(done(folder, "small-untrained"))


@pytest.mark.full
def test_an_earlier_checkpoint_has_a_folder_of_its_own(folder: Path) -> None:
    command(eval_calls.words(folder, "eval.tasks=[sst2]", "eval.epochs=1", "seed=0", "checkpoint=@step=4"))
    assert done(folder, "small@step=4")
    shutil.copytree(folder / "outputs" / "whole", folder / "outputs" / "other")
    with pytest.raises(UserError, match="name=whole and checkpoint=other are two runs"):
        command(eval_calls.words(folder, "checkpoint=other"))


def test_a_search_reports_the_best_setting_and_what_it_cost(folder: Path) -> None:
    searching = [
        "eval.search.kind=grid", "eval.search.lr=[1e-9,3e-3]", "eval.search.heldout_fraction=0.25", "eval.epochs=4",
        "eval.max_train_rows=96", "seed=0",
    ]  # fmt: skip
    command(eval_calls.words(folder, *searching))
    found = eval_calls.results(folder)
    selection = found["details"]["sst2"]["selection"]
    assert (selection["trials"], selection["reported"], selection["split"]) == (2, False, "25% of the training rows")
    assert selection["chosen"]["lr"] == found["details"]["sst2"]["setting"]["lr"]
    assert selection["steps"] == 2 * 4 * 5  # of 72 rows, 16 at a time
    best_trial = max(selection["scores"], key=lambda trial: trial["score"])
    assert best_trial["lr"] == selection["chosen"]["lr"]
    kept = done(folder)
    assert len(kept) == 2 * 2 + 2
    command(eval_calls.words(folder, *searching, "eval.tasks=[sst2]"))
    assert eval_calls.results(folder)["tasks"] == found["tasks"], "the other task's search is known from the disk"
    assert done(folder) == kept


def test_a_task_whose_rows_are_not_there_does_not_harm_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "official").mkdir()
    shutil.copytree(folder / "rows" / "glue" / "SST-2", folder / "official" / "SST-2")
    words = [f"eval.data_dir={folder / 'official'}", "eval.per_task.cola.start_from=null", "seed=0"]
    with pytest.raises(UserError, match=r"^cola, seed 0: .*CoLA"):
        score(folder, *words)
    found = eval_calls.results(folder)
    assert list(found["tasks"]) == ["sst2"]
    assert [failure["task"] for failure in found["failed"]] == ["cola"]
    assert "cola, seed 0: failed: " in capsys.readouterr().err
    before = eval_calls.results(folder)
    with pytest.raises(UserError, match="nowhere"):
        score(folder, "eval.data_dir=nowhere")
    assert eval_calls.results(folder) == before, "a mistake in the command leaves what there was"


def test_texts_longer_than_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"eval\.max_length=17 is longer than the model: it takes 16 tokens"):
        score(folder, "eval.max_length=17")
    suite = folder / "more" / "eval" / "small.yaml"
    suite.write_text(suite.read_text().replace("max_length: 16", "max_length: 32"))
    score(folder, "eval.tasks=[sst2]", "seed=0")
    line = "texts are cut to 16 tokens, the model's positions, not to the suite's 32"
    assert line in capsys.readouterr().out
    assert line in eval_calls.results(folder)["remarks"]


@pytest.mark.full
def test_a_checkpoint_that_is_no_run(folder: Path) -> None:
    """An exported folder: its results get a folder beside the runs, and its models can be found there."""
    from cramming.export import command as export

    export([f"base_dir={folder / 'outputs'}", "name=whole", f"to={folder / 'exported'}"])
    base = f"base_dir={folder / 'outputs'}"
    words = ["--config-dir", str(folder / "more"), base, *eval_calls.FAST, "eval.tasks=[sst2]", "seed=0",
             "eval.epochs=1", f"checkpoint={folder / 'exported'}"]  # fmt: skip
    command(words)
    suite = folder / "outputs" / "exported" / "eval" / "small"
    (of_task,) = finished.finished(suite).values()
    assert best(of_task, "sst2")[0].model is not None
    with pytest.raises(UserError, match="whole is a run"):
        command([*words, "name=whole"])
    for file in folder.glob("exported/*token*"):
        file.unlink()
    for file in folder.glob("exported/*vocab*"):
        file.unlink()
    with pytest.raises(UserError, match="has no tokenizer beside it"):
        command(words)


@pytest.mark.full
def test_weights_and_biases_offline(folder: Path) -> None:
    score(folder, "eval.tasks=[sst2]", "wandb=offline")
    there = folder / "outputs" / "whole" / "eval" / "small" / "wandb"
    assert list(there.glob("offline-run-*"))
    run_id = (there / "run_id").read_text()
    score(folder, "eval.tasks=[sst2]", "wandb=offline")
    assert (there / "run_id").read_text() == run_id


def test_many_runs_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that fails does not end the others; the table has a line for each."""
    task = registry.find("sst2")

    def scored(call: Any) -> Scored:
        if call.config.name == "b":
            raise UserError("there is no run 'b'")
        config = EvalConfig(name="glue_sane", suite="s", tasks=["sst2"], seeds=[0])
        return Scored(str(call.config.name), results.collect(config, [task], [], {"sst2": {}}), [])

    monkeypatch.setattr(several, "scored", scored)
    lines = [[f"base_dir={tmp_path}", f"name={name}"] for name in "abc"]
    with pytest.raises(UserError, match=r"1 of 3 failed, the first b, glue_sane: there is no run 'b'"):
        several.score_all(lines, None)
    table = (tmp_path / "_sweeps" / "eval-glue_sane.md").read_text()
    assert [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")][2:] == ["a", "b", "c"]
    assert "failed: there is no run 'b'" in table
    assert "2 of 3: b, glue_sane" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"did you mean 'eval\.lr'"):
        several.score_all([lines[0], [*lines[1], "eval.lrr=1"]], None)
