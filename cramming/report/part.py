"""The sections of one comparison: ends, the budget to reach them, curves, accounts, arms."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from cramming.report import curves, evaluation, figures, tables
from cramming.report.arms import Arm
from cramming.report.curves import Curve, MeanCurve
from cramming.report.document import Block, Figure, Figures, Folded, Heading, Table, Text
from cramming.report.figures import Line, Style
from cramming.report.outcomes import Outcome, first, outcomes_of, reaches, results
from cramming.report.runs import Checkpoint, Run
from cramming.report.study import Comparison
from cramming.text import Unit

_LOSS = "loss (nats per predicted token)"
_TRACES = (
    ("lr", "Learning rate", "learning rate"),
    ("layers", "Depth", "layers; where drawn, mean so far"),
    ("kept_share", "Kept fraction", "share of candidates trained on"),
    ("tokens_per_s", "Throughput", "tokens trained on per second"),
    ("batch_size", "Batch size", "sequences"),
    ("mask_rate", "Mask rate", "share of positions predicted"),
)  # column -> title, unit
_ALWAYS = ("lr", "layers", "kept_share", "tokens_per_s")  # the others are drawn where they change


class Part:
    """What the report says of one comparison.

    Args:
        c: the comparison.
        look: arm -> how it is drawn.
        confidence: of all intervals.
        prefix: of the names of figures; empty where this is the only comparison.
        checkpoints: models that are no runs and have scores to set beside these.
    """

    def __init__(
        self,
        c: Comparison,
        look: dict[str, Style],
        confidence: float,
        prefix: str,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> None:
        self.c, self.look, self.confidence, self.prefix = c, look, confidence, prefix
        self.arms = first(c.baseline, c.arms)
        self.drawn_arms = [*self.arms, *c.begun]
        everything = (*c.group.runs, *c.group.unfinished)
        self.scale, self.axis = budget_axis(max(run.budget_s for run in everything), everything[0].unit)
        self.level = 3 if prefix else 2
        self.outcomes = outcomes_of(c.group.runs)
        self.main = [outcome for outcome in self.outcomes if not outcome.detail]
        rows = evaluation.rows_of(self.arms, look, c.group.unfinished, checkpoints)
        self.suites = evaluation.suites_of(rows, c.baseline)

    def headline(self) -> list[Table]:
        """The loss, the averages of suites and the scores in them, for the terminal."""
        chosen = [outcome for outcome in self.main if outcome.rule is not None or outcome is self.main[0]]
        found = [self._table(outcome) for outcome in chosen] if self.arms else []
        return [*found, *(evaluation.table(suite, self.confidence) for suite in self.suites)]

    def blocks(self) -> list[Block]:
        """All sections."""
        found: list[Block] = []
        if self.arms and self.main:
            found += [Heading(self.level, "Final loss and scores"), *self._finals()]
        found += evaluation.blocks(self.suites, self.confidence, self.level, self.prefix)
        if self.main and self.c.baseline is not None and len(self.arms) > 1:
            found += [Heading(self.level, "Budget to reach the baseline"), *self._needs(self.c.baseline)]
        found += self._section("Loss", self._losses())
        if self.arms:
            found += self._section("What the budget was spent on", [self._accounts()])
            caption = "Means over runs; shares are of the budget. Free accounts are written down and not paid."
            found.append(tables.ledgers(self.arms, self.c.baseline, caption))
        found += self._section("On the way", self._traces())
        if self.arms:
            caption = "What the arms are; the options are those of their first run."
            described = tables.settings(self.arms, self.c.baseline, self.c.name.also, caption)
            found += [Heading(self.level, "Arms"), described]
        return found

    def _section(self, title: str, drawn: Sequence[Figure | None]) -> list[Block]:
        kept = [figure for figure in drawn if figure is not None]
        return [Heading(self.level, title), Figures(kept)] if kept else []

    def _finals(self) -> list[Block]:
        found: list[Block] = []
        for outcome in self.main:
            found.append(self._table(outcome))
            if (drawn := self._differences(outcome)) is not None:
                found.append(Figures([drawn]))
        details = [outcome for outcome in self.outcomes if outcome.detail]
        if details:
            found.append(Folded("Every task", [self._table(outcome) for outcome in details]))
        return found

    def _table(self, outcome: Outcome) -> Table:
        baseline = self.c.baseline if len(self.arms) > 1 else None
        found = results(self.arms, self.c.baseline, outcome, self.confidence)
        return tables.finals(outcome, found, baseline, self.confidence)

    def _differences(self, outcome: Outcome) -> Figure | None:
        if self.c.baseline is None:
            return None
        found = results(self.arms, self.c.baseline, outcome, self.confidence)
        better = "left is better" if outcome.lower_is_better else "right is better"
        return figures.intervals(
            f"{self.prefix}difference_{file_name(outcome.key)}",
            f"{tables.sentence(outcome.label)}: difference to the baseline",
            [(r.arm.label, self.look[r.arm.label], r.difference) for r in found if r.difference is not None],
            label="difference",
            reference=0.0,
            reference_label=f"0: the baseline; {better}",
        )

    def _needs(self, baseline: Arm) -> list[Block]:
        found = [reaches(self.arms, baseline, outcome, self.confidence) for outcome in self.main]
        end_only = any(reach.known_at_end_only for of in found for reach in of)
        caption = (
            "Budget at which an arm is first as good as the baseline of the same seed is at its end, as a share of "
            "what that baseline took; below 100 % is a saving."
        )
        caption += ' "At most" stands where only the end is known.' if end_only else ""
        blocks: list[Block] = [tables.needs(self.main, found, baseline, caption)]
        if any(reach.known_at_end_only for reach in found[0]):
            blocks.append(
                Text(
                    f"The {self.main[0].label} of some runs is known at their end only: with "
                    "`impl.validate_every_h=...` there is a curve to read the budget from."
                )
            )
        label = self.main[0].label
        drawn = figures.intervals(
            f"{self.prefix}budget_to_reach",
            f"Budget to reach the baseline's {label}",
            [
                (reach.arm.label, self.look[reach.arm.label], reach.share)
                for reach in found[0]
                if reach.share is not None and not reach.known_at_end_only and reach.arm is not baseline
            ],
            label="% of the baseline's budget",
            reference=1.0,
            reference_label="left of the line is a saving",
            percent=True,
        )
        return blocks + ([Figures([drawn])] if drawn is not None else [])

    def _losses(self) -> list[Figure | None]:
        drawn: list[Figure | None] = []
        for column, title in (("validation_loss", "Validation loss"), ("loss", "Training loss")):
            smooth = column == "loss"
            for wall, name, words, scale, axis in (
                (False, "budget", "budget", self.scale, self.axis),
                (True, "wall", "wall seconds", 1.0, "wall time (seconds)"),
            ):
                lines = [self._line(arm, column, smooth, wall) for arm in self.drawn_arms]
                drawn.append(
                    figures.curves(
                        f"{self.prefix}{column}_by_{name}", f"{title} against {words}", lines,
                        x_label=axis, y_label=_LOSS, x_scale=scale, outcome=True,
                    )
                )  # fmt: skip
        return drawn

    def _traces(self) -> list[Figure | None]:
        drawn: list[Figure | None] = []
        for column, title, unit in _TRACES:
            lines = [self._line(arm, column) for arm in self.drawn_arms]
            seen = {value for line in lines if line.mean is not None for value in line.mean.mean}
            if column in _ALWAYS or len(seen) > 1:
                name = f"{self.prefix}{column}"
                drawn.append(figures.curves(name, title, lines, x_label=self.axis, y_label=unit, x_scale=self.scale))
        return drawn

    def _line(self, arm: Arm, column: str, smooth: bool = False, wall: bool = False) -> Line:
        """An arm's mean over seeds, and its unfinished runs one by one."""
        finished = [run for run in arm.runs if run.unfinished is None]
        seeds: dict[int, list[Curve]] = {}
        for run in finished:
            seeds.setdefault(run.seed, []).append(curves.curve(rows_of(run, column), column, smooth=smooth))
        mean = curves.mean_curve(
            [curves.mean_over_runs(of) for of in seeds.values() if all(map(len, of))], self.confidence
        )
        if wall and mean is not None:
            mean = MeanCurve(_wall(finished, mean.x), mean.mean, mean.low, mean.high, mean.n)
        x = "elapsed_s" if wall else "spent_s"
        singles = [curves.curve(rows_of(run, column), column, x, smooth) for run in self.c.unfinished(arm)]
        return Line(arm.label, self.look[arm.label], mean, [_thinned(single) for single in singles if len(single)])

    def _accounts(self) -> Figure | None:
        rows = []
        for arm in self.arms:
            named = dict.fromkeys(account for run in arm.runs for account, spent in run.ledger.items() if spent)
            shares = {
                account: fmean(run.ledger.get(account, 0.0) / run.budget_s for run in arm.runs) for account in named
            }
            rows.append((arm.label, shares, frozenset(account for run in arm.runs for account in run.free)))
        return figures.accounts(f"{self.prefix}accounts", "Budget by account", rows)


