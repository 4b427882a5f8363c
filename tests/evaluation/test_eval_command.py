"""The command line of ``eval.py``: what is taken, what is refused in one line, and which runs words stand for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cramming.cli import CONFIG_DIR
from cramming.composition import dotted_keys
from cramming.errors import UserError
from cramming.evaluation import command
from cramming.evaluation.composing import asked, composed, several
from cramming.evaluation.tasks import registry
from cramming.migration import evaluation as earlier

ROOT = Path(__file__).resolve().parents[2]
SUITES = sorted(file.stem for file in (CONFIG_DIR / "eval").glob("*.yaml"))

REFUSED = {
    "eval=gleu_sane": "eval has no option 'gleu_sane'; did you mean 'glue_sane'?",
    "eval.lrr=1": "unknown option eval.lrr; did you mean 'eval.lr'?",
    "lr=1e-5": "unknown option lr; did you mean 'eval.lr'?",
    "train.batch_size=2": "did you mean 'eval.batch_size'?",
    "eval.lr=fast": "eval.lr=fast",
    "eval.lr=0": "eval.lr=0.0 must be above zero",
    "eval.schedule=cosin": "eval.schedule=cosin is not known; did you mean 'cosine'?",
    "eval.per_task.rte.lrr=1": "eval.per_task.rte.lrr is no setting of a task; did you mean 'lr'?",
    "eval.tasks=[cola,cola]": "eval.tasks names cola twice",
    "eval.save_models=bets": "eval.save_models=bets is unknown; did you mean 'best'?",
    "eval.max_train_rows=0": "eval.max_train_rows=0 must be 1 or more",
    "seed=[1,1]": "must be one or more different numbers",
    "seed=one": "seed=one must be a whole number, or a list such as [0,1,2]",
    "seed=0,1,2": "a list is seed=[0,1,2]",
    "eval.lr=1e-5,2e-5": "a list is eval.lr=[1e-5,2e-5]",
    "eval=glue_sane,superglue": "add -m to score each",
    "name=study-*": "add -m to score every run that matches",
    "name=../x": "cannot be a run's name",
    "weights=trained": "weights=trained is unknown; did you mean 'untrained'?",
    "impl.jobs=0": "impl.jobs=0 must be auto or a whole number from 1",
    "impl.precision=float8": "impl.precision=float8 is unknown",
    "base_dir=": "base_dir is empty",
    "eval.optim.lr=1e-5": "belongs to an earlier system; here it is: eval.lr",
    "eval.arch_modifications.classification_head.pooler=avg": "eval.pooler (zero_index: first, avg: mean)",
    "impl.shuffle_in_dataloader=true": "training rows are always shuffled",
    "eval=mnli": "here it is: eval=glue_sane eval.tasks=[mnli]",
    "learning_rate=1": "here it is: eval.lr",
}


@pytest.mark.parametrize(("word", "says"), REFUSED.items())
def test_one_line_that_says_what_is_wrong(word: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        asked(["name=x", word])
    message = str(caught.value)
    assert says in message
    assert len(message) < 400
    assert "\n" not in message


@pytest.mark.parametrize("words", [["--bad"], ["foo"], ["--cfg", "all"], ["--config-dir", "absent", "name=x"]])
def test_words_that_are_no_options(words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        command.command(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_composes_and_each_task_of_it_has_a_setting(suite: str) -> None:
    call = asked([f"eval={suite}"])
    assert call.config.eval.name == suite
    assert call.tasks == tuple(call.config.eval.tasks)
    for task in call.tasks:
        assert task in registry.TASKS
        call.config.eval.setting(task)


def test_the_commands_of_the_page_compose() -> None:
    call = asked(["name=first", "eval.tasks=[cola,rte]", "eval.per_task.rte.lr=1e-5", "seed=0", "impl.jobs=2"])
    config = call.config
    assert (config.eval.name, config.eval.tasks, config.impl.jobs) == ("glue_sane", ["cola", "rte"], 2)
    assert (config.eval.setting("rte").lr, config.eval.setting("cola").lr) == (1e-5, 4e-5)
    assert config.eval.setting("rte").seeds == [0]
    assert call.suite_tasks[0] == "cola"
    assert len(call.tasks) == 8
    assert {"eval.tasks", "eval.per_task.rte.lr", "seed"} <= call.typed
    own = asked(["name=first", "eval=task", "eval.train_file=my file.csv", "eval.label_column=topic"]).config.eval
    assert (own.train_file, own.label_column, own.lr, own.min_steps) == ("my file.csv", "topic", 1e-4, 500)


def test_seed_takes_the_place_of_every_seed() -> None:
    config = asked(["eval=glue_m2_80m", "seed=[3,4]"]).config.eval
    assert {tuple(config.setting(task).seeds) for task in config.tasks} == {(3, 4)}
    assert len(asked(["eval=glue_m2_80m"]).config.eval.setting("rte").seeds) == 5


@pytest.mark.parametrize("spelled", ["SuperGLUE", "superglue_sane"])
def test_the_earlier_names_of_suites_are_taken(spelled: str) -> None:
    assert asked([f"eval={spelled}"]).config.eval.name == "superglue_sane"
    assert asked(["eval=GLUE_sane"]).config.eval.name == "glue_sane"
    assert asked(["eval=superglue"]).config.eval.name == "superglue"


def test_a_folder_of_suites_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mine.yaml").write_text("defaults: [schema_suite]\nname: mine\nsuite: mine\ntasks: [cola]\n")
    assert asked(["eval=mine"], str(tmp_path)).config.eval.suite == "mine"
    with pytest.raises(UserError, match="eval has no option 'mine'"):
        asked(["eval=mine"])
    (tmp_path / "eval" / "mine.yaml").write_text("defaults: [schema_suite]\nname: mine\nsuite: m\nlearning: 1\n")
    with pytest.raises(UserError, match="learning"):
        asked(["eval=mine"], str(tmp_path))


def test_what_earlier_systems_had_is_here_under_the_name_that_is_given() -> None:
    known = set(dotted_keys(composed(["eval=glue_sane"])))
    for old, new in earlier.KEYS.items():
        assert old not in known, old
        for key in re.findall(r"\b(?:eval|impl|wandb)\.[a-z_]+(?:\.[a-z]+)*", new):
            assert key in known or key.startswith("eval.per_task"), (old, new)
    for old, new in earlier.SUITES.items():
        assert new in SUITES, old
        assert old not in SUITES


def test_help_says_what_there_is_without_torch() -> None:
    code = """
