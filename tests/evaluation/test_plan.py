"""Which jobs a suite is: seeds, what begins with what, lengths; and what a job's name depends on."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from cramming.errors import UserError
from cramming.evaluation import means, plan
from cramming.evaluation.config import EvalConfig, EvalImpl, EvaluateConfig, Setting
from cramming.evaluation.job import Job, Seeds
from cramming.evaluation.means import Means


def call(*tasks: str, **options: object) -> EvaluateConfig:
    """A call for some tasks."""
    suite = EvalConfig(name="s", suite="s", tasks=list(tasks), **options)  # type: ignore[arg-type]
    return EvaluateConfig(data_dir="nowhere", eval=suite)


def jobs_of(config: EvaluateConfig, asked: tuple[str, ...] | None = None) -> list[Job]:
    """All jobs of a call."""
    tasks = plan.tasks_needed(config, [])
    settings = plan.settings_of(config.eval, tasks.values(), lambda tokens: tokens, (), [])
    return plan.final_jobs(config.eval, tasks, settings, asked or tuple(config.eval.tasks), "weights")


def test_every_task_has_a_job_for_each_seed() -> None:
    jobs = jobs_of(call("cola", "rte", seeds=[0, 1], per_task={"rte": {"seeds": [5]}}))
    assert [(job.task, job.seed) for job in jobs] == [("cola", 0), ("cola", 1), ("rte", 5)]
    assert len({job.key for job in jobs}) == 3


def test_seeds_of_parts_differ_and_can_be_held_still() -> None:
    jobs = jobs_of(call("cola", "rte", seeds=[0, 1]))
    for job in jobs:
        assert len({job.seeds.initialization, job.seeds.order, job.seeds.dropout}) == 3
    first, second, other, _ = jobs
    for part in fields(Seeds):
        assert getattr(first.seeds, part.name) != getattr(second.seeds, part.name)
        assert getattr(first.seeds, part.name) == getattr(other.seeds, part.name), "a seed means the same in every task"
    held = jobs_of(call("cola", seeds=[0, 1], order_seed=0))
    assert held[0].seeds.order == held[1].seeds.order == first.seeds.order
    assert held[0].seeds.dropout != held[1].seeds.dropout
    assert held[0].seeds.initialization == first.seeds.initialization


def test_a_job_s_key_names_everything_that_can_change_its_result() -> None:
    (job,) = jobs_of(call("cola"))
    others = [
        replace(job, setting=replace(job.setting, lr=1e-3)),
        replace(job, setting=replace(job.setting, max_length=64)),
        replace(job, seeds=replace(job.seeds, dropout=1)),
        replace(job, weights_sha256="others"),
        replace(job, parent="x"),
        replace(job, purpose="search"),
        replace(job, train_share=0.9),
    ]
    assert len({job.key, *(other.key for other in others)}) == 8
    assert replace(job, also=("ax",)).key == job.key, "what a model is asked afterwards does not change it"
    assert replace(job, setting=replace(job.setting, seeds=[0, 1])).key == job.key


def test_what_begins_with_another_task_s_model_comes_later_and_takes_its_first_seed() -> None:
    config = call("rte", "mrpc", "mnli", seeds=[3, 4], per_task={"rte": {"start_from": "mnli"}})
    notes: list[str] = []
    assert list(plan.tasks_needed(config, notes)) == ["mnli", "rte", "mrpc"]
    assert notes == []
    jobs = {(job.task, job.seed): job for job in jobs_of(config)}
    assert {jobs["rte", seed].parent for seed in (3, 4)} == {jobs["mnli", 3].key}
    assert jobs["mrpc", 3].parent is None


def test_a_parent_nobody_asked_for_is_done_once_and_that_is_said() -> None:
    config = call("rte", seeds=[3, 4], per_task={"rte": {"start_from": "mnli"}})
    notes: list[str] = []
    plan.tasks_needed(config, notes)
    assert notes == ["mnli is fine-tuned too: rte begins with its model"]
    assert [(job.task, job.seed) for job in jobs_of(config)] == [("mnli", 3), ("rte", 3), ("rte", 4)]


def test_a_task_without_training_is_answered_by_every_seed_of_another() -> None:
    config = call("axb", "axg", seeds=[0, 1])
    notes: list[str] = []
    assert list(plan.tasks_needed(config, notes)) == ["rte_superglue", "axb", "axg"]
    assert notes == ["rte_superglue is fine-tuned too: its model answers axb, axg"]
    jobs = jobs_of(config)
    assert [(job.task, job.seed, job.also) for job in jobs] == [
        ("rte_superglue", 0, ("axb", "axg")), ("rte_superglue", 1, ("axb", "axg"))
    ]  # fmt: skip


def test_a_circle_is_refused() -> None:
    config = call("rte", "mrpc", per_task={"rte": {"start_from": "mrpc"}, "mrpc": {"start_from": "rte"}})
    with pytest.raises(UserError, match=r"rte -> mrpc -> rte"):
        plan.tasks_needed(config, [])


def test_a_task_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cola'"):
        plan.tasks_needed(call("colla"), [])
    with pytest.raises(UserError, match="mnli"):
        plan.tasks_needed(call("rte", per_task={"rte": {"start_from": "mnl"}}), [])


def test_texts_are_no_longer_than_the_model_unless_somebody_typed_so() -> None:
    config = call("cola", "rte", max_length=128, per_task={"rte": {"max_length": 32}})
    tasks = plan.tasks_needed(config, []).values()
    notes: list[str] = []
    found = plan.settings_of(config.eval, tasks, lambda tokens: min(tokens, 64), (), notes)
    assert (found["cola"].max_length, found["rte"].max_length) == (64, 32)
    assert notes == ["texts are cut to 64 tokens, the model's positions, not to the suite's 128"]
    with pytest.raises(UserError, match=r"eval\.max_length=128 is longer than the model: it takes 64 tokens"):
        plan.settings_of(config.eval, tasks, lambda tokens: min(tokens, 64), {"eval.max_length"}, [])
    with pytest.raises(UserError, match=r"eval\.per_task\.rte\.max_length=32 is longer"):
        plan.settings_of(config.eval, tasks, lambda tokens: min(tokens, 16), {"eval.per_task.rte.max_length"}, [])


def resolved(monkeypatch: pytest.MonkeyPatch, impl: EvalImpl, stored: Means | None = None, **machine: float) -> Means:
    """The means of a machine with so many cores, so much free memory and jobs of 1 GB; of 10 jobs."""
    monkeypatch.setattr("cramming.resolve.available_cores", lambda: machine.get("cores", 8))
    monkeypatch.setattr(means, "available_bytes", lambda: machine.get("memory", 64e9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return means.resolved(impl, stored, int(machine.get("planned", 10)), 1e9, [])


def test_as_many_jobs_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    impl = EvalImpl(precision="float32")
    found = resolved(monkeypatch, impl)
    assert (found.jobs, found.threads) == (8, 1)
    assert resolved(monkeypatch, impl, memory=3.9e9).jobs == 3
    assert resolved(monkeypatch, impl, memory=3.9e9).threads == 2
    assert resolved(monkeypatch, impl, memory=1.0).jobs == 1
    assert (resolved(monkeypatch, impl, planned=2).jobs, resolved(monkeypatch, impl, planned=2).threads) == (2, 4)
    assert resolved(monkeypatch, EvalImpl(precision="float32", threads=4)).jobs == 2
    assert resolved(monkeypatch, EvalImpl(precision="float32", jobs=4)).threads == 2


def test_what_was_resolved_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    impl = EvalImpl(precision="float32")
    first = resolved(monkeypatch, impl)
    means.write(tmp_path, first)
    assert means.read(tmp_path) == first
    assert resolved(monkeypatch, impl, first, memory=2e9) == first, "free memory changes, the arithmetic does not"
    notes: list[str] = []
    other = means.resolved(replace(impl, threads=2), first, 10, 1e9, notes)
    assert other.threads == 2
    assert notes == ["computed with another threads 1 -> 2 than before: the last bits may differ"]
    (tmp_path / means.FILE).write_text("{")
    assert means.read(tmp_path) is None


def test_jobs_share_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = Means("cuda", "float32", 4, 1, None, 4)
    assert [found.place(worker) for worker in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_a_setting_has_all_that_a_suite_s_head_can_say() -> None:
    assert {option.name for option in fields(Setting)} <= {option.name for option in fields(EvalConfig)}
