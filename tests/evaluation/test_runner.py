"""Jobs in processes beside each other: who waits for whom, what stays on the disk, and what a failure does to others.

The processes are real, their work is not: they write a score that the test chose.
"""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from staged import Stage, job, result_of

from cramming.evaluation import kept, runner
from cramming.evaluation.board import Board
from cramming.evaluation.config import Setting
from cramming.evaluation.live import LiveTable, PlainLines, display_for
from cramming.evaluation.tasks.registry import TASKS
from cramming.evaluation.worker import Progress


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """An empty one."""
    found = Stage(tmp_path)
    monkeypatch.setattr(runner, "START", "fork")
    monkeypatch.setattr(runner, "serve", found.serve)
    return found


def test_all_jobs_are_done_and_told_in_their_order(stage: Stage) -> None:
    jobs = [job("cola", 0), job("cola", 1), job("sst2", 0)]
    outcomes = stage.run(jobs)
    assert [outcome.job for outcome in outcomes] == jobs
    assert all(outcome.result is not None for outcome in outcomes)
    assert sorted(stage.done()) == [("cola", 0), ("cola", 1), ("sst2", 0)]
    assert {outcome.job.key for outcome in stage.ended} == {each.key for each in jobs}
    for each in jobs:
        assert kept.result_of(stage.folder, each, None) == result_of(each, 0.5)


def test_the_longest_way_is_begun_first(stage: Stage) -> None:
    """SST-2 takes longer than CoLA and what waits for it."""
    cola = job("cola")
    stage.run([cola, job("rte", 0, cola), job("sst2")], at_once=1)
    assert stage.done() == [("sst2", 0), ("cola", 0), ("rte", 0)]


def test_a_parent_of_long_children_comes_before_a_longer_job(stage: Stage) -> None:
    rte = job("rte")
    stage.run([job("sst2"), rte, job("mnli", 0, rte)], at_once=1)
    assert stage.done() == [("rte", 0), ("mnli", 0), ("sst2", 0)]


@pytest.mark.parametrize(
    ("save_models", "stay"),
    [("all", {("cola", 0), ("cola", 1), ("cola", 2)}), ("best", {("cola", 1)}), ("none", set())],
)
def test_the_models_that_are_asked_for_stay(stage: Stage, save_models: str, stay: set[tuple[str, int]]) -> None:
    stage.scores = {("cola", 0): None, ("cola", 1): 0.9, ("cola", 2): 0.9}
    jobs = [job("cola", 2), job("cola", 0), job("cola", 1)]
    stage.run(jobs, save_models)
    assert stage.models() == stay


def test_a_model_that_is_asked_for_later_is_made_then_and_only_that(stage: Stage) -> None:
    stage.scores = {("cola", 0): 0.1, ("cola", 1): 0.9}
    jobs = [job("cola", 0), job("cola", 1)]
    stage.run(jobs, "none")
    assert stage.models() == set()
    stage.run(jobs, "best")
    assert stage.models() == {("cola", 1)}
    assert stage.done()[2:] == [("cola", 1)]


def test_a_parent_s_model_stays_until_all_its_children_are_done(stage: Stage) -> None:
    parent = job("mnli")
    jobs = [parent, job("rte", 0, parent), job("rte", 1, parent)]
    stage.acts = {("rte", 1): "raise"}
    stage.run(jobs, "none")
    assert stage.models() == {("mnli", 0)}, "a child is not done yet"
    stage.acts.clear()
    stage.run(jobs, "none")
    assert stage.models() == set()
    assert stage.done()[3:] == [("rte", 1)]
    more = [*jobs, job("rte", 2, parent)]
    stage.run(more, "none")
    assert stage.done()[4:] == [("mnli", 0), ("rte", 2)], "the parent is done again, for its model"


