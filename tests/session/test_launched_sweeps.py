"""Sweeps through launchers: the same runs as without, whatever dies is named, and the same command completes them.

Real jobs in processes of their own: submitit's local executor, a Ray of this machine, and submitit's executor for Slurm
on a stand-in for Slurm's commands.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cramming import faults, resolve
from cramming.cli import pretraining
from cramming.errors import UserError
from cramming.session import pretrain

from . import runs, stand_in_slurm

PROGRAM = Path(__file__).resolve().parents[2] / "pretrain_bert.py"
LOCAL = ["hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.cpus_per_task=1"]
RAY = ["hydra/launcher=ray"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=600"]


def sweep(folder: Path, launcher: list[str], *words: str) -> None:
    """A sweep from this process; its jobs are processes of their own."""
    package = "ray" if launcher == RAY else "submitit"
    pytest.importorskip(package)
    pretraining(pretrain, ["-m", *runs.command(folder, "name=s"), *words, *launcher])


def table(folder: Path) -> dict[str, list[str]]:
    """The cells of each run's line."""
    lines = (folder / "outputs" / "_sweeps" / "s.md").read_text().splitlines()[4:]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def trained_at(folder: Path, name: str) -> int:
    """When its last checkpoint was written."""
    manifests = (folder / "outputs" / name / "checkpoints").glob("step=*/manifest.json")
    return max(file.stat().st_mtime_ns for file in manifests)


