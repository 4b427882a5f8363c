"""What a suite's jobs came to: ``results.json`` for programs, ``results.csv`` by seed, ``results.md`` for people.

``results.json`` has ``suite``, ``tasks`` (task -> outcome -> mean, std, ci95, best_mean and seeds, the score of each),
``average`` and ``average_rule``, as fractions; beside them ``details`` (task -> seeds, baselines, rows, truncation,
setting, selection), ``failed``, ``remarks``, ``cost`` and ``provenance``. An outcome is ``metric`` or ``metric@split``
(``Task.outcome``). ``tables`` says the same for people.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cramming.durable import write_atomically
from cramming.evaluation.averages import Averaged, averaged
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.job import JobResult
from cramming.evaluation.statistics import Summary, summary
from cramming.evaluation.tasks.task import Task

if TYPE_CHECKING:
    from rich.table import Table as RichTable

FORMAT = 1
Scores = Mapping[str, float | None]  # outcome -> score


@dataclass(frozen=True)
class Failure:
    """A job that gave no result, and why."""

    task: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Selection:
    """How a task's setting was chosen, and what that cost.

    Attributes:
        chosen: the values that were searched for.
        trials: how many settings were tried.
        split: on which rows they were compared, in words: ``validation``, or ``10 % of the training rows``.
        reported: whether that is the split whose scores are reported.
        steps: of all trials together.
        seconds: of all trials together.
        scores: of each trial: its values and its headline.
    """

    chosen: Mapping[str, Any]
    trials: int
    split: str
    reported: bool
    steps: int
    seconds: float
    scores: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Extra:
    """What the jobs' results do not say themselves.

    Attributes:
        failures: jobs without a result.
        selection: task -> how its setting was chosen, where a search did.
        provenance: the checkpoint's ``title``, ``weights`` (averaged, last, untrained), ``weights_sha256``, the
            ``command`` and whatever else repeats the numbers.
        notes: lines that a reader must know, such as row counts that differ from the official ones.
    """

    failures: Sequence[Failure] = ()
    selection: Mapping[str, Selection] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class TaskResults:
    """One task of a suite.

    Attributes:
        task: what it is.
        scores: outcome -> final score over seeds, the headline first; empty while there is none.
        best: outcome -> mean over seeds of the scores at each seed's best evaluation; None where there is only one.
        best_values: outcome -> the same of each seed.
        seeds: that are in the scores, in order.
        absent: seeds that were asked for and are neither there nor failed.
        failures: its failed jobs, or those of the task whose model answers it.
        baselines: name -> outcome -> score.
        rows: by split.
        cut: by split, what truncation left out: texts, tokens, spans.
        setting: how it was fine-tuned.
        stopped_early: seeds that patience ended.
        selection: how the setting was chosen.
    """

    task: Task
    scores: Mapping[str, Summary]
    best: Mapping[str, float | None]
    best_values: Mapping[str, tuple[float | None, ...]]
    seeds: tuple[int, ...]
    absent: tuple[int, ...]
    failures: tuple[Failure, ...]
    baselines: Mapping[str, Scores]
    rows: Mapping[str, int]
    cut: Mapping[str, Mapping[str, int]]
    setting: Mapping[str, Any]
    stopped_early: tuple[int, ...]
    selection: Selection | None

    @property
    def headline(self) -> str | None:
        """The outcome a task is known by; None where nothing is scored."""
        return self.task.outcome(self.task.metrics[0], self.task.evaluated[0]) if self.task.evaluated else None


@dataclass(frozen=True)
class Results:
    """One suite, one checkpoint.

    Attributes:
        suite: its title.
        name: of the suite's configuration; the folder's name begins with it.
        tasks: in the suite's order.
        average: or why there is none.
        remarks: what a reader must know.
        cost: jobs, steps and seconds of what is in the scores.
        provenance: of the checkpoint and the numbers.
    """

    suite: str
    name: str
    tasks: tuple[TaskResults, ...]
    average: Averaged
    remarks: tuple[str, ...]
    cost: Mapping[str, float]
    provenance: Mapping[str, Any]


def collect(
    config: EvalConfig,
    tasks: Sequence[Task],
    results: Sequence[JobResult],
    baselines: Mapping[str, Mapping[str, Scores]],
    extra: Extra | None = None,
) -> Results:
    """Put a suite's jobs together.

    Args:
        config: the suite.
        tasks: of the suite, in its order; those that another task's model answers, too.
        results: of the jobs that are done; trials of a search are left out.
        baselines: task -> name -> outcome -> score, as ``baselines.of_splits`` makes them.
        extra: failed jobs, selections, provenance.

    Raises:
        UserError: an outcome of the average that is not spelled ``task.metric``, or an impossible setting.
    """
    extra = extra or Extra()
    final = sorted((result for result in results if result.purpose == "final"), key=lambda result: result.seed)
    found = tuple(_of_task(config, task, final, baselines.get(task.name, {}), extra) for task in tasks)
    scores = {own.task.name: own.scores for own in found}
    average = averaged(config.average, scores, {own.task.name: own.seeds for own in found})
    versions = {f"{key} {value}": (key, value) for result in final for key, value in result.versions.items()}
    named: dict[str, list[str]] = {}
    for key, value in versions.values():
        named.setdefault(key, []).append(value)
    cost: dict[str, float] = {"jobs": len(final), "steps": sum(result.steps for result in final)}
    for result in final:
        for part, seconds in result.seconds.items():
            cost[f"{part}_s"] = cost.get(f"{part}_s", 0.0) + seconds
    return Results(
        suite=config.suite,
        name=config.name,
        tasks=found,
        average=average,
        remarks=(*extra.notes, *average.remarks, *(line for own in found for line in _remarks(own))),
        cost=cost,
        provenance={**extra.provenance, "versions": {key: ", ".join(values) for key, values in named.items()}},
    )


def write(folder: Path, results: Results) -> None:
    """Write ``results.json``, ``results.csv`` and ``results.md``, each whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    from cramming.evaluation.tables import markdown_of

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(results), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "results.json", f"{text}\n".encode())
    write_atomically(folder / "results.csv", as_csv(results).encode())
    write_atomically(folder / "results.md", markdown_of(results).encode())