@pytest.mark.parametrize(
    ("act", "reason"),
    [("raise", "no labels"), ("die", "its process was killed by signal 9"), ("bug", "ValueError: oh (see ")],
)
def test_a_job_that_fails_does_not_lose_the_others(stage: Stage, act: str, reason: str) -> None:
    stage.acts = {("cola", 0): act, ("sst2", 1): act}
    jobs = [job(task, seed) for task in ("cola", "sst2") for seed in (0, 1)]
    outcomes = stage.run(jobs)
    failed = {(outcome.job.task, outcome.job.seed) for outcome in outcomes if outcome.result is None}
    assert failed == {("cola", 0), ("sst2", 1)}
    for outcome in outcomes:
        if outcome.result is None:
            assert outcome.reason.startswith(reason)
    traces = list(stage.folder.glob("jobs/*/error.log"))
    assert len(traces) == (2 if act == "bug" else 0)
    stage.acts.clear()
    assert all(outcome.result is not None for outcome in stage.run(jobs)), "the same call goes on with what failed"
    assert len(stage.done()) == 6
    assert list(stage.folder.glob("jobs/*/error.log")) == []


def test_what_a_failed_job_should_have_been_begun_with_is_said(stage: Stage) -> None:
    parent = job("mnli", 7)
    stage.acts = {("mnli", 7): "raise"}
    outcomes = stage.run([parent, job("rte", 0, parent), job("cola")])
    assert [outcome.result is None for outcome in outcomes] == [True, True, False]
    assert outcomes[1].reason == "begins with the model of mnli, seed 7, which failed"


def test_rows_that_cannot_be_used_fail_their_task_alone(stage: Stage) -> None:
    stage.rows.failures["cola"] = "no such file"
    before = stage.folder / "jobs" / job("cola").key / "model"
    before.mkdir(parents=True)
    outcomes = stage.run([job("cola"), job("sst2")])
    assert [(outcome.result is None, outcome.reason) for outcome in outcomes] == [(True, "no such file"), (False, "")]
    assert stage.done() == [("sst2", 0)]
    assert before.is_dir(), "what an earlier call left is not lost"


