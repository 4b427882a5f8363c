"""The part of a report on fine-tuning: every suite over its tasks, differences to the baseline, a figure.

A model's score in a task is its mean over seeds of fine-tuning. An arm with several pretraining seeds has the mean and
interval over those; with one run there is only the interval over fine-tuning seeds, which is marked, since it does not
say what another pretraining would have given.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from cramming.report import figures
from cramming.report.arms import ABSENT, Arm
from cramming.report.document import Block, Cell, Column, Figures, Heading, Notices, Table, Text, Tone
from cramming.report.figures import GREY, Style
from cramming.report.intervals import Estimate, mean_interval, paired_difference
from cramming.report.outcomes import judge
from cramming.report.runs import Checkpoint, Run
from cramming.report.scores import Score, Scores

_SPACE = "\N{NO-BREAK SPACE}"
_FINE_TUNING, _CHANCE = "\N{DAGGER}", "\N{DOUBLE DAGGER}"
_BASELINES = {"majority": "majority class", "positive": "always positive", "length": "length only"}
_TONES: Mapping[str, Tone] = {"better": "better", "worse": "worse"}
_MARKERS = ("s", "D", "^", "v", "P")  # of models that are no arm
_AVERAGE = "average"
_SHORT = {"accuracy": "acc", "matthews_correlation": "MCC", "pearson": "r", "spearmanr": "rho", "f1": "F1",
          "macro_f1": "macro F1", "micro_f1": "micro F1", "f1_a": "F1a", "record_f1": "F1"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the tables: an arm, an arm's models as they were before or on the way, or somebody's checkpoint.

    Attributes:
        label: for people.
        style: in figures.
        scores: pretraining seed -> scores of its runs, one where none was repeated; a checkpoint's is called 0.
        arm: the arm whose colour it has.
        hollow: drawn as a ring: it is not what the arm ended with.
        marker: in figures.
    """

    label: str
    style: Style
    scores: Mapping[int, Sequence[Scores]]
    arm: str | None = None
    hollow: bool = False
    marker: str = "o"

    def of_suite(self, key: str) -> "Row":
        """The same with the scores of one suite only."""
        kept = {seed: [s for s in own if s.key == key] for seed, own in self.scores.items()}
        kept = {seed: own for seed, own in kept.items() if own}
        return Row(self.label, self.style, kept, self.arm, self.hollow, self.marker)

    @property
    def single(self) -> Scores | None:
        """Its scores, if they are one model's."""
        every = [scores for own in self.scores.values() for scores in own]
        return every[0] if len(every) == 1 else None

    def by_seed(self, task: str) -> dict[int, float]:
        """Pretraining seed -> score; runs of one seed are averaged first."""
        found = {}
        for seed, own in self.scores.items():
            values = [score.value for scores in own if (score := score_in(scores, task)) is not None]
            if values:
                found[seed] = fmean(values)
        return found


@dataclass(frozen=True)
class Suite:
    """A suite with the rows that have scores in it.

    Attributes:
        title: for people.
        key: ``Scores.key``.
        rule: of its average.
        rows: the baseline first.
        baseline: the row the others are compared with.
        tasks: in order, without the average.
        averaged: whether any row has the average.
    """

    title: str
    key: str
    rule: str
    rows: Sequence[Row]
    baseline: Row | None
    tasks: Mapping[str, str] = field(default_factory=dict)
    averaged: bool = False

    @property
    def columns(self) -> list[str]:
        """The average, where there is one, then the tasks."""
        return [*([_AVERAGE] if self.averaged else []), *self.tasks]


def rows_of(
    arms: Sequence[Arm], look: Mapping[str, Style], unfinished: Sequence[Run], checkpoints: Sequence[Checkpoint]
) -> list[Row]:
    """Arms, each followed by what else of it was fine-tuned; then what is in no mean: unfinished runs, checkpoints."""
    found = []
    for arm in arms:
        variants = sorted({scores.variant for run in arm.runs for scores in run.scores})
        for variant in variants:
            own = {seed: [s for run in runs for s in run.scores if s.variant == variant]
                   for seed, runs in arm.by_seed.items()}  # fmt: skip
            label = f"{arm.label}, {variant}" if variant else arm.label
            kept = {seed: scores for seed, scores in own.items() if scores}
            found.append(Row(label, look[arm.label], kept, arm.label, bool(variant)))
    others = [(run.name, run.scores, " (unfinished)") for run in unfinished if run.scores]
    others += [(checkpoint.name, checkpoint.scores, "") for checkpoint in checkpoints]
    for place, (name, scores, said) in enumerate(others):
        marker = _MARKERS[place % len(_MARKERS)]
        for variant in sorted({s.variant for s in scores}):
            label = f"{name}{said}" + (f", {variant}" if variant else "")
            own = {0: [s for s in scores if s.variant == variant]}
            found.append(Row(label, Style(GREY), own, None, bool(variant), marker))
    return found