def table(results: Results) -> "RichTable":
    """Every task's headline as a table of rich."""
    from cramming.evaluation.tables import headlines
    from cramming.report.markdown import screen

    return screen(headlines(results))


def printed(results: Results, width: int | None = None) -> str:
    """The same as lines that fit a terminal, with the average and the remarks below it."""
    from cramming.evaluation.tables import below, headlines
    from cramming.report.markdown import terminal

    return "\n".join([terminal(headlines(results), width), *below(results)])


def as_json(results: Results) -> dict[str, Any]:
    """Plain values of ``results.json``."""
    average, over_seeds = results.average, results.average.over_seeds
    return {
        "format": FORMAT,
        "suite": results.suite,
        "name": results.name,
        "tasks": {
            own.task.name: {
                outcome: {
                    "mean": score.mean,
                    "std": score.std,
                    "ci95": None if score.ci95 is None else list(score.ci95),
                    "best_mean": own.best.get(outcome),
                    "seeds": list(score.values),
                }
                for outcome, score in own.scores.items()
            }
            for own in results.tasks
            if own.scores
        },
        "average": average.value,
        "average_rule": average.rule,
        "average_of": list(average.of),
        "average_missing": list(average.missing),
        "average_std": None if over_seeds is None else over_seeds.std,
        "average_ci95": None if over_seeds is None or over_seeds.ci95 is None else list(over_seeds.ci95),
        "average_seeds": None if over_seeds is None else list(over_seeds.values),
        "details": {own.task.name: _details(own) for own in results.tasks},
        "failed": [asdict(failure) for own in results.tasks for failure in own.failures],
        "remarks": list(results.remarks),
        "cost": dict(results.cost),
        "provenance": dict(results.provenance),
    }


