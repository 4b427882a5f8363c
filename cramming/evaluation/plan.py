"""Which jobs a suite is: every task with every seed, and what each begins with."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cramming import hashing
from cramming.errors import UserError
from cramming.evaluation import material
from cramming.evaluation.config import EvalConfig, EvaluateConfig, Setting
from cramming.evaluation.job import Job, Seeds
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Task


def tasks_needed(config: EvaluateConfig, notes: list[str]) -> dict[str, Task]:
    """The tasks that are asked for, and those whose models they begin with or are answered by; the latter come first.

    Args:
        config: of the call.
        notes: gets a line for each task that was not asked for.

    Raises:
        UserError: a task that does not exist, or tasks that begin with each other.
    """
    data_dir = Path(config.data_dir)
    trainers = [first for name in config.eval.tasks if (first := registry.find(name).trained_by) is not None]
    asked = list(config.eval.tasks)
    for first in dict.fromkeys(trainers):
        if first not in asked:
            notes.append(f"{first} is fine-tuned too: its model answers {', '.join(_answered(first, asked))}")
    names = list(dict.fromkeys([*asked, *trainers]))
    found = {task.name: task for task in material.tasks_of(replace(config.eval, tasks=names), data_dir)}
    waiting = list(found)
    while waiting:
        name = waiting.pop(0)
        first = comes_first(config.eval, found[name])
        if first is None or first in found:
            continue
        notes.append(f"{first} is fine-tuned too: {name} begins with its model")
        more = {task.name: task for task in material.tasks_of(replace(config.eval, tasks=[first]), data_dir)}
        found[first] = more[first]
        waiting.append(first)
    return {name: found[name] for name in _in_order(config.eval, found)}


def _answered(trainer: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if registry.find(name).trained_by == trainer]


def comes_first(suite: EvalConfig, task: Task) -> str | None:
    """The task whose model this one needs; None: it needs none."""
    return task.trained_by or suite.setting(task.name).start_from


def _in_order(suite: EvalConfig, tasks: Mapping[str, Task]) -> list[str]:
    """Names, each behind what comes first.

    Raises:
        UserError: a circle.
    """
    order: list[str] = []
    for name in tasks:
        line = [name]
        while (first := comes_first(suite, tasks[line[-1]])) is not None:
            if first in line:
                circle = " -> ".join([*line, first])
                raise UserError(f"start_from goes round in a circle ({circle}): let one of them begin as pretrained")
            line.append(first)
        order += [task for task in reversed(line) if task not in order]
    return order


def settings_of(
    suite: EvalConfig,
    tasks: Iterable[Task],
    longest: Callable[[int], int],
    typed: Collection[str],
    notes: list[str],
) -> dict[str, Setting]:
    """How each task is fine-tuned, with texts no longer than the model takes.

    Args:
        suite: with its settings.
        tasks: those with a model of their own are looked at.
        longest: how many tokens of so many the model takes.
        typed: keys on the command line; a ``max_length`` among them is not made shorter in silence.
        notes: gets a line for each length that was.

    Raises:
        UserError: a setting that is impossible, or a typed length that is too long.
    """
    found: dict[str, Setting] = {}
    known: dict[int, int] = {}
    for task in tasks:
        if task.trained_by is not None:
            continue
        setting = suite.setting(task.name)
        if setting.max_length not in known:
            known[setting.max_length] = longest(setting.max_length)
        most = known[setting.max_length]
        if setting.max_length > most:
            keys = [key for key in (f"eval.per_task.{task.name}.max_length", "eval.max_length") if key in typed]
            if keys:
                raise UserError(f"{keys[0]}={setting.max_length} is longer than the model: it takes {most} tokens")
            line = f"texts are cut to {most} tokens, the model's positions, not to the suite's {setting.max_length}"
            notes += [line] * (line not in notes)
            setting = replace(setting, max_length=most)
        found[task.name] = setting
    return found


def final_jobs(
    suite: EvalConfig,
    tasks: Mapping[str, Task],
    settings: Mapping[str, Setting],
    asked: Collection[str],
    weights_sha256: str,
) -> list[Job]:
    """The jobs whose scores are reported, and the first seeds of the tasks that others begin with.

    Args:
        suite: with the seeds of parts.
        tasks: in an order in which what others need comes first, as of ``tasks_needed``.
        settings: of each task with a model of its own.
        asked: tasks whose scores are wanted.
        weights_sha256: of the pretrained weights; or ``untrained``.
    """
    wanted = {tasks[name].trained_by or name for name in asked if name in tasks}
    found: dict[str, list[Job]] = {}
    for name, task in tasks.items():
        if task.trained_by is not None:
            continue
        setting = settings[name]
        parent = None if setting.start_from is None else found[setting.start_from][0].key
        also = tuple(other for other in asked if other in tasks and tasks[other].trained_by == name)
        seeds = setting.seeds if name in wanted else setting.seeds[:1]
        found[name] = [
            Job(name, setting, seed, seeds_of(suite, seed), weights_sha256, parent=parent, also=also) for seed in seeds
        ]
    return [job for jobs in found.values() for job in jobs]


def seeds_of(suite: EvalConfig, seed: int) -> Seeds:
    """What a job draws from: each part by itself, from the job's seed or from one that all jobs share."""
    own: Sequence[tuple[str, int | None]] = (
        ("initialization", suite.initialization_seed),
        ("order", suite.order_seed),
        ("dropout", suite.dropout_seed),
    )
    return Seeds(**{part: hashing.key(seed if shared is None else shared, part) for part, shared in own})
