"""``eval.py`` through launchers: the same results, a share that dies loses nothing that was done."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import eval_calls
import pytest
from staged import job

from cramming import faults
from cramming.errors import UserError
from cramming.evaluation import kept
from cramming.evaluation.command import command
from cramming.evaluation.composing import asked
from cramming.evaluation.finished import RESULT
from cramming.evaluation.spread import dealt
from cramming.sweeps import cluster
from cramming.sweeps.cluster import Ended
from cramming.sweeps.command_line import CommandLine

LOCAL = ["hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.cpus_per_task=1"]
RAY = ["hydra/launcher=ray"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run scored on this machine, and the run alone as it was before."""
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


def jobs_of(folder: Path) -> dict[str, Any]:
    """Every job's whole result, without the seconds, and when it was written."""
    found = {}
    for file in suite_dir(folder).glob(f"jobs/*/{RESULT}"):
        values = {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
        found[file.parent.name] = (values, file.stat().st_mtime_ns)
    return found


def same(folder: Path, finished: Path) -> None:
    """What is there is what a call without a launcher leaves."""
    ours, theirs = eval_calls.results(folder), eval_calls.results(finished)
    for one in (ours, theirs):
        one["provenance"].pop("command")
    assert ours == theirs
    assert {key: value for key, (value, _) in jobs_of(folder).items()} == {
        key: value for key, (value, _) in jobs_of(finished).items()
    }
    models = [{file.parent.name for file in suite_dir(place).glob("jobs/*/model")} for place in (folder, finished)]
    assert models[0] == models[1]


class Pretended:
    """A cluster of forks of this process.

    Attributes:
        kill_at: a named point at which they die.
        names: of the shares that ran.
    """

    def __init__(self, kill_at: str = "") -> None:
        self.kill_at, self.names = kill_at, list[str]()

    def __call__(
        self,
        on: object,
        lines: Sequence[CommandLine],
        title: str,
        over: Callable[[CommandLine, Ended], None],
        look: Callable[[], None],
    ) -> None:
        for line in lines:
            self.names.append(line.name)
            code = eval_calls.share(Path(line.words[-1]), self.kill_at)
            look()
            over(line, Ended(code, "" if code == 0 else f"it was killed by signal {-(code or 0)}"))


def test_a_share_that_dies_loses_nothing_that_was_done(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    words = eval_calls.words(folder, *LOCAL, "hydra.launcher.shares=2", "impl.jobs=1")
    # The larger share: a job, and the two that begin with its model.
    dying = Pretended("job-settled:2")
    monkeypatch.setattr(cluster, "run", dying)
    with pytest.raises(UserError, match=r"cola, seed \d: it was killed by signal 9"):
        command(words)
    assert len(dying.names) == 2
    before = jobs_of(folder)
    assert len(before) == 3
    again = Pretended()
    monkeypatch.setattr(cluster, "run", again)
    command(words)
    after = jobs_of(folder)
    assert len(again.names) == 1
    assert {key: after[key] for key in before} == before, "what was done is not done again"
    same(folder, finished)
    assert not list(suite_dir(folder).glob("shares/*/start.safetensors"))
    capsys.readouterr()
    command(words)
    assert len(again.names) == 1, "nothing was left to launch"


def test_jobs_are_dealt_evenly_and_families_stay_together() -> None:
    first, second = job("mnli", 0), job("mnli", 1)
    children = [job("rte", seed, first) for seed in (0, 1, 2)]
    known = {each.key: each for each in (first, second, *children)}
    costs = {each.key: 3.0 if each.task == "mnli" else 1.0 for each in known.values()}
    parts = dealt([first, second, *children], known, costs, 8)
    assert [[each.key for each in part] for part in parts] == [
        [first.key, *(child.key for child in children)],
        [second.key],
    ]
    parts = dealt(children, known, costs, 2)  # what they begin with is there
    assert sorted(len(part) for part in parts) == [1, 2]
    assert dealt([], known, costs, 8) == []


def test_a_job_survives_being_written_down(folder: Path) -> None:
    from dataclasses import asdict

    from cramming.evaluation.share import job_of
    from cramming.recording.strict_json import dumps

    parent = job("mnli")
    child = replace(job("rte", 3, parent), also=("ax",), purpose="search", train_share=0.9)
    for one in (parent, child):
        assert job_of(json.loads(dumps(asdict(one)))) == one
    assert kept.result_of(folder, parent, None) is None


def test_what_a_call_asks_for_does_not_depend_on_its_launcher(folder: Path) -> None:
    pytest.importorskip("submitit")
    config_dir = str(folder / "more")
    plain, launched = (
        asked(["eval=small", "name=whole", *more], config_dir) for more in ([], [*LOCAL, "hydra.launcher.shares=3"])
    )
    assert (plain.config, plain.words) == (launched.config, launched.words)
    assert plain.cluster is None
    assert launched.cluster is not None
    assert launched.cluster.shares == 3
    with pytest.raises(UserError, match=r"hydra/launcher has no option 'slum'; did you mean 'slurm'"):
        asked(["eval=small", "hydra/launcher=slum"], config_dir)
    with pytest.raises(UserError, match=r"unknown option hydra.launcher.share"):
        asked(["eval=small", *LOCAL, "hydra.launcher.share=3"], config_dir)


@pytest.mark.scale
@pytest.mark.parametrize("launcher", [LOCAL, RAY], ids=["local", "ray"])
def test_a_real_launcher_does_what_this_machine_does(
    folder: Path, finished: Path, launcher: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray" if launcher == RAY else "submitit")
    words = eval_calls.words(folder, *launcher, "hydra.launcher.shares=2", "impl.jobs=1")
    monkeypatch.setenv(faults.VARIABLE, "job-settled:2")  # of a share: this process looked at it long ago
    with pytest.raises(UserError, match=r"cola, seed \d: it was killed by signal 9"):
        command(words)
    monkeypatch.delenv(faults.VARIABLE)
    before = jobs_of(folder)
    assert len(before) == 3
    command(words)
    assert {key: jobs_of(folder)[key] for key in before} == before
    same(folder, finished)
