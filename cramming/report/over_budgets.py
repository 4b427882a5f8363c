"""The section on a design that was trained at several budgets."""

from collections.abc import Mapping, Sequence

import numpy as np

from cramming.report import budgets, figures, tables
from cramming.report.arms import Arm
from cramming.report.curves import MeanCurve
from cramming.report.document import Block, Figures, Heading, Text
from cramming.report.figures import Line, Style
from cramming.report.intervals import Estimate, mean_interval
from cramming.report.outcomes import Outcome, by_seed, outcomes_of
from cramming.report.part import budget_axis, file_name
from cramming.report.study import Comparison


def over_budgets(family: Sequence[Comparison], look: Mapping[str, Style], confidence: float) -> list[Block]:
    """Ends over budgets, and the budget each arm needs to end as well as the baseline at the largest.

    Args:
        family: comparisons that differ in nothing but the budget, the smallest first.
        look: arm -> how it is drawn.
        confidence: of all intervals.
    """
    runs = [run for c in family for run in c.group.runs]
    every = budgets.by_budget([c.group for c in family], family[0].name)
    arms = {label: every[label] for label in look if len(every.get(label, {})) > 1}
    if not arms:
        return []
    labels = [c.group.label for c in family]
    prefix = f"{'_'.join(labels).lower()}_ends"
    scale, axis = budget_axis(budgets.budget_s(family[-1].group), runs[0].unit)
    ends = {
        outcome: {label: _ends(at, outcome, confidence) for label, at in arms.items()}
        for outcome in outcomes_of(runs)
        if not outcome.detail
    }
    main = [outcome for outcome, of in ends.items() if any(c is not None and len(c.x) > 1 for c in of.values())]
    drawn = [
        figures.curves(
            f"{prefix}_{file_name(outcome.key)}",
            f"{tables.sentence(outcome.label)} at the end, over budgets",
            [Line(label, look[label], ends[outcome][label]) for label in arms],
            x_label=axis.replace("budget spent", "whole budget"), y_label=outcome.label, x_scale=scale, outcome=True,
        )
        for outcome in main
    ]  # fmt: skip
    blocks: list[Block] = [
        Heading(2, f"Over budgets: groups {', '.join(labels)}"),
        Text(
            "These groups differ in nothing but the budget, and each of their runs was trained to its own end, with "
            "the learning rate laid out for it."
        ),
        Figures([figure for figure in drawn if figure is not None]),
    ]
    baseline = family[-1].baseline
    if baseline is not None and baseline.label in arms and main:
        needed = [budgets.reaches(arms, baseline.label, outcome, confidence) for outcome in main]
        caption = (
            "Budget an arm needs, trained to its own end, to be as good as the baseline of the same seed at the "
            "largest budget, as a share of it. Between the budgets that were trained, outcomes are taken as straight "
            "lines in log(budget)."
        )
        blocks.append(tables.needs(main, needed, needed[0][0].arm, caption))
    return blocks


def _ends(at: Mapping[float, Arm], outcome: Outcome, confidence: float) -> MeanCurve | None:
    """The outcome's mean and interval at every budget."""
    found: list[tuple[float, Estimate]] = []
    for budget, arm in sorted(at.items()):
        values = list(by_seed(arm, outcome).values())
        if values:
            found.append((budget, mean_interval(values, confidence)))
    if not found:
        return None
    x, mean, low, high = (np.array(v) for v in zip(*((b, e.mean, e.low, e.high) for b, e in found), strict=True))
    return MeanCurve(x, mean, low, high, max(e.n for _, e in found))
