"""Studies: experiments of several grids, one after another; what they cost, and that all of it composes."""

import re
import shlex
from pathlib import Path

import pytest

from cramming.cli import CONFIG_DIR, load_schemas, pretraining
from cramming.errors import UserError
from cramming.sweeps.jobs import Job, expand
from cramming.sweeps.launch import Launch, launching
from cramming.sweeps.stages import Stage, stages_of

from .pretended import WORDS, Pretended

MINE = """\
# @package _global_
defaults:
  - override /arch: bert_tiny
train: {batch_size: 16}
study:
  needed: python -m json.tool budget=2
  base: seed=0,1
  other: method=layer_dropping seed=0,1 budget=7
"""


@pytest.fixture
def mine(tmp_path: Path) -> list[str]:
    """The words of a study outside the clone."""
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(MINE)
    words = [word for word in WORDS if not word.startswith(("arch=", "budget="))]
    return ["-m", "--config-dir", str(tmp_path / "mine"), "name=s", f"base_dir={tmp_path}", "experiment=mine", *words]


def test_a_study_runs_its_parts_in_order_and_goes_on(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def command(self: Stage, launch: Launch) -> None:
        order.append(" ".join(word for word in self.command if not word.startswith(("base_dir", "data", "hydra"))))

    monkeypatch.setattr(Stage, "run", command)
    job = Pretended(before=lambda calls: order.append(f"job {calls}"))
    pretraining(job, [*mine, "budget=5"])
    assert order[0] == "json.tool budget=2 experiment=mine rst=steps budget=5 name=s-needed"
    assert order[1:] == ["job 0", "job 1", "job 2", "job 3"]
    assert job.names == ["s-base-seed=0", "s-base-seed=1", "s-other-seed=0", "s-other-seed=1"]
    assert [list(config.method) for config in job.seen] == [[], [], ["layer_dropping"], ["layer_dropping"]]
    assert {(config.train.batch_size, config.budget_s) for config in job.seen} == {(16, 5)}, "what is typed comes last"
    shown = capsys.readouterr().out
    assert "sweep s: 5 runs, 25 steps by rst=steps" in shown
    again = Pretended()
    pretraining(again, [*mine, "budget=5", "seed=0,1,2"])
    assert again.names == ["s-base-seed=2", "s-other-seed=2"]
    assert len((tmp_path / "_sweeps" / "s.md").read_text().splitlines()) == 4 + 1 + 6


def test_parts_can_be_left_out_and_a_failing_command_does_not_end_the_rest(
    mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    job = Pretended()
    with pytest.raises(UserError, match=r"1 of 3 jobs failed, the first with: `python -m json\.tool .*exit code 2"):
        pretraining(job, [*mine, "~study.base"])
    assert job.names == ["s-other-seed=0", "s-other-seed=1"]
    assert {config.budget_s for config in job.seen} == {7}
    without = Pretended()
    pretraining(without, [*mine, "~study.needed", "~study.other", "budget=5", "--dry"])
    assert "sweep s: 2 runs, 10 steps" in capsys.readouterr().out


def test_a_study_is_no_single_run(mine: list[str]) -> None:
    job = Pretended()
    with pytest.raises(UserError, match=r"a study of several runs \(needed, base, other\): add -m"):
        pretraining(job, mine[1:])
    assert job.seen == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("python -m no_such_module budget=2", "study.needed: there is no module 'no_such_module'"),
        ("python -m", "there is no module ''"),
        ("seed='0", 'study.needed: "seed=\'0" is no command line'),
        ("sed=0,1", "unknown option sed"),
    ],
)
def test_a_part_that_cannot_be_read_is_refused_before_any_run(mine: list[str], line: str, says: str) -> None:
    file = Path(mine[2]) / "experiment" / "mine.yaml"
    file.write_text(MINE.replace("python -m json.tool budget=2", line))
    job = Pretended()
    with pytest.raises(UserError) as caught:
        pretraining(job, [*mine, "budget=5"])
    assert says in str(caught.value)
    assert job.seen == []


def study_full(launch: Launch) -> list[Stage]:
    """The stages of the earlier study."""
    return stages_of("study", {str(k): v for k, v in launch.common.study.items()}, launch)


