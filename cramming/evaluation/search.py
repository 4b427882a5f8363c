"""Which learning rate, batch size and number of epochs a task is fine-tuned with, where a suite searches for them.

Every task of every model that a suite scores gets the same trials, drawn from the search's seed and the task's name
alone, each fine-tuned with the first of the task's seeds. What the trials cost is part of the result.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cramming import hashing
from cramming.errors import UserError
from cramming.evaluation.config import EvalConfig, Search, Setting, check_setting
from cramming.evaluation.job import Job, JobResult
from cramming.evaluation.plan import seeds_of
from cramming.evaluation.results import Selection
from cramming.suggest import nearest

KEYS = ("lr", "batch_size", "epochs")


def trials_of(suite: EvalConfig, task: str, setting: Setting) -> list[Setting]:
    """The settings to try for a task; none where nothing is searched for.

    A grid is every combination of the values, or ``search.trials`` of them in an order drawn from the search's seed.
    Random draws lie between the smallest and the largest value: rates evenly on a logarithmic scale, whole numbers for
    batch sizes, and for epochs one of the values.

    Args:
        suite: with its search.
        task: its name.
        setting: what is not searched for.

    Raises:
        UserError: nothing to try, more trials than combinations, or an impossible value.
    """
    search = suite.search
    if search.kind == "none":
        return []
    space = space_of(search, task)
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    if search.kind == "grid":
        if search.trials is not None and search.trials > len(grid):
            raise UserError(
                f"eval.search.trials={search.trials}: {task} has {len(grid)} combinations to try; "
                "give more values, or eval.search.kind=random"
            )
        if search.trials is not None:
            order = sorted(range(len(grid)), key=lambda place: hashing.key(search.seed, f"{task} {place}"))
            grid = [grid[place] for place in sorted(order[: search.trials])]
    else:
        if search.trials is None:
            raise UserError("eval.search.kind=random needs eval.search.trials=, how many settings to try for each task")
        grid = [_drawn(space, search.seed, task, trial) for trial in range(search.trials)]
    tried = [replace(setting, **values) for values in grid]
    for one in tried:
        check_setting(one, f"eval.search ({task})")
    return tried


def space_of(search: Search, task: str) -> dict[str, list[Any]]:
    """The values of each key that is searched for, the task's own before those of all.

    Raises:
        UserError: no values, or a key that cannot be searched for.
    """
    own: Mapping[str, Any] = search.per_task.get(task) or {}
    for key in own:
        if key not in KEYS:
            raise UserError(f"eval.search.per_task.{task}.{key} cannot be searched for{nearest(str(key), KEYS)}")
    space = {key: list(own.get(key, getattr(search, key))) for key in KEYS}
    space = {key: values for key, values in space.items() if values}
    if not space:
        raise UserError(f"eval.search.kind={search.kind} has nothing to try: give eval.search.lr=[1e-5,3e-5], say")
    for key, values in space.items():
        if len(set(values)) < len(values):
            raise UserError(f"eval.search.{key}={values} has a value twice")
        if not all(isinstance(value, int | float) and value > 0 and math.isfinite(value) for value in values):
            raise UserError(f"eval.search.{key}={values} must be numbers above zero")
    return space


def jobs_of(
    suite: EvalConfig, task: str, trials: Sequence[Setting], weights_sha256: str, parent: str | None
) -> list[Job]:
    """A job for each trial.

    Args:
        suite: with the seeds of parts, and the share of training rows that compares trials.
        task: its name.
        trials: of ``trials_of``.
        weights_sha256: of the pretrained weights; or ``untrained``.
        parent: key of the job whose model they begin with.
    """
    return [
        Job(
            task,
            setting,
            setting.seeds[0],
            seeds_of(suite, setting.seeds[0]),
            weights_sha256,
            parent=parent,
            purpose="search",
            train_share=1 - suite.search.heldout_fraction,
        )
        for setting in trials
    ]


def chosen(
    suite: EvalConfig,
    task: str,
    setting: Setting,
    results: Sequence[tuple[Job, JobResult | None]],
    headline: Callable[[JobResult], float | None],
) -> tuple[Setting, Selection]:
    """The trial with the best final headline, the first of equals; and what finding it took.

    Args:
        suite: with its search.
        task: its name.
        setting: what was not searched for.
        results: every trial and what came of it; None: it failed.
        headline: the final headline of a result, None where it is undefined.

    Raises:
        UserError: no trial has a score.
    """
    keys = tuple(space_of(suite.search, task))
    scores: list[dict[str, Any]] = []
    best: tuple[float, Setting] | None = None
    for job, result in results:
        score = None if result is None else headline(result)
        scores.append({**{key: getattr(job.setting, key) for key in keys}, "score": score})
        if score is not None and (best is None or score > best[0]):
            best = score, job.setting
    if best is None:
        raise UserError(f"{task}: none of its {len(results)} trials has a score, so no setting can be chosen")
    done = [result for _, result in results if result is not None]
    share = suite.search.heldout_fraction
    values = {key: getattr(best[1], key) for key in keys}
    selection = Selection(
        chosen=values,
        trials=len(results),
        split=f"{share:.0%} of the training rows" if share else "validation",
        reported=not share,
        steps=sum(result.steps for result in done),
        seconds=sum(sum(result.seconds.values()) for result in done),
        scores=scores,
    )
    return replace(setting, **values), selection


def _drawn(space: Mapping[str, Sequence[Any]], seed: int, task: str, trial: int) -> dict[str, Any]:
    """One random setting, the same on every machine."""
    drawn: dict[str, Any] = {}
    for key, values in space.items():
        uniform = (hashing.key(seed, f"{task} {key} {trial}") % 2**53) / 2**53
        low, high = min(values), max(values)
        if key == "lr":
            drawn[key] = float(f"{low * (high / low) ** uniform:.4g}")
        elif key == "batch_size":
            drawn[key] = min(int(high), int(low + uniform * (high - low + 1)))
        else:
            drawn[key] = values[min(len(values) - 1, int(uniform * len(values)))]
    return drawn
