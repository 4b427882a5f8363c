"""Choosing settings before the jobs that are reported: a suite's search, tasks in the order they need each other.

What begins with another task's model is tried with the model that is reported for that one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cramming.errors import UserError
from cramming.evaluation import plan, search
from cramming.evaluation.config import EvalConfig, Setting
from cramming.evaluation.executor import Outcome
from cramming.evaluation.job import Job, JobResult
from cramming.evaluation.results import Selection
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.worker import headline_of

Do = Callable[[Sequence[Job], Collection[str]], Sequence[Outcome]]


@dataclass
class Chosen:
    """What a search came to.

    Attributes:
        settings: of each task with a model of its own.
        selections: how each was chosen, where there was something to choose.
        failures: task -> why nothing could be chosen.
        notes: lines a person should know.
    """

    settings: dict[str, Setting]
    selections: dict[str, Selection] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def trials_of(suite: EvalConfig, settings: Mapping[str, Setting]) -> dict[str, list[Setting]]:
    """What is tried for each task; nothing where nothing is searched for.

    Raises:
        UserError: a search that is impossible.
    """
    return {task: search.trials_of(suite, task, setting) for task, setting in settings.items()}


def choose(
    suite: EvalConfig,
    tasks: Mapping[str, Task],
    settings: Mapping[str, Setting],
    asked: Collection[str],
    weights_sha256: str,
    *,
    do: Do,
    whole: bool = False,
) -> Chosen:
    """The settings to report, after all trials.

    Args:
        suite: with its search.
        tasks: what others need comes first.
        settings: what is not searched for.
        asked: tasks whose scores are wanted.
        weights_sha256: of the pretrained weights; or ``untrained``.
        do: does jobs, parents before children, and keeps the models of the keys it is given.
        whole: only choose where no trial is missing.

    Raises:
        UserError: a search that is impossible.
    """
    found = Chosen(dict(settings))
    trials = trials_of(suite, settings)
    for level in _levels(settings):
        reported = plan.final_jobs(suite, tasks, found.settings, asked, weights_sha256)
        first = {job.task: job for job in reversed(reported)}
        parents = {name: settings[name].start_from for name in level if trials[name]}
        before = [first[parent] for parent in dict.fromkeys(filter(None, parents.values()))]
        tried = {
            name: search.jobs_of(suite, name, trials[name], weights_sha256, first[parent].key if parent else None)
            for name, parent in parents.items()
        }
        jobs = [job for own in tried.values() for job in own]
        outcomes = {o.job.key: o for o in do([*_ancestors(before, reported), *jobs], {job.key for job in before})}
        for name, own in tried.items():
            ended = [outcomes[job.key] for job in own]
            if whole and any(outcome.result is None for outcome in ended):
                found.failures[name] = "not all of its trials are there"
            else:
                _settle(suite, tasks[name], settings[name], ended, found)
    return found


def _settle(suite: EvalConfig, task: Task, setting: Setting, outcomes: Sequence[Outcome], found: Chosen) -> None:
    """Take the best trial of a task."""

    def headline(result: JobResult) -> float | None:
        return headline_of(task, result)

    failed = [outcome for outcome in outcomes if outcome.result is None]
    try:
        ended = [(outcome.job, outcome.result) for outcome in outcomes]
        found.settings[task.name], found.selections[task.name] = search.chosen(
            suite, task.name, setting, ended, headline
        )
    except UserError as error:
        found.failures[task.name] = f"{error}: {failed[0].reason}" if failed else str(error)
        return
    if failed:
        found.notes.append(f"{task.title}: {len(failed)} of {len(outcomes)} trials failed: {failed[0].reason}")


def _levels(settings: Mapping[str, Setting]) -> list[list[str]]:
    """Tasks that can be tried together: those that begin as pretrained, then those that begin with one of them, ..."""
    depth: dict[str, int] = {}
    for name, setting in settings.items():  # parents come first
        depth[name] = 0 if setting.start_from is None else depth[setting.start_from] + 1
    return [[name for name in settings if depth[name] == level] for level in range(max(depth.values(), default=-1) + 1)]


def _ancestors(jobs: Sequence[Job], reported: Sequence[Job]) -> list[Job]:
    """Jobs with all that they begin with, parents first."""
    by_key = {job.key: job for job in reported}
    wanted: set[str] = set()
    for job in jobs:
        key: str | None = job.key
        while key is not None:
            wanted.add(key)
            key = by_key[key].parent
    return [job for job in reported if job.key in wanted]