def test_a_job_is_done_only_if_its_result_is_whole_and_of_these_rows(stage: Stage) -> None:
    one = job("cola")
    stage.run([one])
    stage.run([one])
    assert len(stage.done()) == 1
    file = kept.folder_of(stage.folder, one.key) / "result.json"
    text = file.read_text()
    for damaged in (text[: len(text) // 2], "", "[]", "null", json.dumps(json.loads(text) | {"key": "another"})):
        file.write_text(damaged)
        before = len(stage.done())
        stage.run([one])
        assert len(stage.done()) == before + 1, damaged[:20]
        assert file.read_text() == text
    stage.rows.suffix = ", changed"
    assert kept.result_of(stage.folder, one, stage.rows.sha256(one)) is None
    more = replace(one, also=("ax",))
    assert kept.result_of(stage.folder, more, None) is None, "its model was not asked that"
    stage.rows.suffix = ""
    stage.run([more])
    assert kept.result_of(stage.folder, more, None) is not None
    assert kept.result_of(stage.folder, one, None) is not None, "asked less, it is still the same job"


def test_later_calls_know_what_earlier_ones_did(stage: Stage) -> None:
    """As a search asks for trials first, and then for what is reported."""
    parent = job("mnli")
    trials = [replace(job("rte", 0, parent), purpose="search", setting=Setting(lr=lr)) for lr in (1e-5, 1e-4)]
    with stage.runner("none") as found:
        found.run([parent, *trials], parents={parent.key})
        assert stage.models() == {("mnli", 0)}
        outcomes = found.run([parent, job("rte", 0, parent)])
        assert [outcome.result is not None for outcome in outcomes] == [True, True]
        found.finish()
    assert stage.done().count(("mnli", 0)) == 1
    assert stage.models() == set()
    assert len(stage.ended) == 4


def test_each_worker_has_a_device_and_keeps_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    jobs = [job("cola", seed) for seed in range(6)]
    stage.acts = {("cola", 2): "die"}
    with stage.runner(device="cuda") as found:
        found.run(jobs)
    lines = [line.split() for line in (stage.folder / "log.txt").read_text().splitlines()]
    at = {process: device for _, _, device, process, _ in lines}
    assert set(at.values()) == {"cuda:0", "cuda:1"}
    assert all(at[process] == device for _, _, device, process, _ in lines)


def test_where_memory_is_short_fewer_jobs_run_at_a_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job("cola", seed) for seed in range(4)]
    monkeypatch.setattr(runner, "shortage", lambda need: f"a job takes {need}")
    stage.run(jobs, at_once=4)
    assert len({line.split()[3] for line in (stage.folder / "log.txt").read_text().splitlines()}) == 1


def test_no_process_is_left_when_a_call_is_stopped(stage: Stage) -> None:
    processes = []

    def stopped() -> None:
        with stage.runner() as found:
            found.run([job("cola")])
            processes.extend(worker.process for worker in found._workers)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert processes
    assert not any(process.is_alive() for process in processes)


def board_of(stage: Stage, now: list[float]) -> Board:
    """Jobs of 100 and 400 examples, and one that waits for the first."""
    board = Board(TASKS, now=lambda: now[0])
    first = job("cola")
    board.add([first, job("sst2"), job("rte", 0, first)], stage.rows)
    return board


def test_the_time_left_follows_from_the_work_done(stage: Stage) -> None:
    now = [0.0]
    board = board_of(stage, now)
    cola, sst2, rte = board.jobs
    assert board.left_s is None
    board.begins(cola)
    now[0] = 10.0
    board.moves(Progress(cola, 50, 100, 0.3, 0))
    # 7 batches of 16 examples are 112; 25 batches 400; 4 batches 64: 56 of 576 are done after 10 s.
    assert board.left_s == pytest.approx(10 * (576 - 56) / 56)
    board.ends(cola, result_of(job("cola"), 0.4))
    board.earlier(sst2, result_of(job("sst2"), 0.9))
    assert board.left_s == pytest.approx(10 * 64 / 112), "what an earlier call did says nothing about the pace"
    board.ends(rte, None, "no labels")
    assert (board.left_s, board.ended) == (0.0, 3)


def test_the_table_shows_every_job_where_it_stands(stage: Stage) -> None:
    now = [0.0]
    board = board_of(stage, now)
    cola, sst2, _ = board.jobs
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=30)
    assert isinstance(display_for("x", board, console), LiveTable)
    table = LiveTable("a suite", board, console)
    board.begins(cola)
    board.moves(Progress(cola, 1, 2, 0.25, 0))
    board.begins(sst2)
    now[0] = 65.0
    board.ends(sst2, None, "no labels")
    table.note_once("fewer jobs")
    plain = Console(file=io.StringIO(), width=120)
    plain.print(table.render())
    assert isinstance(plain.file, io.StringIO)
    shown = plain.file.getvalue()
    for words in ("a suite", "cola, seed 0", "0.2500", "1m 05s", "failed: no labels", "waits for cola, seed 0",
                  "fewer jobs", "1 of 3 jobs over, 1 failed, ETA"):  # fmt: skip
        assert words in shown, words


def test_on_a_low_screen_the_jobs_that_run_are_shown(stage: Stage) -> None:
    board = Board(TASKS)
    jobs = [job("cola", seed) for seed in range(40)]
    board.add(jobs, stage.rows)
    board.begins(jobs[30].key)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=14)
    plain = Console(file=io.StringIO(), width=100)
    plain.print(LiveTable("x", board, console).render())
    assert isinstance(plain.file, io.StringIO)
    shown = plain.file.getvalue()
    assert "cola, seed 30" in shown
    assert "and 33 more" in shown
    assert len(shown.splitlines()) <= 14


def test_lines_where_there_is_no_terminal(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    board = board_of(stage, now)
    lines = PlainLines(board)
    cola, sst2, rte = board.jobs
    board.begins(cola)
    lines.update()
    now[0] = 20.0
    board.moves(Progress(cola, 1, 2, None, 0))
    lines.update()
    lines.update()
    board.ends(cola, result_of(job("cola"), 0.4))
    lines.ended(cola)
    board.earlier(sst2, result_of(job("sst2"), None))
    lines.ended(sst2)
    board.ends(rte, None, "no labels")
    lines.ended(rte)
    assert capsys.readouterr().err.splitlines() == [
        "cola, seed 0: 50%; 0 of 3 jobs over, ETA 3m 06s",
        "cola, seed 0: matthews_correlation 0.4000 after 20s; 1 of 3 jobs over, ETA 1m 23s",
        "sst2, seed 0: accuracy undefined, done before",
        "rte, seed 0: failed: no labels; 3 of 3 jobs over, 1 failed",
    ]
