"""The search for learning rate and weight decay: equal trials for all, the best found, and on again after a stop."""

import shlex
import sys
from collections.abc import Callable
from math import log10
from pathlib import Path

import pytest

from cramming import search
from cramming.cli import compose, pretraining, readable, sweeping
from cramming.config import PretrainConfig
from cramming.errors import UserError
from cramming.search import Options

from .pretended import WORDS, Pretended

pytest.importorskip("optuna")
BEST_LR = {"adamw": 1e-3, "lion": 3e-4, "muon": 1e-2}
GRID = {"lr": [1e-4, 3e-4, 1e-3], "weight_decay": [0.01, 0.1]}


def run(job: Callable[[PretrainConfig], None], options: Options, *words: str, dry: bool = False) -> None:
    """What the command does after it has read its own options."""
    search.load_schemas()
    asked = readable([*WORDS, *words])
    sweeping(asked, lambda rest, config_dir, _: search.search(rest, options, job, config_dir, dry))


def loss(config: PretrainConfig) -> float:
    """Smallest at the optimizer's own best rate, and at a decay of 0.1."""
    optim = config.train.optim
    return abs(log10(optim.lr / BEST_LR[optim.kind])) + abs(optim.weight_decay - 0.1) + 1


def values(job: Pretended) -> list[tuple[str, float, float]]:
    """Which values were tried, in order."""
    return [(c.train.optim.kind, c.train.optim.lr, c.train.optim.weight_decay) for c in job.seen]


def test_every_arm_gets_the_same_trials_and_the_best_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Pretended(loss)
    words = ["name=t", f"base_dir={tmp_path}", "train/optim=adamw,lion"]
    run(job, Options(lr=GRID["lr"], weight_decay=[0.1]), *words)
    assert sorted(values(job)) == [(kind, lr, 0.1) for kind in ("adamw", "lion") for lr in GRID["lr"]]
    assert {config.seed for config in job.seen} == {search.TRIAL_SEED}
    assert "t-train.optim=lion,train.optim.lr=0.0003,train.optim.weight_decay=0.1" in job.names
    shown = capsys.readouterr().out
    assert "search t: 2 x 3 trials of 5 steps, 30 steps by rst=steps" in shown
    table = (tmp_path / "_sweeps" / "t.md").read_text().splitlines()
    assert table[-2:] == [
        "| t-train.optim=adamw | 3 | 1.0000 | 0.001 | 0.1 | largest lr tried |",
        "| t-train.optim=lion | 3 | 1.0000 | 0.0003 | 0.1 | - |",
    ]
    assert (tmp_path / "_sweeps" / "t_trials.md").read_text().count("budget spent") == 6
    commands = [line for line in shown.splitlines() if line.startswith("python pretrain_bert.py -m ")]
    found = Pretended()
    pretraining(found, [f"base_dir={tmp_path}", *shlex.split(commands[1])[2:]])
    assert values(found) == [("lion", 3e-4, 0.1)] * 3
    assert found.names == [f"t_best-train.optim=lion-seed={seed}" for seed in (0, 1, 2)]
    assert search.TRIAL_SEED not in {config.seed for config in found.seen}