def suites_of(rows: Sequence[Row], baseline: Arm | None) -> list[Suite]:
    """Every suite in which a row has scores, by title."""
    known = {s.key: s for row in rows for own in row.scores.values() for s in own}
    found = []
    for key, one in sorted(known.items(), key=lambda item: (item[1].suite, item[0])):
        own = [part for row in rows if (part := row.of_suite(key)).scores]
        tasks: dict[str, str] = {}
        for scores in _every(own):
            tasks |= {task: name for task, name in scores.headlines.items() if task not in tasks}
        first = next((row for row in own if baseline and row.arm == baseline.label and not row.hollow), None)
        averaged = any(scores.average is not None for scores in _every(own))
        rule = f" ({one.rule})" if [other.suite for other in known.values()].count(one.suite) > 1 else ""
        found.append(Suite(one.suite + rule, key, one.rule, own, first, tasks, averaged))
    return found


def blocks(suites: Sequence[Suite], confidence: float, level: int, prefix: str) -> list[Block]:
    """The sections on fine-tuning, one for each suite.

    Args:
        suites: to show.
        confidence: of the intervals.
        level: of the headings.
        prefix: of the names of figures.
    """
    found: list[Block] = []
    for suite in suites:
        found += [Heading(level, f"Fine-tuning: {suite.title}")]
        if lines := list(_to_know(suite)):
            found.append(Notices("Before the scores", lines))
        found.append(table(suite, confidence))
        if suite.baseline is not None and len(suite.rows) > 1:
            found.append(differences(suite, suite.baseline, confidence))
        drawn = _figure(suite, confidence, prefix)
        found += [Figures([drawn])] if drawn is not None else []
    if found:
        found.append(
            Text(
                "Scores are those of each model at the end of its fine-tuning. Intervals are over seeds on the same "
                "rows; what other rows would say is not in them, which matters where a task has few."
            )
        )
    return found


def table(suite: Suite, confidence: float) -> Table:
    """Scores of every row in every task's headline, with what no reading gets below them."""
    share = f"{100 * confidence:.3g}{_SPACE}%"
    caption = f"{suite.title}, percent: mean ± half of the {share} interval over pretraining seeds."
    caption += " Seeds: of pretraining x of fine-tuning."
    columns = [Column("model", False), Column("seeds")]
    columns += [Column(_title(suite, task)) for task in suite.columns]
    rows, marks = [], set()
    for row in suite.rows:
        cells = [_name(row, suite), _seeds(row)]
        for task in suite.columns:
            text, value = _estimated(row, task, confidence, _chance(suite, task))
            marks |= {mark for mark in (_FINE_TUNING, _CHANCE) if mark in text}
            cells.append(Cell(text, value, "" if value is not None else "muted"))
        rows.append(cells)
    for key, label in _BASELINES.items():
        values = [_baseline(suite, key, task) for task in suite.columns]
        if any(value is not None for value in values):
            shown = [Cell(ABSENT if v is None else f"{v:.1f}", v, "muted") for v in values]
            rows.append([Cell(label, label, "muted"), Cell(""), *shown])
    if _FINE_TUNING in marks:
        caption += f" {_FINE_TUNING} Over fine-tuning seeds of one pretraining, which say nothing of another one."
    if _CHANCE in marks:
        caption += f" {_CHANCE} At chance: not above the best answer that is the same for every row."
    if suite.averaged:
        caption += f" Average: {suite.rule}."
    elif suite.rule != "not named":
        caption += f" There is no average, for no model has all it takes: {suite.rule}."
    return Table(caption, columns, rows)


def differences(suite: Suite, baseline: Row, confidence: float) -> Table:
    """Every row's difference to the baseline, paired by pretraining seed; of single runs by fine-tuning seed."""
    caption = f"{suite.title}: difference to {baseline.label}, paired by pretraining seed."
    columns = [Column("model", False), *(Column(_title(suite, task)) for task in suite.columns)]
    rows = []
    marked = False
    for row in suite.rows:
        if row is baseline:
            continue
        cells = [_name(row, suite)]
        for task in suite.columns:
            found, mark = difference(row, baseline, task, confidence)
            if found is None:
                cells.append(Cell(ABSENT, tone="muted"))
                continue
            marked |= bool(mark)
            half = "" if found.half is None else f"{_SPACE}±{_SPACE}{found.half:.1f}{mark}"
            verdict = judge(found, lower_is_better=False)
            words = f" {verdict}" if verdict in _TONES else ""
            cells.append(Cell(f"{found.mean:+.1f}{half}{words}", found.mean, _TONES.get(verdict, "muted")))
        rows.append(cells)
    if marked:
        caption += f" {_FINE_TUNING} One run each, paired by fine-tuning seed: a verdict on two models, not on arms."
    caption += ' "Better" and "worse": the interval of the differences leaves out zero.'
    return Table(caption, columns, rows)


