"""Killed at any moment, the same command again ends with the same results, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import eval_calls
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Named points that a call of two tasks with two seeds each passes, and how often in one process at least.
POINTS = {
    "suite-write": 1,
    "encoded-fsync": 8,
    "encoded-rename": 4,
    "resolved-write": 1,
    "job-begun": 2,
    "saved-fsync": 2,
    "saved-rename": 2,
    "job-trained": 2,
    "job-about-write": 2,
    "job-result-write": 2,
    "job-result-fsync": 2,
    "job-result-rename": 2,
    "job-model-drop-rename": 1,
    "job-model-dropped": 1,
    "job-settled": 4,
    "baselines-write": 1,
    "results-write": 3,
    "results-rename": 3,
}
SAMPLE = ("job-model-dropped:1",)
IN_WORKERS = ("job-begun", "saved", "job-trained", "job-about", "job-result")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run scored by a call that nobody interrupted, and the run alone as it was before."""
    place = tmp_path_factory.mktemp("finished")
    eval_calls.make_run(place)
    shutil.copytree(place, place / "before")
    assert eval_calls.run(eval_calls.words(place), said=place / "said.txt") == 0, (place / "said.txt").read_text()
    return place


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """The run, not scored yet."""
    shutil.copytree(finished / "before", tmp_path, dirs_exist_ok=True)
    return tmp_path


def suite_dir(folder: Path) -> Path:
    """Where results are."""
    return folder / "outputs" / "whole" / "eval" / "small"


