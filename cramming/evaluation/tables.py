"""Results as tables for people: percent with one decimal, and what no reading at all would get beside every score."""

from collections.abc import Iterator
from textwrap import shorten

from cramming.evaluation.results import Failure, Results, TaskResults
from cramming.evaluation.statistics import Summary, at_chance, chance
from cramming.report.document import Block, Cell, Column, Document, Heading, Table, Text
from cramming.report.markdown import markdown

_SPACE = "\N{NO-BREAK SPACE}"
_NONE = "-"
_REASON = 48  # characters of it in the table
_COLUMNS = (
    Column("task", False),
    Column("metric", False),
    Column("seeds"),
    Column("final"),
    Column("best on dev"),
    Column("majority"),
    Column("length only"),
    Column("note", False),
)


def headlines(results: Results) -> Table:
    """A row for each task: its first metric on its first split."""
    rows = [
        _row(own, own.headline) if own.headline in own.scores else _unscored(own)
        for own in results.tasks
    ]  # fmt: skip
    title = str(results.provenance.get("title") or "")
    said = ": ".join(part for part in (results.suite, title) if part)
    return Table(f"{said} (percent; final: mean over seeds ± half of the 95 % interval)", _COLUMNS, rows)


def every_outcome(results: Results) -> Table:
    """A row for each metric of each split of each task."""
    rows = [_row(own, outcome) for own in results.tasks for outcome in own.scores]
    return Table("Every metric (percent).", _COLUMNS, rows)


def below(results: Results) -> list[str]:
    """The average, or why there is none; failed jobs; what must be known of the numbers."""
    lines = [line for line in [average_line(results)] if line]
    lines += [f"failed: {own.task.name}, seed {failure.seed}: {failure.reason}" for own, failure in _failures(results)]
    return [*lines, *results.remarks]


def average_line(results: Results) -> str:
    """``average 78.9 ± 0.4: mean of 9 numbers (...)``, or what it lacks; empty where the suite has none."""
    average = results.average
    if average.value is not None:
        half = None if average.over_seeds is None else average.over_seeds.half
        return f"average {_percent(average.value, half)}: {average.rule}"
    if average.missing:
        return f"no average: {', '.join(average.missing)} missing (it would be the {average.rule})"
    return ""


def markdown_of(results: Results) -> str:
    """The whole of ``results.md``."""
    blocks: list[Block] = [headlines(results)]
    blocks += [Text(line[:1].upper() + line[1:] + ".") for line in [average_line(results)] if line]
    if failed := list(_failures(results)):
        rows = [[Cell(own.task.name), Cell(str(failure.seed)), Cell(failure.reason)] for own, failure in failed]
        columns = [Column("task", False), Column("seed"), Column("reason", False)]
        blocks += [Heading(2, "Jobs that failed"), Table("", columns, rows)]
    if results.remarks:
        blocks += [Heading(2, "To know"), *(Text(f"{line}.") for line in results.remarks)]
    blocks += [
        Text(
            '"At chance" stands where a score does not clear the best answer that is the same for every example: the '
            "lower end of the interval, or with one seed the score itself, is not above it. Majority: the most "
            "frequent class of the training rows for every example. Length only: a regression on numbers of tokens. "
            "Final is what the model scores at its end; best on dev was chosen by the rows that are reported, and is "
            "too high by that. Intervals are over seeds on the same rows: what other rows would say is not in them."
        ),
        Heading(2, "Every metric"),
        every_outcome(results),
        Heading(2, "What was run"),
        _settings(results),
        Table("", [Column("fact", False), Column("value", False)], _facts(results)),
    ]
    return markdown(Document(results.suite, blocks))


def _row(own: TaskResults, outcome: str | None) -> list[Cell]:
    assert outcome is not None
    score = own.scores[outcome]
    base = [own.baselines.get(name, {}).get(outcome) for name in ("majority", "length")]
    return [
        Cell(own.task.name),
        Cell(outcome),
        Cell(str(score.n), score.n),
        Cell(_NONE if score.mean is None else _percent(score.mean, score.half), score.mean),
        *(Cell(_NONE if value is None else _percent(value), value) for value in (own.best.get(outcome), *base)),
        Cell(", ".join(_notes(own, outcome, score))),
    ]


def _unscored(own: TaskResults) -> list[Cell]:
    """A task without a score, and why."""
    if own.failures:
        # The whole reason is below the table; here it would push the numbers off the screen.
        said = f"failed: {shorten(own.failures[0].reason, _REASON, placeholder=' ...')}"
    elif own.headline is None:
        said = "its labels are not public" if own.seeds else "not yet answered"
    else:
        said = "not yet run"
    return [Cell(own.task.name), Cell(own.headline or _NONE), *(Cell(_NONE) for _ in range(5)), Cell(said)]


def _notes(own: TaskResults, outcome: str, score: Summary) -> Iterator[str]:
    if score.mean is None:
        yield "undefined"
    elif own.baselines and at_chance(score, chance(own.baselines, outcome)):
        yield "at chance"
    if own.failures:
        yield f"{len(own.failures)} failed"
    if own.absent:
        yield f"{len(own.absent)} to come"
    if own.stopped_early:
        yield f"{len(own.stopped_early)} stopped early"
    if own.selection is not None:
        yield f"best of {own.selection.trials} settings"


def _failures(results: Results) -> Iterator[tuple[TaskResults, Failure]]:
    for own in results.tasks:
        for failure in own.failures:
            yield own, failure


def _settings(results: Results) -> Table:
    """How each task was fine-tuned, on how many rows, and what truncation took."""
    keys = list(dict.fromkeys(key for own in results.tasks for key in own.setting if key != "seeds"))
    keys = [key for key in keys if any(own.setting.get(key) is not None for own in results.tasks)]
    titles = ("task", "seeds", "rows", "texts cut", *keys)
    rows = []
    for own in results.tasks:
        if own.seeds:
            sizes = ", ".join(f"{split} {n:,}" for split, n in own.rows.items())
            cut = ", ".join(f"{split} {said.get('texts', 0):,}" for split, said in own.cut.items())
            values = (
                own.task.name,
                ", ".join(map(str, own.seeds)),
                sizes,
                cut,
                *(own.setting.get(key) for key in keys),
            )
            rows.append([Cell(_said(value)) for value in values])
    return Table("Settings.", [Column(title, False) for title in titles], rows)


def _facts(results: Results) -> list[list[Cell]]:
    """Provenance and cost, and what each search cost."""
    facts = [(key, value) for key, value in results.provenance.items() if not isinstance(value, dict)]
    facts += [(f"{key}: {name}", value) for key, inner in results.provenance.items() if isinstance(inner, dict)
              for name, value in inner.items()]  # fmt: skip
    facts += [(f"cost: {key}", round(value)) for key, value in results.cost.items()]
    for own in results.tasks:
        if (chosen := own.selection) is not None:
            values = ", ".join(f"{key}={_said(value)}" for key, value in chosen.chosen.items())
            said = (
                f"{values}; best of {chosen.trials} on {chosen.split}; {chosen.steps:,} steps, {chosen.seconds:.0f} s"
            )
            facts.append((f"setting of {own.task.name}", said))
    return [[Cell(key), Cell(_said(value))] for key, value in facts]


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return _NONE if value is None else str(value)


def _percent(value: float, half: float | None = None) -> str:
    """``78.9 ± 0.4``."""
    return f"{100 * value:.1f}" + ("" if half is None else f"{_SPACE}±{_SPACE}{100 * half:.1f}")