def score_in(scores: Scores, task: str) -> Score | None:
    """A task's headline, or the average."""
    if task == _AVERAGE:
        return scores.average
    return scores.tasks.get(task, {}).get(scores.headlines.get(task, ""))


def estimate(row: Row, task: str, confidence: float) -> tuple[Estimate | None, str]:
    """A row's score with its interval, and the mark that says that it is over fine-tuning seeds."""
    values = row.by_seed(task)
    if len(values) != 1 or row.single is None:
        return (mean_interval(list(values.values()), confidence) if values else None), ""
    score = score_in(row.single, task)
    assert score is not None
    if len(score.by_seed) < 2:
        return Estimate(score.value, None, 1), ""
    return mean_interval(list(score.by_seed.values()), confidence), _FINE_TUNING


def difference(row: Row, baseline: Row, task: str, confidence: float) -> tuple[Estimate | None, str]:
    """Row minus baseline, and the mark that says that it is paired by fine-tuning seed."""
    values, reference = row.by_seed(task), baseline.by_seed(task)
    ours, theirs = row.single, baseline.single
    if ours is not None and theirs is not None:
        mine, other = score_in(ours, task), score_in(theirs, task)
        if mine is None or other is None:
            return None, ""
        if len(mine.by_seed.keys() & other.by_seed.keys()) > 1:
            return paired_difference(mine.by_seed, other.by_seed, confidence), _FINE_TUNING
        return Estimate(mine.value - other.value, None, 1), ""
    return (paired_difference(values, reference, confidence) if row.arm is not None else None), ""


def _estimated(row: Row, task: str, confidence: float, chance: float | None) -> tuple[str, float | None]:
    found, mark = estimate(row, task, confidence)
    if found is None:
        return ABSENT, None
    half = "" if found.half is None else f"{_SPACE}±{_SPACE}{found.half:.1f}{mark}"
    lost = _CHANCE if chance is not None and found.low <= chance else ""
    return f"{found.mean:.1f}{half}{lost}", found.mean


def _every(rows: Sequence[Row]) -> Iterator[Scores]:
    for row in rows:
        for own in row.scores.values():
            yield from own


def _baseline(suite: Suite, name: str, task: str) -> float | None:
    """What a baseline scores in a task's headline: the same for every model, for it does not look at them."""
    outcome = suite.tasks.get(task, "")
    found = [scores.baselines.get(task, {}).get(name, {}).get(outcome) for scores in _every(suite.rows)]
    return next((value for value in found if value is not None), None)


def _chance(suite: Suite, task: str) -> float | None:
    found = [value for name in ("majority", "positive") if (value := _baseline(suite, name, task)) is not None]
    return max(found, default=None)


def _title(suite: Suite, task: str) -> str:
    if task == _AVERAGE:
        return task
    metric, at, split = suite.tasks[task].partition("@")
    return f"{task} {_SHORT.get(metric, metric.replace('_', ' '))}{at}{split}"


def _name(row: Row, suite: Suite) -> Cell:
    said = " (baseline)" if suite.baseline is not None and row is suite.baseline else ""
    return Cell(row.label + said, row.label, arm=row.arm)


def _seeds(row: Row) -> Cell:
    """``3 x 5``: pretraining seeds, and with how many seeds each was fine-tuned; of a checkpoint only the latter."""
    tuned = {len(score.by_seed) for own in row.scores.values() for s in own for of in s.tasks.values()
             for score in of.values()}  # fmt: skip
    few, many = min(tuned, default=0), max(tuned, default=0)
    said = str(few) if few == many else f"{few} to {many}"
    return Cell(f"{len(row.scores)} x {said}" if row.arm is not None else said, len(row.scores) * many)


def _to_know(suite: Suite) -> Iterator[str]:
    """Jobs that failed; tasks that were not fine-tuned alike everywhere."""
    for row in suite.rows:
        for line in dict.fromkeys(line for own in row.scores.values() for s in own for line in s.failed):
            yield f"{row.label}: failed: {line}."
    for task in suite.tasks:
        settings = [json.loads(said) for said in {s.settings[task] for s in _every(suite.rows) if task in s.settings}]
        keys = sorted({key for one in settings for key in one if len({json.dumps(o.get(key)) for o in settings}) > 1})
        if keys:
            yield f"{task} was not fine-tuned alike everywhere: {', '.join(keys)} differ."


def _figure(suite: Suite, confidence: float, prefix: str) -> figures.Figure | None:
    rows = [
        figures.Points(
            row.label, row.style, [estimate(row, task, confidence)[0] for task in suite.columns], row.hollow, row.marker
        )
        for row in suite.rows
    ]
    marks = [_chance(suite, task) for task in suite.columns]
    name = "".join(letter if letter.isalnum() else "_" for letter in suite.key).lower()[:50].strip("_")
    titles = [_title(suite, task) for task in suite.columns]
    return figures.points(f"{prefix}scores_{name}", f"{suite.title}: scores by task", titles, rows, marks)