def evaluations(folder: Path) -> dict[str, Any]:
    """Every job's whole result, without the seconds."""
    found = {}
    for file in suite_dir(folder).glob("jobs/*/result.json"):
        found[file.parent.name] = {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
    return found


def same(folder: Path, finished: Path) -> None:
    """What is there is what a call that nobody interrupted leaves."""
    ours, theirs = eval_calls.results(folder), eval_calls.results(finished)
    for one in (ours, theirs):
        one["provenance"].pop("command")  # it names the folder
    assert ours == theirs
    assert evaluations(folder) == evaluations(finished)
    for name in ("results.csv", "suite.json", "resolved.json"):
        assert (suite_dir(folder) / name).read_bytes() == (suite_dir(finished) / name).read_bytes(), name
    models = [{file.parent.name for file in suite_dir(place).glob("jobs/*/model")} for place in (folder, finished)]
    assert models[0] == models[1]
    left = [file for file in suite_dir(folder).rglob("*") if file.name.endswith(".part") or "saving" in file.name]
    assert left == []
    assert not (suite_dir(folder) / "start.safetensors").exists()


def test_the_scores_are_such_that_a_difference_would_show(finished: Path) -> None:
    tasks = eval_calls.results(finished)["tasks"]
    assert len({json.dumps(one["evaluations"]) for one in evaluations(finished).values()}) == 4
    assert all(seed == 1.0 for seed in tasks["sst2"]["accuracy"]["seeds"])
    assert tasks["cola"]["matthews_correlation"]["mean"] > 0


def interrupted(finished: Path, folder: Path, point: str) -> None:
    """Kill a call at a point, give the same command again, and hold it against the one that was never killed."""
    code = eval_calls.run(eval_calls.words(folder), kill_at=point)
    if point.startswith(IN_WORKERS):
        assert code == 2, f"a worker that is killed at {point} fails its job, and the others go on"
        assert eval_calls.results(folder)["failed"]
    else:
        assert code == -signal.SIGKILL, f"the call never passed {point}"
    assert eval_calls.run(eval_calls.words(folder)) == 0
    same(folder, finished)


@pytest.mark.parametrize("point", SAMPLE)
def test_killed_at_a_named_point(finished: Path, folder: Path, point: str) -> None:
    interrupted(finished, folder, point)


@pytest.mark.full
@pytest.mark.parametrize("point", [f"{name}:{nth}" for name, times in POINTS.items() for nth in range(1, times + 1)])
def test_killed_at_every_named_point(finished: Path, folder: Path, point: str) -> None:
    interrupted(finished, folder, point)


def killed_when(folder: Path, jobs: int, later_s: float) -> None:
    """Kill a call a moment after so many of its jobs are done; its workers end by themselves."""
    process = eval_calls.start(eval_calls.words(folder))
    eval_calls.wait_for(lambda: len(evaluations_there(folder)) >= jobs or not process.is_alive())
    time.sleep(later_s)
    workers = children(process.pid)
    process.kill()  # it may have ended by itself
    process.join()
    eval_calls.wait_for(lambda: not any(alive(worker) for worker in workers))


def evaluations_there(folder: Path) -> list[Path]:
    """Jobs that are done, whole or not."""
    return list(suite_dir(folder).glob("jobs/*/result.json"))


def children(process: int) -> list[int]:
    """Processes that one has started."""
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def told(processes: list[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def alive(process: int) -> bool:
    """Whether a process is there and does something."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_at_random_moments(finished: Path, folder: Path) -> None:
    draw = random.Random(2)
    for jobs in (0, 2):  # before anything is done, and with the second task under way
        killed_when(folder, jobs, draw.uniform(0, 0.2))
    assert eval_calls.run(eval_calls.words(folder)) == 0
    same(folder, finished)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_many_random_moments(finished: Path, folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(4):
        killed_when(folder, draw.randint(0, 4), draw.uniform(0, 0.6))
    assert eval_calls.run(eval_calls.words(folder)) == 0
    same(folder, finished)


def test_ctrl_c_and_sigterm_keep_what_is_done(finished: Path, folder: Path) -> None:
    """Every job that is over is kept, no process is left, and nothing is done twice."""
    said = folder / "said.txt"
    times: dict[Path, int] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        for _ in range(5):
            process = eval_calls.start(eval_calls.words(folder), said=said)
            eval_calls.wait_for(lambda: len(evaluations_there(folder)) > len(times) or not process.is_alive())  # noqa: B023
            workers = children(process.pid)
            told(workers, signal.SIGSTOP)  # no job ends from here on
            if len(evaluations_there(folder)) < len(evaluations_there(finished)):
                break
            told(workers, signal.SIGCONT)
            process.join(600)  # a busy machine let all jobs end before this process saw the first: again
            shutil.rmtree(suite_dir(folder))
            times = {}
        os.kill(process.pid, number)
        process.join(600)
        assert process.exitcode == 128 + number
        assert "the same command goes on" in said.read_text()
        assert not any(alive(worker) for worker in workers)
        assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in times.items())
        times = {file: file.stat().st_mtime_ns for file in evaluations_there(folder)}
    assert eval_calls.run(eval_calls.words(folder)) == 0
    same(folder, finished)
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in times.items())


def test_a_finished_suite_does_nothing_and_says_so(finished: Path) -> None:
    times = {file: file.stat().st_mtime_ns for file in evaluations_there(finished)}
    before = eval_calls.results(finished)
    assert eval_calls.run(eval_calls.words(finished), said=finished / "again.txt") == 0
    assert (finished / "again.txt").read_text().count("done before") == 4
    assert eval_calls.results(finished) == before
    assert {file: file.stat().st_mtime_ns for file in evaluations_there(finished)} == times


def test_another_call_on_the_same_suite_is_refused_in_one_line(finished: Path, tmp_path: Path) -> None:
    from cramming import folder as folders

    with folders.held(suite_dir(finished)):
        assert eval_calls.run(eval_calls.words(finished), said=tmp_path / "said.txt") == 2
    lines = (tmp_path / "said.txt").read_text().splitlines()
    assert lines[-1].startswith("error: another process is working on")


@pytest.mark.full
def test_as_a_person_runs_it(finished: Path, folder: Path) -> None:
    """Workers that are started anew compute what forked ones do."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *eval_calls.words(folder)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SST-2" in done.stdout or "sst2" in done.stdout
    same(folder, finished)
