"""Launchers: every configuration composes, what cannot work is refused in a line, and what runs elsewhere is a command.

Sweeps that really run through them are in ``tests/session/test_launchers_sweeps.py``.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cramming import resolve
from cramming.cli import CONFIG_DIR, compose_tree, load_schemas, pretraining
from cramming.errors import UserError
from cramming.sweeps import cluster, command_line
from cramming.sweeps.command_line import CommandLine
from cramming.sweeps.launch import launching
from cramming.sweeps.outcomes import outcome_of

LAUNCHERS = sorted(file.stem for file in (CONFIG_DIR / "hydra" / "launcher").glob("*.yaml"))
WORDS = ["-m", "name=s", "arch=bert_tiny", "data=local", "data.path=x", "rst=steps", "budget=5", "seed=0,1"]


def launcher(name: str, *words: str) -> Any:
    """The composed node of a launcher."""
    from hydra import compose, initialize_config_dir

    load_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        tree = compose("pretrain", [f"hydra/launcher={name}", *words], return_hydra_config=True)
    return tree.hydra.launcher


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """As if a package were not installed."""
    known = importlib.util.find_spec
    for kind in ("slurm", "on_ray"):
        monkeypatch.setattr(f"cramming.sweeps.{kind}.find_spec", lambda name: None if name == module else known(name))


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("root", ["pretrain", "evaluate"])
def test_every_launcher_composes_and_says_what_it_is(name: str, root: str) -> None:
    from cramming.evaluation.config import register_schemas

    load_schemas()
    register_schemas()
    compose_tree([f"hydra/launcher={name}"], root)
    file = CONFIG_DIR / "hydra" / "launcher" / f"{name}.yaml"
    assert file.read_text().startswith("# ")
    own = OmegaConf.load(file)
    assert launcher(name) == own
    kinds: dict[str, Any] = {"slurm": "cramming.sweeps.slurm.Slurm", "ray": "cramming.sweeps.on_ray.OnRay"}
    if name in kinds:
        module, _, kind = kinds[name].rpartition(".")
        defaults = OmegaConf.structured(getattr(importlib.import_module(module), kind))
        assert {key: value for key, value in own.items() if key != "_target_"} == defaults


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("submitit", "slurm", "pip install 'budget-bert[cluster]'"),
        ("ray", "ray", "pip install 'budget-bert[cluster]'"),
    ],
)
def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, said: str
) -> None:
    without(monkeypatch, module)
    with pytest.raises(UserError) as caught:
        pretraining(lambda config: None, [*WORDS, f"base_dir={tmp_path}", f"hydra/launcher={name}"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_work_is_refused_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(UserError) as caught:
            pretraining(lambda config: None, [*WORDS, f"base_dir={tmp_path}", *words])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "hydra/launcher has no option 'slum'; did you mean 'slurm'?" in refused("hydra/launcher=slum")
    if importlib.util.find_spec("submitit") is not None:
        which = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: None if name == "sbatch" else which(name))
        said = refused("hydra/launcher=slurm")
        assert "there is no sbatch on this machine" in said
        assert "hydra.launcher.cluster=local" in said
    slurm, ray = ["hydra/launcher=slurm", "hydra.launcher.cluster=local"], ["hydra/launcher=ray"]
    assert "hydra.launcher.cluster=lokal is unknown; did you mean 'local'?" in refused(
        slurm[0], "hydra.launcher.cluster=lokal"
    )
    assert "hydra.launcher.cpus_per_task=0 must be 1 or more" in refused(*slurm, "hydra.launcher.cpus_per_task=0")
    assert "hydra.launcher.timeout_min" in refused(*slurm, "hydra.launcher.timeout_min=soon")
    assert "hydra.launcher.partitio" in refused(*slurm, "hydra.launcher.partitio=x")
    assert "hydra.launcher.num_cpus=0 must be 1 or more" in refused(*ray, "hydra.launcher.num_cpus=0")
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_without_m_would_train_here_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hydra/launcher= is for sweeps: add -m"):
        pretraining(lambda config: None, [*WORDS[1:-1], f"base_dir={tmp_path}", "hydra/launcher=ray"])


def test_what_a_job_of_a_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words a person could type; of a checkpoint that gives the architecture, the checkpoint's name alone."""
    monkeypatch.chdir(tmp_path)
    load_schemas()
    words = [*WORDS[1:], "hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.cpus_per_task=3"]
    pytest.importorskip("submitit")
    seen: list[CommandLine] = []
    monkeypatch.setattr(cluster, "run", lambda on, lines, title: seen.extend(lines) or [cluster.Ended(0)] * len(lines))
    with launching(words, None) as launch:
        jobs = [launch.composed(f"s-seed={seed}", ["arch=checkpoint", f"seed={seed}", f"name='s-seed={seed}'"][1:])
                for seed in (0, 1)]  # fmt: skip
        launch.run(jobs, lambda config: None, 2)
        assert launch._words(["arch=checkpoint", "seed=0"]) == ["seed=0"]
    assert [line.words for line in seen] == [
        (sys.executable, str(CONFIG_DIR.parent / "pretrain_bert.py"), f"seed={seed}", f"name='s-seed={seed}'")
        for seed in (0, 1)
    ]
    assert {(line.place, line.folder, line.cores) for line in seen} == {
        (str(tmp_path), str(tmp_path / "outputs" / "_sweeps" / "s"), 3)
    }