def one_dies_and_is_repeated(folder: Path, launcher: list[str], monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.setenv(faults.VARIABLE, "step:10")  # only the longer run comes there
    with pytest.raises(UserError, match=r"1 of 2 jobs failed, the first with: it was killed by signal 9"):
        sweep(folder, launcher, "budget=8,12")
    lines = table(folder)
    assert lines["s-budget=8"][0] == "8"
    assert lines["s-budget=8"][3] == "budget spent"
    assert lines["s-budget=12"][3].startswith("failed: it was killed by signal 9")
    monkeypatch.delenv(faults.VARIABLE)
    before = trained_at(folder, "s-budget=8")
    sweep(folder, launcher, "budget=8,12")
    assert {name: line[3] for name, line in table(folder).items()} == {
        "s-budget=8": "budget spent",
        "s-budget=12": "budget spent",
    }
    assert trained_at(folder, "s-budget=8") == before, "it was not run again"
    assert runs.same(runs.weights(folder, "s-budget=12"), runs.weights(whole, "whole"))


def test_a_job_that_died_is_named_and_repeated_by_the_same_command(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_dies_and_is_repeated(folder, LOCAL, monkeypatch, finished)


@pytest.mark.scale
def test_the_same_on_ray(folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_dies_and_is_repeated(folder, RAY, monkeypatch, finished)


def test_ray_runs_what_would_have_run_here(folder: Path, finished: Path) -> None:
    """And a sweep of one is the run by its own name."""
    sweep(folder, RAY)
    assert runs.same(runs.weights(folder, "s"), runs.weights(finished, "whole"))
    assert table(folder)["s"][3] == "budget spent"


def start(folder: Path, words: list[str], environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """A sweep in a process of its own."""
    line = [sys.executable, str(PROGRAM), "-m", *runs.command(folder, "name=s"), *words]
    env = {**os.environ, **(environment or {})}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def processes(word: str, folder: Path) -> list[int]:
    """Processes of this test whose command line has a word."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in line.split(b"\0") and str(folder).encode() in line:
            found.append(int(place.name))
    return found


def checkpoint_of(folder: Path, name: str) -> bool:
    """Whether it has begun to train and to save."""
    return any((folder / "outputs" / name / "checkpoints").glob("step=*/manifest.json"))


@pytest.mark.scale
@pytest.mark.parametrize("launcher", [LOCAL, RAY], ids=["local", "ray"])
def test_a_sweep_that_is_told_to_stop_saves_every_job(folder: Path, launcher: list[str]) -> None:
    pytest.importorskip("ray" if launcher == RAY else "submitit")
    words = ["seed=0,1", "budget=100000", *launcher]
    process = start(folder, words)
    try:
        runs.wait_for(lambda: checkpoint_of(folder, "s-seed=0"))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopping: the jobs that are running save first" in said
    log = (folder / "outputs" / "_sweeps" / "s" / "s-seed=0.log").read_text()
    assert "the same command again goes on from there" in log


@pytest.mark.scale
def test_the_process_around_a_job_may_die_too(folder: Path) -> None:
    pytest.importorskip("submitit")
    process = start(folder, ["budget=100000", *LOCAL])
    try:
        runs.wait_for(lambda: checkpoint_of(folder, "s"))
        for pid in (*processes("submitit.core._submit", folder), *processes("name='s'", folder)):
            os.kill(pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert "its process is gone (job" in said
    assert table(folder)["s"][3].startswith("failed: its process is gone")


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for Slurm."""
    place = tmp_path_factory.mktemp("slurm")
    for key, value in stand_in_slurm.install(place).items():
        monkeypatch.setenv(key, value)
    yield place
    stand_in_slurm.end_all(place)


def test_what_slurm_is_asked_for(folder: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch script of an array, and what a refusal looks like."""
    pytest.importorskip("submitit")
    (slurm / "bin" / "sbatch").write_text(
        '#!/bin/sh\ncp "$1" "$STAND_IN_SLURM/asked"\necho "sbatch: error: no" >&2\nexit 1\n'
    )
    fields = ["partition=gpu", "account=me", "gpus_per_node=2", "mem_gb=20", "array_parallelism=3", "comment='a b'",
              "setup=['module load cuda']"]  # fmt: skip
    more = "+hydra.launcher.additional_parameters.nice=7"
    with pytest.raises(UserError, match=r"sbatch refused: .*no"):
        sweep(folder, [*SLURM, *(f"hydra.launcher.{field}" for field in fields), more], "seed=0,1,2,3")
    lines = (slurm / "asked").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {
        "partition=gpu", "account=me", "gpus-per-node=2", "mem=20GB", "cpus-per-task=1", "comment='a b'", "nice=7",
        "array=0-3%3", "time=600", "signal=USR2@180", "requeue", "job-name=s",
    } <= asked  # fmt: skip
    assert "module load cuda" in lines


@pytest.mark.scale
def test_a_preempted_job_saves_is_requeued_and_goes_on(folder: Path, slurm: Path) -> None:
    pytest.importorskip("submitit")
    words = ["seed=0,1", "budget=600", "impl.save_every_steps=20"]
    process = start(folder, [*words, *SLURM])
    try:
        runs.wait_for(lambda: checkpoint_of(folder, "s-seed=1"))
        stand_in_slurm.preempt(slurm, slurm / "job-1_1.json")
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert {line[3] for line in table(folder).values()} == {"budget spent"}
    about = [json.loads(job.read_text()) for job in stand_in_slurm.jobs(slurm)]
    assert [(job["state"], job["began"]) for job in about] == [("COMPLETED", 1), ("COMPLETED", 2)]
    assert "saved at step" in (folder / "outputs" / "_sweeps" / "s" / "s-seed=1.log").read_text()
    here = folder / "here"
    here.mkdir()
    (here / "text.txt").write_text((folder / "text.txt").read_text())
    assert runs.run([*runs.command(here, "name=s"), *words, "-m"]) == 0
    for name in ("s-seed=0", "s-seed=1"):
        assert runs.same(runs.weights(folder, name), runs.weights(here, name))


@pytest.mark.scale
def test_a_sweep_s_prices_are_measured_once_and_by_a_job_of_its_own(folder: Path) -> None:
    pytest.importorskip("submitit")
    words = [word for word in runs.command(folder, "name=s") if word not in ("rst=steps", "budget=12")]
    pretraining(pretrain, ["-m", *words, "seed=0,1", "rst=calibrate", "rst.within_s=1", "budget=1s", *LOCAL])
    jobs = folder / "outputs" / "_sweeps" / "s"
    assert json.loads((jobs / "measuring.json").read_text())["code"] == 0
    tables = list((folder / "outputs" / "_rst").glob("*.json"))
    assert len(tables) == 1
    for name in ("s-seed=0", "s-seed=1"):
        assert (folder / "outputs" / name / "rst.json").read_text() == (
            folder / "outputs" / "s-seed=0" / "rst.json"
        ).read_text()
        assert "measuring what this machine takes" not in (jobs / f"{name}.log").read_text()
    assert resolve.JOBS_AT_ONCE not in os.environ