def as_csv(results: Results) -> str:
    """A line for each task, outcome and seed; fractions."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["suite", "task", "metric", "seed", "final", "best", "majority", "length"])
    for own in results.tasks:
        for outcome, score in own.scores.items():
            base = [own.baselines.get(name, {}).get(outcome) for name in ("majority", "length")]
            for seed, value, best in zip(own.seeds, score.values, own.best_values[outcome], strict=True):
                rows.writerow([results.suite, own.task.name, outcome, seed, value, best, *base])
    return file.getvalue()


def _of_task(
    config: EvalConfig, task: Task, final: Sequence[JobResult], baselines: Mapping[str, Scores], extra: Extra
) -> TaskResults:
    trainer = task.trained_by or task.name
    asked = config.setting(trainer).seeds
    jobs = [job for job in final if job.task == trainer and (trainer == task.name or task.name in job.also)]
    finals: list[Scores] = [job.final.scores if trainer == task.name else job.also[task.name] for job in jobs]
    bests: list[Scores | None] = [job.evaluations[job.best].scores if trainer == task.name else None for job in jobs]
    names = [task.outcome(metric, split) for split in task.evaluated for metric in task.metrics]
    there = [name for name in names if finals and all(name in scores for scores in finals)]
    best_values = {name: tuple(None if scores is None else scores.get(name) for scores in bests) for name in there}
    failures = [replace(failure, task=task.name) for failure in extra.failures if failure.task == trainer]
    first = jobs[0] if jobs else None
    return TaskResults(
        task=task,
        scores={name: summary([scores[name] for scores in finals]) for name in there},
        best={name: None if None in bests else summary(best_values[name]).mean for name in there},
        best_values=best_values,
        seeds=tuple(job.seed for job in jobs),
        absent=tuple(sorted(set(asked) - {job.seed for job in jobs} - {failure.seed for failure in failures})),
        failures=tuple(failures),
        baselines=baselines,
        rows={} if first is None else first.rows,
        cut={} if first is None else first.cut,
        setting={} if first is None else first.setting,
        stopped_early=tuple(job.seed for job in jobs if job.stopped_early),
        selection=extra.selection.get(trainer),
    )


def _details(own: TaskResults) -> dict[str, Any]:
    return {
        "title": own.task.title,
        "headline": own.headline,
        "trained_by": own.task.trained_by,
        "seeds": list(own.seeds),
        "absent_seeds": list(own.absent),
        "baselines": {name: dict(scores) for name, scores in own.baselines.items()},
        "rows": dict(own.rows),
        "cut": {split: dict(cut) for split, cut in own.cut.items()},
        "setting": dict(own.setting),
        "stopped_early_seeds": list(own.stopped_early),
        "selection": None if own.selection is None else asdict(own.selection),
    }


def _remarks(own: TaskResults) -> list[str]:
    """What must be known of a task's numbers."""
    lines, title = [], own.task.title
    for outcome, score in own.scores.items():
        if score.undefined:
            lines.append(
                f"{title}: {outcome} is undefined in {score.undefined} of {score.n} seeds: the predictions are constant"
                + ("" if score.mean is None else " there, and it counts as 0 in the mean")
            )
    for split, cut in own.cut.items():
        if cut.get("spans"):
            lines.append(f"{title}: truncation cut off {cut['spans']} of the words asked about in {split}")
    if own.selection is not None and own.selection.reported:
        lines.append(
            f"{title}: the setting is the best of {own.selection.trials} on {own.selection.split}, the rows that are "
            "reported here: these scores are too high by what that choice brought"
        )
    if own.seeds and own.failures:
        lines.append(f"{title}: the mean is over the {len(own.seeds)} seeds whose jobs did not fail")
    if own.seeds and own.absent:
        lines.append(f"{title}: seeds {', '.join(map(str, own.absent))} are not there yet")
    return lines