def budget_axis(longest_s: float, unit: Unit) -> tuple[float, str]:
    """A factor that makes the numbers of a budget axis short, and its label."""
    if unit == "steps":
        return 1.0, "budget spent (steps)"
    for seconds, name in ((3600, "hours"), (60, "minutes")):
        if longest_s >= 2 * seconds:
            return 1 / seconds, f"budget spent (reference {name})"
    return 1.0, "budget spent (reference seconds)"


def file_name(key: str) -> str:
    """A key as a part of a file's name."""
    return "".join(letter if letter.isalnum() else "_" for letter in key).strip("_").lower()[:60]


def _wall(runs: Sequence[Run], spent: curves.Values) -> curves.Values:
    """Mean wall seconds (G,) at budgets (G,): seeds are averaged at equal budgets, whatever their machine did."""
    taken = [curves.curve(run.rows, "elapsed_s") for run in runs]
    return np.asarray(np.mean([np.interp(spent, c.x, c.y) for c in taken if len(c)], axis=0))


def rows_of(run: Run, column: str) -> Sequence[Mapping[str, Any]]:
    """A run's rows; where layers are drawn by chance, their depth is what sequences went through, not what there is."""
    if column != "layers":
        return run.rows
    return [{**row, "layers": row.get("mean_layers", row.get("layers"))} for row in run.rows]


def _thinned(c: Curve) -> Curve:
    """At most ``curves.PLACES`` points of a curve."""
    if len(c) <= curves.PLACES:
        return c
    x = np.linspace(c.x[0], c.x[-1], curves.PLACES)
    return Curve(x, np.interp(x, c.x, c.y))