def test_the_earlier_study_is_whole_and_costs_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """6, 12 and 24 hours, 3 seeds; batch selection on three corpora; the optimizers against a bfloat16 baseline."""
    load_schemas()
    composed = Launch.composed

    def first_seed_only(self: Launch, name: str, words: list[str]) -> Job:
        """The other seeds, and other budgets, cost as much, and their composing as much time."""
        if ("seed=0" in words and "budget=6" in words) or name.startswith("study-irreducible"):
            job = composed(self, name, words)
            assert job.refused is None, job.refused
            return job
        return Job(name, tuple(words), None)

    monkeypatch.setattr(Launch, "composed", first_seed_only)
    with launching(["experiment=study_full", "name=study"], None) as launch:
        stages = {stage.label: stage for stage in study_full(launch)}
    assert {label: len(stage.jobs) for label, stage in stages.items() if stage.jobs} == {
        "c4": 45, "bcwk": 27, "minipile": 27, "optimizers": 27
    }  # fmt: skip
    commands = [stage for stage in stages.values() if stage.command]
    assert [stage.config.budget_s / 3600 for stage in commands if stage.config] == [12, 12, 6]
    corpora = [(stage.config.data.name, stage.config.data.heldout_fraction) for stage in commands if stage.config]
    assert corpora == [("c4_subset", 0.2), ("bookcorpus_wikipedia", 0.2), ("minipile", 0.2)]
    hours = sum(int(re.search(r"budget=(\d+)", job.name)[1]) for stage in stages.values() for job in stage.jobs)  # type: ignore[index]
    text = (CONFIG_DIR / "experiment" / "study_full.yaml").read_text()
    assert (sum(len(stage.jobs) or 1 for stage in stages.values()), hours + 30) == (129, 1794)
    assert "129 runs, 1,794 hours" in text
    seen = {label: [job.config for job in stage.jobs if job.config] for label, stage in stages.items()}
    chosen = ["", "selective_backprop", "rho_loss"]
    assert ["+".join(c.method) for c in seen["c4"]] == ["", "layer_stacking", "layer_dropping", *chosen[1:]]
    assert ["+".join(c.method) for c in seen["bcwk"]] == ["+".join(c.method) for c in seen["minipile"]] == chosen
    assert [c.train.optim.kind for c in seen["optimizers"]] == ["adamw", "lion", "sophiag"]
    everything = [c for configs in seen.values() for c in configs]
    assert {(c.arch.name, c.rst.kind, c.data.heldout_fraction) for c in everything} == {("crammed", "rtx3090", 0.2)}
    precisions = [(label, c.impl.precision) for label, configs in seen.items() for c in configs]
    assert {precision for label, precision in precisions if label == "optimizers"} == {"bfloat16"}
    assert {precision for label, precision in precisions if label != "optimizers"} == {"float16"}


@pytest.mark.full
def test_every_job_of_the_earlier_study_composes() -> None:
    load_schemas()
    with launching(["experiment=study_full", "name=study"], None) as launch:
        stages = study_full(launch)
    jobs = [job for stage in stages for job in stage.jobs]
    assert [job.refused for job in jobs] == [None] * 126
    assert sum(stage.end_s for stage in stages) == 1794 * 3600
    assert len({job.name for job in jobs}) == 126


@pytest.mark.parametrize("experiment", ["study_small", "study_full"])
def test_the_commands_in_a_studys_file_are_understood(experiment: str) -> None:
    load_schemas()
    comments = (CONFIG_DIR / "experiment" / f"{experiment}.yaml").read_text().replace("\\\n#", " ")
    commands = re.findall(r"# +python pretrain_bert\.py (-m .*?)(?:  +#.*)?\n", comments)
    assert commands
    for command in commands:
        words = [word for word in shlex.split(command) if word not in ("-m", "--dry")]
        with launching(words, None) as launch:
            if launch.common.study:
                continue
            found = expand("study_small", launch.words, launch.loader)
            assert len(found) == 15
            for name, own in found[::3]:
                assert launch.composed(name, own).refused is None