import runpy, sys
sys.argv = ["eval.py", "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules
sys.argv = ["eval.py", "name=x", "eval.lrr=1"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for suite in SUITES:
        assert re.search(rf"^  {suite} +\S", done.stdout, re.MULTILINE), suite
    assert done.stderr.splitlines() == ["error: unknown option eval.lrr; did you mean 'eval.lr'?"]
    assert max(map(len, done.stdout.splitlines())) <= 160


def test_every_option_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    command.command(["--cfg", "job", "eval=SuperGLUE", "eval.per_task.cb.lr=1e-5", "name=x"])
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.eval.name, shown.eval.per_task.cb.lr, shown.name) == ("superglue_sane", 1e-5, "x")
    assert {"eval.lr", "impl.jobs", "wandb.mode", "checkpoint", "seed"} <= set(dotted_keys(shown))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with trained runs, one that was never trained, and something else."""
    for name in ("study-a", "study-b=1,c=2", "other"):
        (tmp_path / name / "checkpoints" / "step=4").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "step=4" / "manifest.json").write_text("{}")
        (tmp_path / name / "config.yaml").write_text("name: x\n")
    (tmp_path / "study-new").mkdir()
    (tmp_path / "study-new" / "config.yaml").write_text("name: x\n")
    (tmp_path / "study-no-run").mkdir()
    return tmp_path


def names(lines: list[list[str]]) -> list[str]:
    """The run of each command line."""
    return [word.removeprefix("name=") for line in lines for word in line if word.startswith("name=")]


def test_a_pattern_stands_for_the_trained_runs_that_match(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = several([f"base_dir={runs}", "name='study-*'", "eval=glue_sane", "seed=[0,1]"])
    assert names(lines) == ["study-a", "study-b=1,c=2"]
    assert "study-new has no checkpoint yet and is left out" in capsys.readouterr().out
    for line in lines:
        config = asked(line).config
        assert config.eval.seeds == [0, 1]
        assert config.name in ("study-a", "study-b=1,c=2")


def test_lists_of_runs_and_suites(runs: Path) -> None:
    where = f"base_dir={runs}"
    assert names(several([where, "name=other,study-?"])) == ["other", "study-a"]
    assert names(several([where, "name=study-b=1,c=2"])) == ["study-b=1,c=2"], "a run whose name has a comma"
    lines = several([where, "name=other,study-a", "eval=glue_sane,SuperGLUE"])
    assert [(asked(line).config.name, asked(line).config.eval.name) for line in lines] == [
        ("other", "glue_sane"), ("other", "superglue_sane"), ("study-a", "glue_sane"), ("study-a", "superglue_sane")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["name=nothing-*"], "no trained run in .* matches name=nothing-"),
        (["name=study-n*"], "study-new has no checkpoint yet"),
        (["name=other", "eval.lr=1e-5,2e-5"], "only name= and eval= can have several values"),
        (["name=other", "seed=0,1"], r"a list is seed=\[0,1\]"),
    ],
)
def test_several_values_that_cannot_be(runs: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        several([f"base_dir={runs}", *words])


def test_a_run_that_does_not_exist_names_those_that_do(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), f"base_dir={runs}", "name=othr"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == f"error: there is no run 'othr' in {runs}; did you mean 'other'?"
    assert not (runs / "othr").exists()
