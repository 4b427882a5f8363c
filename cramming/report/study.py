"""Runs as a study: groups that may be compared, the arms in each, the baseline of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from cramming.errors import UserError
from cramming.report.arms import Arm, Naming, arms_of, baseline_of, naming
from cramming.report.budgets import families
from cramming.report.comparable import Group, groups
from cramming.report.runs import Run
from cramming.suggest import nearest


@dataclass(frozen=True)
class Comparison:
    """Runs that are comparable, as arms.

    Attributes:
        group: the runs and what they share.
        name: what names its arms.
        arms: those with runs at their end.
        begun: arms whose runs are all unfinished.
        baseline: the arm the others are compared with, if it is here.
        meant: every arm that the baseline's description fits.
    """

    group: Group
    name: Naming
    arms: Sequence[Arm]
    begun: Sequence[Arm]
    baseline: Arm | None
    meant: Sequence[Arm]

    def unfinished(self, arm: Arm) -> list[Run]:
        """Runs of an arm that are not at their end."""
        return [run for run in self.group.unfinished if self.name.label(run) == arm.label]


@dataclass(frozen=True)
class Study:
    """All runs of a report; ``families`` are the comparisons that differ in their budget alone, smallest first."""

    families: Sequence[Sequence[Comparison]]

    @property
    def comparisons(self) -> list[Comparison]:
        """Every comparison, in the order of its group's label."""
        found = [c for family in self.families for c in family]
        return sorted(found, key=lambda c: (len(c.group.label), c.group.label))

    @property
    def labels(self) -> list[str]:
        """Every arm's label, in order."""
        return list(dict.fromkeys(arm.label for c in self.comparisons for arm in (*c.arms, *c.begun)))

    @property
    def baselines(self) -> list[str]:
        """The labels of baselines."""
        return list(dict.fromkeys(c.baseline.label for c in self.comparisons if c.baseline is not None))


def study_of(runs: Sequence[Run], baseline: Sequence[str], by: Sequence[str] | None = None) -> Study:
    """Group runs, name arms, find baselines.

    Args:
        runs: at least one.
        baseline: what the baseline's arm is called: a method, a label, or ``key=value``; empty: there is none.
        by: options that name an arm; None: all in which comparable runs differ.

    Raises:
        UserError: an option that no run has, or a baseline, other than the usual one, that is nowhere.
    """
    found = []
    for family in families(groups(runs)):
        name = naming([run for group in family for run in (*group.runs, *group.unfinished)], by)
        comparisons = []
        for group in family:
            arms = arms_of(group.runs, name)
            there = {arm.label for arm in arms}
            begun = [arm for arm in arms_of(group.unfinished, name) if arm.label not in there]
            chosen, meant = baseline_of(arms, baseline)
            comparisons.append(Comparison(group, name, arms, begun, chosen, meant))
        found.append(comparisons)
    study = Study(found)
    if baseline and list(baseline) != ["none"] and not study.baselines:
        words = ",".join(baseline)
        raise UserError(f"baseline={words} is none of the arms{nearest(words, study.labels)}")
    return study
