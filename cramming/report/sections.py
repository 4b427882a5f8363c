"""The report as a document: what is in it and in what order."""

from collections.abc import Sequence

from cramming.report import evaluation, figures
from cramming.report.comparable import FACTS, differing
from cramming.report.document import Block, Cell, Column, Document, Heading, Notices, Table, Text
from cramming.report.notices import notices
from cramming.report.over_budgets import over_budgets
from cramming.report.part import Part
from cramming.report.provenance import what_was_run
from cramming.report.runs import Reading
from cramming.report.study import Comparison, Study


def document(study: Study, reading: Reading, title: str, confidence: float) -> tuple[Document, list[Table]]:
    """Everything the report says, and the tables for a terminal: those of the largest group.

    Args:
        study: what is compared.
        reading: where it comes from, with what is damaged.
        title: of the page.
        confidence: of all intervals.
    """
    look = figures.styles(study.labels, study.baselines)
    comparisons = study.comparisons
    several = len(comparisons) > 1
    blocks: list[Block] = [Text(_in_short(study, confidence))]
    if lines := notices(study, reading):
        blocks.append(Notices("Before the numbers", lines))
    if several:
        blocks += _apart(comparisons)
    parts = [
        Part(c, look, confidence, f"{c.group.label.lower()}_" if several else "", reading.checkpoints)
        for c in comparisons
    ]
    for c, part in zip(comparisons, parts, strict=True):
        if several:
            blocks += [Heading(2, f"Group {c.group.label}: {_counts(c)}"), Text(_facts(c, comparisons))]
        blocks += part.blocks()
    for family in study.families:
        if len(family) > 1:
            blocks += over_budgets(family, look, confidence)
    if not parts:
        suites = evaluation.suites_of(evaluation.rows_of([], look, [], reading.checkpoints), None)
        blocks += evaluation.blocks(suites, confidence, 2, "")
        return Document(title, blocks), [evaluation.table(suite, confidence) for suite in suites]
    blocks += [*what_was_run(comparisons), *_how_to_read(confidence)]
    return Document(title, blocks), parts[0].headline()


def _in_short(study: Study, confidence: float) -> str:
    comparisons = study.comparisons
    if not comparisons:
        return f"Scores of models that are no runs here. Intervals: {100 * confidence:.3g} %, Student's t over seeds."
    runs = [run for c in comparisons for run in c.group.runs]
    seeds = len({run.seed for run in runs})
    arms = len({arm.label for c in comparisons for arm in c.arms})
    budgets = ", ".join(dict.fromkeys(c.group.facts["budget"] for c in comparisons))
    return (
        f"{_plural(len(runs), 'finished run')}, {_plural(arms, 'arm')}, {_plural(seeds, 'seed')}. Budget: {budgets}. "
        f"Baseline: {', '.join(study.baselines) or 'not among them'}. Intervals: {100 * confidence:.3g} %, Student's t "
        "over seeds."
    )


def _plural(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _counts(c: Comparison) -> str:
    unfinished = f", {len(c.group.unfinished)} unfinished" if c.group.unfinished else ""
    return f"{_plural(len(c.group.runs), 'run')} in {_plural(len(c.arms), 'arm')}{unfinished}"


def _facts(c: Comparison, comparisons: Sequence[Comparison]) -> str:
    keys = differing([other.group for other in comparisons])
    return "Apart from the others by " + "; ".join(f"{key}: {c.group.facts[key]}" for key in keys) + "."


def _apart(comparisons: Sequence[Comparison]) -> list[Block]:
    """Which groups there are and what makes them so."""
    found = [c.group for c in comparisons]
    keys = differing(found)
    same = "; ".join(f"{key}: {found[0].facts[key]}" for key in FACTS if key not in keys and key != "prices")
    rows = [[Cell(key, key), *(Cell(group.facts[key], group.facts[key]) for group in found)] for key in keys]
    columns = [Column("what differs", False), *(Column(f"group {group.label}", False) for group in found)]
    return [
        Heading(2, "What is not comparable"),
        Text(
            f"These runs make {len(found)} groups that differ in {', '.join(keys)}. Nothing is averaged or compared "
            f"across groups. All share {same}."
        ),
        Table("", columns, rows),
    ]


def _how_to_read(confidence: float) -> list[Block]:
    return [
        Heading(2, "How to read this"),
        Text(
            f"Intervals are Student's t over seeds at {100 * confidence:.3g} %: mean ± t(n - 1) s / √n. With two or "
            "three seeds they are wide, because little is known; and they are not corrected for looking at many arms "
            "at once: of twenty arms that do nothing, one is expected to look better or worse."
        ),
        Text(
            "Differences are taken between runs of the same seed, which begin with the same weights and read the text "
            'in the same order. "Better" and "worse" mean that the interval of the differences leaves out zero; "no '
            'difference shown" does not mean that there is none.'
        ),
        Text(
            "The budget to reach the baseline is read from each run's own curve, with straight lines between its "
            "validations, and set against the baseline of the same seed, read alike. The learning rate of a run is "
            "laid out for its whole budget: a run planned for less could need less. There is a mean only where every "
            "seed got there; one that did not is counted, not left out."
        ),
        Text(
            "Budget is reference system time: what the cost table asks for every pass, whatever this machine took; of "
            "several devices it is the time of all of them together, so that runs meet at equal device-hours. "
            "Wall seconds hold validation, saving and whatever else the machine did. The training loss is that of the "
            "sequences a method chose to train on, so it compares only methods that choose none; the validation loss "
            "is of the same held-out sequences under the same masks for all. "
            "The curves of what happened on the way are means over seeds."
        ),
    ]