def line(folder: Path, code: str, cores: int = 1) -> CommandLine:
    return CommandLine("job", (sys.executable, "-c", code), str(folder), str(folder), cores)


def ended(of: CommandLine) -> dict[str, Any]:
    return dict(json.loads(of.ended.read_text()))


def test_a_command_leaves_its_exit_code_and_what_it_ended_with(tmp_path: Path) -> None:
    fine = line(tmp_path, "print('fine')")
    assert fine() == 0
    assert (ended(fine), fine.log.read_text()) == ({"code": 0, "said": ""}, "fine\n")
    wrong = line(tmp_path, "import sys; print('error: oh', flush=True); sys.exit('and more')")
    assert wrong() == 1
    assert ended(wrong) == {"code": 1, "said": "oh"}
    assert fine.log.read_text().startswith("fine\n"), "an earlier attempt's words stay"
    killed = line(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert killed() == -9


def test_a_command_is_told_to_save_and_signals_of_a_scheduler_do_not_reach_it(tmp_path: Path) -> None:
    """SIGTERM is passed on; SIGUSR2, which a scheduler may send to every process, would end Python."""
    code = (
        "import os, signal, sys, time\n"
        "def save(*_): print('saved', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    told = line(tmp_path, code)
    assert told() == 143
    assert ended(told) == {"code": 143, "said": "saved"}
    assert cluster.Ended(**ended(told)).stopped
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_threads_come_from_the_cores_a_job_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scheduler pins a job it sees its own cores alone; where it does not, others are beside it."""
    assert command_line.JOBS_AT_ONCE == resolve.JOBS_AT_ONCE
    code = f"import os; print(os.environ.get('{resolve.JOBS_AT_ONCE}'))"
    for seen, cores, threads in ((16, 16, 16), (16, 4, 4), (16, 5, 5), (2, 8, 2)):
        monkeypatch.setenv(resolve.JOBS_AT_ONCE, "7")  # of a sweep around it, on another machine
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, seen=seen: set(range(seen)))
        job = CommandLine(f"{seen}-{cores}", (sys.executable, "-c", code), str(tmp_path), str(tmp_path), cores)
        assert job() == 0
        monkeypatch.setenv(resolve.JOBS_AT_ONCE, job.log.read_text().strip())
        assert resolve.available_cores() // resolve.jobs_at_once() == threads


def test_what_becomes_of_a_job_is_told_by_how_its_command_ended() -> None:
    assert outcome_of(cluster.Ended(0)).state == "trained"
    assert outcome_of(cluster.Ended(143)).state == outcome_of(cluster.Ended(130)).state == "stopped"
    assert outcome_of(cluster.Ended(2, "another process is working on x; wait")).state == "at work elsewhere"
    died = outcome_of(cluster.Ended(None, "its process is gone"))
    assert (died.state, died.said) == ("failed", "its process is gone")


def test_what_is_handed_over_is_plain(tmp_path: Path) -> None:
    """Launchers pickle it, and a node that unpickles it imports no torch."""
    told = line(tmp_path, "")
    assert all(isinstance(value, str | int | tuple) for value in vars(told).values())
    code = "import sys, cramming.sweeps.command_line; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
