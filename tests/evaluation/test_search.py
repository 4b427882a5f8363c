"""Which settings are tried, and which is chosen."""

from dataclasses import replace
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.evaluation import search
from cramming.evaluation.config import EvalConfig, Search, Setting
from cramming.evaluation.job import Evaluation, Job, JobResult

SETTING = Setting(seeds=[7, 8])


def suite(**options: Any) -> EvalConfig:
    return EvalConfig(name="x", suite="x", tasks=["rte", "cola"], search=Search(**options))


def result(job: Job, score: float | None) -> JobResult:
    return JobResult(
        key=job.key,
        task=job.task,
        seed=job.seed,
        purpose=job.purpose,
        setting={},
        evaluations=(Evaluation(10, 1.0, 0.5, {"accuracy": score}),),
        best=0,
        steps=10,
        examples=160,
        stopped_early=False,
        train_loss=0.5,
        seconds={"train": 2.0, "evaluate": 1.0},
        rows={},
        data_sha256={},
        cut={},
    )


def pick(scores: list[float | None], **options: Any) -> tuple[Setting, Any]:
    one = suite(kind="grid", lr=[1e-5, 2e-5, 3e-5][: len(scores)], **options)
    trials = search.trials_of(one, "rte", SETTING)
    jobs = search.jobs_of(one, "rte", trials, "sha", None)
    ended = [(job, None if score is None else result(job, score)) for job, score in zip(jobs, scores, strict=True)]
    return search.chosen(one, "rte", SETTING, ended, lambda r: r.final.scores["accuracy"])


def test_a_grid_is_every_combination_and_keeps_what_is_not_searched_for() -> None:
    trials = search.trials_of(suite(kind="grid", lr=[1e-5, 3e-5], epochs=[3, 5]), "rte", replace(SETTING, warmup=0.3))
    assert [(t.lr, t.epochs, t.batch_size, t.warmup) for t in trials] == [
        (lr, epochs, 16, 0.3) for lr in (1e-5, 3e-5) for epochs in (3, 5)
    ]


def test_a_task_has_values_of_its_own() -> None:
    one = suite(kind="grid", lr=[1e-5], per_task={"rte": {"lr": [2e-5, 4e-5], "batch_size": [8]}})
    assert [(t.lr, t.batch_size) for t in search.trials_of(one, "rte", SETTING)] == [(2e-5, 8), (4e-5, 8)]
    assert [t.lr for t in search.trials_of(one, "cola", SETTING)] == [1e-5]


def test_a_part_of_a_grid_is_another_for_another_seed_and_never_has_a_trial_twice() -> None:
    options: dict[str, Any] = {"kind": "grid", "lr": [1e-5, 2e-5, 3e-5, 4e-5], "batch_size": [8, 16, 32], "trials": 5}
    drawn = {
        seed: [(t.lr, t.batch_size) for t in search.trials_of(suite(**options, seed=seed), "rte", SETTING)]
        for seed in range(4)
    }
    assert all(len(set(trials)) == 5 for trials in drawn.values())
    assert len({tuple(trials) for trials in drawn.values()}) > 1


def test_random_draws_stay_within_the_values_and_reach_both_halves_of_the_logarithm() -> None:
    options: dict[str, Any] = {
        "kind": "random",
        "lr": [1e-6, 1e-2],
        "batch_size": [4, 6],
        "epochs": [2, 9],
        "trials": 64,
    }
    trials = search.trials_of(suite(**options), "rte", SETTING)
    assert trials == search.trials_of(suite(**options), "rte", SETTING)
    assert all(1e-6 <= t.lr <= 1e-2 for t in trials)
    assert 10 < sum(t.lr < 1e-4 for t in trials) < 54
    assert {t.batch_size for t in trials} == {4, 5, 6}
    assert {t.epochs for t in trials} == {2, 9}


def test_trials_are_jobs_apart_from_the_final_ones() -> None:
    one = suite(kind="grid", lr=[1e-5, 4e-5], heldout_fraction=0.1)
    jobs = search.jobs_of(one, "rte", search.trials_of(one, "rte", SETTING), "sha", "parent")
    assert len({job.key for job in jobs}) == 2
    assert {(job.purpose, job.seed, job.parent, job.train_share) for job in jobs} == {("search", 7, "parent", 0.9)}
    final = replace(jobs[0], purpose="final", train_share=1.0)
    assert final.key not in {job.key for job in jobs}


def test_the_best_is_chosen_the_first_of_equals_and_failures_are_passed_over() -> None:
    setting, selection = pick([0.5, 0.7, 0.7])
    assert setting.lr == 2e-5
    assert setting.seeds == [7, 8]
    assert (selection.trials, selection.steps, selection.seconds) == (3, 30, 9.0)
    assert selection.reported
    assert selection.split == "validation"
    setting, selection = pick([None, 0.1, None])
    assert setting.lr == 2e-5
    assert selection.steps == 10
    assert selection.scores[0]["score"] is None


def test_choosing_on_training_rows_is_said() -> None:
    _, selection = pick([0.5, 0.7], heldout_fraction=0.1)
    assert not selection.reported
    assert selection.split == "10% of the training rows"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "grid"}, "nothing to try"),
        ({"kind": "grid", "lr": [1e-5], "trials": 2}, "1 combinations"),
        ({"kind": "random", "lr": [1e-5, 1e-3]}, "needs eval.search.trials"),
        ({"kind": "grid", "lr": [1e-5, 1e-5]}, "twice"),
        ({"kind": "grid", "lr": [0.0]}, "above zero"),
        ({"kind": "grid", "per_task": {"rte": {"warmup": [0.1]}}}, "cannot be searched"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        search.trials_of(suite(**options), "rte", SETTING)


def test_no_score_at_all_is_said() -> None:
    with pytest.raises(UserError, match="none of its 2 trials"):
        pick([None, None])
