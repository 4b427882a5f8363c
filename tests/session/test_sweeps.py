"""Sweeps: what they run, that nothing is run twice or lost, and what jobs beside each other must not spoil."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra.core.plugins import Plugins

from cramming import calibration, resolve
from cramming.cli import compose, load_schemas, pretraining
from cramming.config import PretrainConfig, check_name
from cramming.errors import UserError
from cramming.sweeps import beside, measuring
from cramming.sweeps import launch as launch_module
from cramming.sweeps.jobs import expand
from cramming.sweeps.launch import Launch, launching
from cramming.sweeps.outcomes import finished
from rst.calibration import Timing

from . import runs
from .pretended import WORDS, Pretended


def test_a_sweep_may_be_over_anything_and_every_job_has_a_name_of_its_own() -> None:
    words = [
        "method=none,[layer_stacking,layer_dropping],'layer_dropping'", "train/optim=adamw,lion",
        "train.optim.lr=1e-3,7e-4", "data.seq_length=64", "data.max_tokens=9000,null",
        "train.optim.betas=[0.9,0.98],[0.9,0.99]",
    ]  # fmt: skip
    load_schemas()
    with launching([*WORDS, *words[:3]], None) as launch:
        found = expand("s", [*WORDS, *words], launch.loader)
        job = launch.composed(*next(pair for pair in found if "stacking" in pair[0] and "lion" in pair[0]))
    assert len(found) == len({name for name, _ in found}) == 3 * 2 * 2 * 2 * 2
    assert all(check_name(name) == name for name, _ in found)
    assert job.config is not None
    assert list(job.config.method) == ["layer_stacking", "layer_dropping"]
    assert (job.config.name, job.config.train.optim.kind, job.config.data.seq_length) == (job.name, "lion", 64)
    assert job.name.startswith(
        "s-data.max_tokens=9000,method=layer_stacking+layer_dropping,train.optim.betas=0.9+0.98,"
    )


def test_what_makes_no_sweep_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(UserError) as caught:
            pretraining(Pretended(), ["-m", "name=s", f"base_dir={tmp_path}", *WORDS, *words])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "two jobs of this sweep would both be named s-data.path=ab" in refused("data.path='a b','a;b'")
    assert "python -m cramming.search" in refused("train.optim.lr=interval(1e-4,1e-3)")
    assert "none of the 2 jobs can be used, the first: train.batch_size=0" in refused("train.batch_size=0,-1")
    assert "did you mean 'train.optim.lr'" in refused("train.optim.lrr=1,2")
    assert "method has no option 'nonsense'" in refused("method=none,nonsense")
    assert "hydra/sweeper=" in refused("hydra/sweeper=basic")
    assert "--resolve is not for sweeps" in refused("--resolve")
    assert "is no folder" in refused("--config-dir", "absent")
    assert "cannot be a run's name" in refused("name=../s")
    with pytest.raises(UserError, match="add -m"):
        pretraining(Pretended(), [*WORDS, "--dry"])
    assert list(tmp_path.iterdir()) == []


def test_a_dry_sweep_says_what_it_costs_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Pretended()
    words = ["-m", "name=s", f"base_dir={tmp_path}", *WORDS, "seed=0,1"]
    pretraining(job, [*words, "--dry"])
    assert "sweep s: 2 runs, 10 steps by rst=steps" in capsys.readouterr().out
    pretraining(job, [*words, "--dry", "rst=rtx3090", "budget=90m,24", "stop_at=30m"])
    assert "sweep s: 4 runs, 2.00 device-hours by rst=rtx3090" in capsys.readouterr().out
    pretraining(job, [*words, "--dry", "rst=rtx3090", "budget=90s"])
    assert "sweep s: 2 runs, 3.00 device-minutes by rst=rtx3090" in capsys.readouterr().out
    assert (job.seen, list(tmp_path.iterdir())) == ([], [])


def test_finished_jobs_are_passed_over_and_failed_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def second_fails(calls: int) -> None:
        if calls == 1:
            raise ZeroDivisionError("by chance")

    words = ["-m", "name=s", f"base_dir={tmp_path}", *WORDS, "seed=0,1"]
    with pytest.raises(UserError, match=r"1 of 2 jobs failed, the first with: ZeroDivisionError: by chance"):
        pretraining(Pretended(before=second_fails), words)
    table = (tmp_path / "_sweeps" / "s.md").read_text().splitlines()
    assert table[-2] == "| s-seed=0 | 5 | 5.0000 | 5 steps | budget spent |"
    assert table[-1] == "| s-seed=1 | - | - | - | failed: ZeroDivisionError: by chance |"
    capsys.readouterr()
    again = Pretended(loss=lambda config: 4.0)
    pretraining(again, words)
    shown = capsys.readouterr().out
    assert "2 runs, 10 steps by rst=steps, 1 of them finished, 5 steps left" in shown
    assert "s-seed=0: finished before, passed over" in shown
    assert again.names == ["s-seed=1"]
    table = (tmp_path / "_sweeps" / "s.md").read_text().splitlines()
    assert [line.split("|")[3].strip() for line in table[-2:]] == ["5.0000", "4.0000"]


def test_what_a_finished_run_is(tmp_path: Path) -> None:
    def config(*words: str) -> PretrainConfig:
        return compose(["name=a", f"base_dir={tmp_path}", *WORDS, *words])

    assert finished(config()) is None
    Pretended()(config("stop_at=3"))
    assert finished(config("stop_at=3")) is not None
    assert finished(config("stop_at=2")) is not None
    assert finished(config()) is None, "it has not spent its budget"
    assert finished(config("stop_at=3", "resume=false")) is None
    with pytest.raises(UserError, match="seed was 0, now 1"):
        finished(config("stop_at=3", "seed=1"))
    summary = tmp_path / "a" / "summary.json"
    stopped = {**json.loads(summary.read_text()), "end_reason": "early stop: loss 7 above 6 after 1 h"}
    summary.write_text(json.dumps(stopped))
    assert finished(config()) is not None, "it has ended before its budget"
    (tmp_path / "a" / "checkpoints" / "step=00000004").mkdir()
    assert finished(config("stop_at=3")) is None, "it has gone on since it was summarised"
    summary.write_text("{")
    assert finished(config("stop_at=3")) is None


def test_a_sweep_that_was_killed_goes_on_where_it_was(folder: Path, finished_sweep: Path) -> None:
    words = [*runs.command(folder, "name=s"), "-m", "seed=0,1"]
    assert runs.run(words, kill_at="step:18") == -signal.SIGKILL
    first = folder / "outputs" / "s-seed=0" / "checkpoints" / "step=00000012" / "manifest.json"
    trained_at = first.stat().st_mtime_ns
    assert not (folder / "outputs" / "s-seed=1" / "summary.json").exists()
    assert runs.run(words) == 0
    assert first.stat().st_mtime_ns == trained_at, "it was not trained again"
    for name in ("s-seed=0", "s-seed=1"):
        assert runs.same(runs.weights(folder, name), runs.weights(finished_sweep, name))
    assert (folder / "outputs" / "_sweeps" / "s.md").read_text().count("budget spent") == 2


def test_the_same_sweep_started_twice_shares_its_jobs(tmp_path: Path) -> None:
    words = ["-m", "name=s", f"base_dir={tmp_path}", *WORDS, "seed=0,1"]

    def job(config: PretrainConfig) -> None:
        from cramming import folder

        with folder.held(Path(config.base_dir) / str(config.name)):
            done(config)

    done = Pretended()
    (tmp_path / "s-seed=0").mkdir()
    with FileLock(tmp_path / "s-seed=0" / ".lock"):
        pretraining(job, words)
    assert done.names == ["s-seed=1"]
    assert "| s-seed=0 | - | - | - | at work elsewhere |" in (tmp_path / "_sweeps" / "s.md").read_text()


def test_several_at_once_end_as_one_after_another_would(folder: Path, finished_sweep: Path) -> None:
    """Each with its share of the cores, and the threads a run began with stay its own."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    shared = [word for word in runs.command(folder, "name=s") if not word.startswith("impl.threads")]
    words = [*shared, "-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, str(Path(__file__).resolve().parents[2] / "pretrain_bert.py"), *words]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sum(line.endswith(": ends") for line in shown.splitlines()) == 2
    threads = max(1, resolve.available_cores() // 2)
    for name in ("s-seed=0", "s-seed=1"):
        place = folder / "outputs" / name
        assert json.loads((place / "resolved.json").read_text())["threads"] == threads
        if threads == 1:
            assert runs.same(runs.weights(folder, name), runs.weights(finished_sweep, name))
        assert "budget spent" in (place / "summary.json").read_text()


def test_prices_are_measured_before_jobs_run_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    job = Pretended(before=lambda calls: order.append(f"job, refresh={calls}"))
    monkeypatch.setattr(Launch, "at_once", 2)
    monkeypatch.setattr(Launch, "beside", lambda self, total: beside.sharing(1))
    monkeypatch.setattr(launch_module, "measure_first", lambda configs: order.append([c.name for c in configs]))
    pretraining(job, ["-m", "name=s", f"base_dir={tmp_path}", *WORDS, "seed=0,1"])
    assert order == [["s-seed=0", "s-seed=1"], "job, refresh=0", "job, refresh=1"]
    with pytest.raises(UserError, match="rst=wallclock pays for the time that passes"):
        pretraining(job, ["-m", "name=t", f"base_dir={tmp_path}", *WORDS, "seed=0,1", "rst=wallclock", "budget=1s"])


def test_a_refreshed_table_is_measured_once_for_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables in one sweep would price its runs differently."""
    measured: list[list[str]] = []
    monkeypatch.setattr(
        launch_module, "measure_first", lambda configs: measured.append([c.rst.refresh for c in configs])
    )
    job = Pretended()
    words = ["-m", "name=s", f"base_dir={tmp_path}", *WORDS, "seed=0,1", "rst=calibrate", "budget=5s"]
    pretraining(job, [*words, "rst.refresh=true"])
    assert measured == [[True, True]]
    assert [config.rst.refresh for config in job.seen] == [False, False]


def test_one_table_for_all_that_have_the_same_prices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(name: str, *words: str) -> PretrainConfig:
        own = [*runs.command(folder, f"name={name}"), "rst=calibrate", "budget=1s", *words]
        return compose([word for word in own if word not in ("rst=steps", "budget=12")])

    asked: list[int] = []

    def measure(probes: Any, **_: Any) -> dict[Any, Timing]:
        asked.append(len(probes))
        return {w: Timing(1e-3 * (1 + w.layers) * (3 if w.kind == "forward_backward" else 1), 0, 9) for w in probes}

    monkeypatch.setattr(calibration, "measure", measure)
    a, b, lion = config("a"), config("b", "seed=3", "train.optim.lr=1"), config("c", "train/optim=lion")
    assert measuring.kinds_of_prices([a, b, lion]) == [b, lion]
    measuring.measure_all([a, lion])
    assert len(asked) == 2, "the passes once, and lion's update"
    assert len(list((folder / "outputs" / "_rst").glob("*.json"))) == 2
    assert not (folder / "outputs" / "a").exists()
    (folder / "outputs" / "a").mkdir()
    (folder / "outputs" / "a" / "rst.json").touch()
    assert measuring.kinds_of_prices([a]) == [], "a run keeps the prices it began with"


def _job_of_a_launcher(environment: dict[str, str], place: str) -> None:
    os.environ.update(environment)
    with beside.taking_part() as may_begin:
        Path(place, f"began={may_begin}").touch()
        try:
            while may_begin:
                time.sleep(0.01)
        except KeyboardInterrupt:
            Path(place, "saved").touch()


def test_jobs_beside_each_other_are_told_to_stop_and_none_begins_after(tmp_path: Path) -> None:
    places = [tmp_path / "running", tmp_path / "late"]
    for place in places:
        place.mkdir()

    def start(place: Path) -> Any:
        given = {key: value for key, value in os.environ.items() if key.startswith("CRAMMING_")}
        process = runs._CONTEXT.Process(target=_job_of_a_launcher, args=(given, str(place)))
        process.start()
        return process

    before = signal.getsignal(signal.SIGTERM)

    def sweep() -> None:
        with beside.sharing(2):
            running = start(places[0])
            runs.wait_for((places[0] / "began=True").exists)
            os.kill(os.getpid(), signal.SIGTERM)
            running.join(600)
            start(places[1]).join(600)

    with pytest.raises(KeyboardInterrupt) as ended:
        sweep()
    assert ended.value.args == (128 + signal.SIGTERM,)
    assert (places[0] / "saved").exists()
    assert [path.name for path in places[1].iterdir()] == ["began=False"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert resolve.JOBS_AT_ONCE not in os.environ


def test_each_job_takes_the_gpu_with_the_fewest_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    locks = [beside.take_device(tmp_path, 2) for _ in range(3)]
    assert taken == [0, 1, 0]
    locks[1].release()
    beside.take_device(tmp_path, 2)
    assert taken[3:] == [1]


def test_a_killed_process_of_a_launcher_is_a_failed_job_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Plugins.instantiate_launcher

    def fragile(*given: Any, **options: Any) -> Any:
        launcher = made(*given, **options)
        launch = launcher.launch

        def killed(job_overrides: Any, initial_job_idx: int) -> None:
            launch(job_overrides[:1], initial_job_idx)
            raise BrokenProcessPool("out of memory")

        monkeypatch.setattr(launcher, "launch", killed)
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", fragile)
    with pytest.raises(UserError, match="1 of 2 jobs failed, the first with: a job's process was killed"):
        pretraining(Pretended(), ["-m", "name=s", f"base_dir={tmp_path}", *WORDS, "seed=0,1"])
    assert "| s-seed=0 | 5 |" in (tmp_path / "_sweeps" / "s.md").read_text()
