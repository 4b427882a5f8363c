"""A config that composes is a config that is valid, and every file under config/ composes."""

from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cramming import registry
from cramming.cli import CONFIG_DIR, compose, job_name, load_schemas, pretraining
from cramming.config import PretrainConfig, check_microbatch, check_name, parse_budget, typed
from cramming.errors import UserError
from cramming.evaluation.composing import asked
from cramming.evaluation.search import trials_of
from cramming.evaluation.tasks.registry import find

GROUPS = ("arch", "data", "train/optim", "train/schedule", "method", "rst", "wandb", "experiment")
FILES = [(group, file.stem) for group in GROUPS for file in sorted((CONFIG_DIR / group).glob("*.yaml"))]
SUITES = [file.stem for file in sorted((CONFIG_DIR / "eval").glob("*.yaml"))]
BASE = ["data=local", "data.path=x"]
NEEDS = {
    "local": ["data.path=x"],
    "hub": ["data.dataset=a/b"],
    "mixture": ["data.mix=[python_docs]"],
    "mds": ["data.remote=x"],
    "library": ["train.optim.name=adabelief"],
    "distillation": ["method.distillation.checkpoint=x"],
}  # what has no default


def test_every_file_belongs_to_a_group_that_is_tested() -> None:
    found = {file.relative_to(CONFIG_DIR) for file in CONFIG_DIR.rglob("*.yaml")}
    elsewhere = {file for file in found if file.parent in (Path("pipeline"), Path("hydra/launcher"))}  # by their tests
    expected = {Path(group, f"{option}.yaml") for group, option in FILES} | {
        Path("eval", f"{one}.yaml") for one in SUITES
    }
    assert found - elsewhere == {Path("pretrain.yaml"), Path("evaluate.yaml"), *expected}


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_composes_and_says_what_it_is(suite: str) -> None:
    config = asked(["name=x", f"eval={suite}", "eval.train_file=x.csv"]).config.eval
    assert config.name == suite
    tasks = {name: find(name) for name in config.tasks}
    for name, task in tasks.items():
        setting = config.setting(name)
        assert setting.start_from is None or setting.start_from in tasks, name
        assert task.trained_by is None or task.trained_by in tasks, name
    outcomes = {
        f"{name}.{task.outcome(m, split)}"
        for name, task in tasks.items()
        for split in task.evaluated
        for m in task.metrics
    }
    assert set(config.average.of) <= outcomes
    assert bool(config.average.of) == bool(config.average.rule)
    comments = [line for line in (CONFIG_DIR / "eval" / f"{suite}.yaml").read_text().splitlines() if line[:1] == "#"]
    assert any(f"eval={suite}" in line for line in comments)
    for word in ("Source:", "Cost:", "Published score:", "Average:"):
        assert any(word in line for line in comments), word


def test_extremebert_s_grid_has_156_trials() -> None:
    config = asked(["name=x", "eval=glue_extreme"]).config.eval
    assert sum(len(trials_of(config, task, config.setting(task))) for task in config.tasks) == 156


@pytest.mark.parametrize(("group", "option"), FILES)
def test_every_file_composes(group: str, option: str) -> None:
    words = NEEDS.get(option, []) if group == "data" else [*BASE, *NEEDS.get(option, [])]
    config = compose([*words, f"{group}={option}"])
    assert isinstance(config, PretrainConfig)


@pytest.mark.parametrize(("group", "option"), [pair for pair in FILES if pair[0] == "experiment"])
def test_every_experiment_opens_with_its_command_cost_and_score(group: str, option: str) -> None:
    text = (CONFIG_DIR / group / f"{option}.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any(f"experiment={option}" in line for line in comments)
    for word in ("Cost:", "score:"):
        assert any(word in line for line in comments), word


def test_every_registered_kind_has_a_file() -> None:
    load_schemas()
    for group in registry.GROUPS:
        stems = {option for where, option in FILES if where == group}
        if group != "arch":  # several sizes of one family
            assert set(registry.kinds(group)) <= stems


def test_the_defaults_are_the_studys() -> None:
    config = compose(BASE)
    assert (config.train.optim.kind, config.train.schedule.kind, config.rst.kind) == ("adamw", "one_cycle", "calibrate")
    assert (config.method, config.budget, config.train.mask_rate, config.train.clip_norm) == ({}, 24, 0.15, 0.5)
    assert config.train.batch_size == config.arch.batch_size
    assert config.data.vocab_size == config.arch.vocab_size


def test_what_is_stored_is_read_back_the_same() -> None:
    config = compose(
        [*BASE, "arch=bert_small", "train/optim=lion", "train/schedule=trapezoid", "rst=steps", "budget=7"]
    )
    assert typed(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))) == config


def test_a_stored_config_cannot_run_code() -> None:
    stored = asdict(compose(BASE))
    stored["arch"]["_target_"] = "os.system"
    with pytest.raises(UserError, match="_target_"):
        typed(OmegaConf.create(stored))


def test_a_recipe_outside_the_clone(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "my_recipe.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /arch: bert_tiny\nbudget: 2m\ntrain: {optim: {lr: 0.5}}\n"
    )
    seen: list[PretrainConfig] = []
    pretraining(seen.append, ["--config-dir", str(tmp_path / "mine"), "experiment=my_recipe", *BASE])
    assert (seen[0].arch.name, seen[0].budget_s, seen[0].train.optim.lr) == ("bert_tiny", 120, 0.5)
    (folder / "my_recipe.yaml").write_text("# @package _global_\ntrain: {batch_sizes: 3}\n")
    with pytest.raises(UserError, match="batch_sizes"):
        pretraining(seen.append, ["--config-dir", str(tmp_path / "mine"), "experiment=my_recipe", *BASE])


@pytest.mark.parametrize(
    ("typed_in", "seconds"), [(24, 86400), (0.5, 1800), ("30m", 1800), ("90s", 90), ("2h", 7200), ("1e-3", 3.6)]
)
def test_budgets(typed_in: object, seconds: float) -> None:
    assert parse_budget(typed_in, "budget") == pytest.approx(seconds)


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=30))
def test_a_name_that_is_accepted_stays_in_its_folder(name: str) -> None:
    base = Path("/base")
    try:
        check_name(name)
    except UserError:
        return
    assert (base / name).resolve().parent == base
    assert name[0].isalnum()


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_the_microbatch_that_is_suggested_divides_and_is_nearest(batch: int, microbatch: int) -> None:
    divisors = [d for d in range(1, batch + 1) if batch % d == 0]
    try:
        check_microbatch(batch, microbatch)
    except UserError as error:
        best = int(str(error).rsplit(" ", 1)[-1])
        assert best in divisors
        assert abs(best - microbatch) == min(abs(d - microbatch) for d in divisors)
    else:
        assert microbatch in divisors


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("seed=1", "x-seed=1"),
        ("method=[a,b],seed=0", "x-method=a+b,seed=0"),
        ("train/optim=lion,train.optim.lr=0.0007", "x-train.optim=lion,train.optim.lr=0.0007"),
        ("", "x"),
    ],
)
def test_names_of_a_multiruns_jobs(overrides: str, name: str) -> None:
    assert job_name("x", overrides) == name