@pytest.mark.parametrize(
    "sampler", [s if s == "tpe" else pytest.param(s, marks=pytest.mark.full) for s in search.SAMPLERS]
)
def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path: Path, sampler: str) -> None:
    def options(trials: int = 2) -> Options:
        return Options(trials=trials, sampler=sampler, sampler_seed=4, **GRID)

    def second_is_interrupted(calls: int) -> None:
        if calls == 1:
            raise KeyboardInterrupt

    whole = Pretended(loss)
    run(whole, options(), "name=t", f"base_dir={tmp_path / 'whole'}")
    words = ["name=t", f"base_dir={tmp_path / 'again'}"]
    first = Pretended(loss, before=second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(first, options(), *words)
    rest = Pretended(loss)
    run(rest, options(), *words)
    assert (len(values(first)), len(values(rest))) == (1, 1)
    assert values(first) + values(rest) == values(whole)
    more = Pretended(loss)
    run(more, options(3), *words)
    assert len(more.seen) == 1, "more trials add to those that are there"
    tried = values(whole) + values(more)
    assert len(set(tried)) == 3
    if sampler == "grid":
        assert all(lr in GRID["lr"] and decay in GRID["weight_decay"] for _, lr, decay in tried)
    else:
        assert all(1e-4 <= lr <= 1e-3 and 0.01 <= decay <= 0.1 for _, lr, decay in tried)


def test_a_trial_that_fails_or_has_no_finite_loss_counts_and_is_never_the_best(tmp_path: Path) -> None:
    losses = {0.1: float("nan"), 0.05: 3.0}

    def job(config: PretrainConfig) -> None:
        decay = config.train.optim.weight_decay
        if decay not in losses:
            raise UserError("20 steps in a row had no finite loss")
        Pretended(lambda _: losses[decay])(config)

    options = Options(lr=[1e-3], weight_decay=[0.0, 0.05, 0.1])
    with pytest.raises(UserError, match="1 of 3 trials failed, the first with: 20 steps in a row"):
        run(job, options, "name=t", f"base_dir={tmp_path}")
    row = (tmp_path / "_sweeps" / "t.md").read_text().splitlines()[-1]
    assert row.startswith("| t | 3 | 3.0000 | 0.001 | 0.05 |")
    assert "2 without a loss" in row


def test_the_defaults_hold_what_the_study_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for experiment in ("ntng_baseline", "ntng_lion", "ntng_sophia"):
        optim = compose([f"experiment={experiment}"]).train.optim
        assert optim.lr in search.STUDY_LR
        assert optim.weight_decay in search.STUDY_WEIGHT_DECAY
    run(Pretended(), Options(), "name=t", f"base_dir={tmp_path}", "train/optim=sophiag,muon,agd", dry=True)
    shown = capsys.readouterr().out
    assert "3 x 12 trials" in shown, "as many combinations for those the study does not have"
    assert "t-train.optim=sophiag: lr [0.0001,0.0004,0.0007,0.001]; weight_decay [0.01,0.015,0.1]" in shown
    assert "t-train.optim=muon: lr [0.00025,0.0005,0.001,0.002]; weight_decay [0.01,0.1,1]" in shown
    assert "t-train.optim=agd: lr [0.25,0.5,1,2]; weight_decay [0.01,0.015,0.1]" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words", "says"),
    [
        (Options(trials=13), [], "trials=13: t has 12 combinations"),
        (Options(trials=0), [], "trials=0 must be 1 or more"),
        (Options(lr=[1e-3], lr_around=[1.0]), [], "both say what to try"),
        (Options(lr=[0.0, 1e-3]), [], "lr=[0,0.001] must be finite and above 0"),
        (Options(weight_decay=[-1.0]), [], "weight_decay=[-1] must be finite and not below 0"),
        (Options(lr=[float("nan")]), [], "must be finite"),
        (Options(), ["budget=5,6"], "budget is not the same for all that is compared"),
        (Options(), ["seed=5,6"], "seed is not the same"),
        (Options(), ["data.heldout_fraction=0"], "no sequences to compare trials on"),
        (Options(), ["train.optim.lr=1e-3"], "train.optim.lr= is what this command searches"),
        (Options(), ["train.batch_size=0"], "train.batch_size=0"),
        (Options(), ["train.batch_sice=0"], "did you mean 'train.batch_size'"),
    ],
)
def test_what_is_no_fair_comparison_is_refused(tmp_path: Path, options: Options, words: list[str], says: str) -> None:
    job = Pretended()
    with pytest.raises(UserError) as caught:
        run(job, options, "name=t", f"base_dir={tmp_path}", *words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (job.seen, list(tmp_path.iterdir())) == ([], [])


def test_the_command_reads_its_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["name=t", f"base_dir={tmp_path}", *WORDS]
    search.command([*base, "trials=2", "lr_around=[0.5,2]", "weight_decay=[0.1]", "sampler=random", "--dry"])
    assert "t: lr [0.0005,0.002]; weight_decay [0.1]" in capsys.readouterr().out
    with pytest.raises(UserError, match="sampler=gird is not known; did you mean 'grid'"):
        search.command([*base, "sampler=gird"])
    with pytest.raises(UserError, match="trials=many"):
        search.command([*base, "trials=many"])
    with pytest.raises(UserError, match="unknown option trails"):
        search.command([*base, "trails=2"])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'budget-bert\[sweep\]'"):
        search.command([*base, "--dry"])
