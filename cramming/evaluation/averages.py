"""One number for a suite, or none: an average over some of its outcomes is never called the suite's."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from cramming.errors import UserError
from cramming.evaluation.config import Average
from cramming.evaluation.statistics import Summary, summary


@dataclass(frozen=True)
class Averaged:
    """What the average is, or why there is none.

    Attributes:
        value: None: an outcome is missing, or the suite has no average.
        rule: in words, what it is the mean of.
        of: the outcomes it is the mean of, as ``task.metric``.
        missing: those that are not there.
        over_seeds: the average of each seed by itself, where every outcome has the same seeds; else None.
        remarks: what a reader must know.
    """

    value: float | None
    rule: str
    of: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    over_seeds: Summary | None = None
    remarks: tuple[str, ...] = ()


def averaged(
    average: Average,
    scores: Mapping[str, Mapping[str, Summary]],
    seeds: Mapping[str, tuple[int, ...]],
) -> Averaged:
    """The average of means over seeds.

    Flat: the mean of all outcomes. Nested: the mean over tasks of the mean over a task's outcomes. A score that is
    undefined counts as 0, and that is said.

    Args:
        average: which outcomes, and how.
        scores: task -> outcome -> score.
        seeds: task -> the seeds that are in its scores.

    Raises:
        UserError: an outcome that is not spelled ``task.metric`` or ``task.metric@split``.
    """
    if not average.of:
        return Averaged(None, average.rule)
    wanted = [parsed(name) for name in average.of]
    missing = tuple(f"{task}.{outcome}" for task, outcome in wanted if outcome not in scores.get(task, {}))
    if missing:
        return Averaged(None, average.rule, tuple(average.of), missing)
    found = [(task, scores[task][outcome]) for task, outcome in wanted]
    undefined = [
        f"the average counts {task}.{outcome} as 0 in the {score.undefined} of {score.n} seeds where it is undefined"
        for (task, outcome), (_, score) in zip(wanted, found, strict=True)
        if score.undefined
    ]
    value = mean([(task, score.mean or 0.0) for task, score in found], average.nested)
    alike = len({seeds[task] for task, _ in wanted}) == 1
    each = [
        mean([(task, score.values[place] or 0.0) for task, score in found], average.nested)
        for place in range(found[0][1].n if alike else 0)
    ]
    return Averaged(value, average.rule, tuple(average.of), (), summary(each) if each else None, tuple(undefined))


def mean(values: list[tuple[str, float]], nested: bool) -> float:
    """The mean of (task, value): of all alike, or of the tasks' means."""
    if not nested:
        return fmean(value for _, value in values)
    tasks: dict[str, list[float]] = {}
    for task, value in values:
        tasks.setdefault(task, []).append(value)
    return fmean(fmean(own) for own in tasks.values())


def parsed(name: str) -> tuple[str, str]:
    """``mnli.accuracy@mismatched`` -> (mnli, accuracy@mismatched).

    Raises:
        UserError: it is spelled otherwise.
    """
    before, at, split = name.partition("@")
    task, dot, metric = before.rpartition(".")
    if not (task and dot and metric) or (at and not split):
        raise UserError(f"eval.average.of: {name} must be task.metric or task.metric@split, such as mrpc.f1")
    return task, f"{metric}{at}{split}"
