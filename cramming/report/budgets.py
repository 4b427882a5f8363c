"""One design at several budgets, such as 6, 12 and 24 hours: every budget was trained to its own end.

A curve inside one run sees a learning rate that is laid out for the whole budget; runs of their own do not, and scores
of fine-tuning are known at the ends of runs only. Where a study has both, this is the fairer answer.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cramming.report.arms import Arm, Naming, arms_of
from cramming.report.comparable import BUDGETS, FACTS, Group
from cramming.report.curves import Curve, first_reach
from cramming.report.intervals import mean_interval
from cramming.report.outcomes import Outcome, Reach, by_seed, first


def families(found: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ in nothing but the budget, together; each list has the smallest budget first."""
    places: dict[tuple[str, ...], list[Group]] = {}
    for group in found:
        key = tuple(group.facts[fact] for fact in FACTS if fact not in BUDGETS)
        places.setdefault(key, []).append(group)
    return [sorted(groups, key=budget_s) for groups in places.values()]


def budget_s(group: Group) -> float:
    """The budget of a group's runs, in the clock's unit."""
    return (*group.runs, *group.unfinished)[0].budget_s


def by_budget(groups: Sequence[Group], name: Naming) -> dict[str, dict[float, Arm]]:
    """Arm's label -> budget -> the arm at that budget."""
    found: dict[str, dict[float, Arm]] = {}
    for group in groups:
        for arm in arms_of(group.runs, name):
            found.setdefault(arm.label, {})[budget_s(group)] = arm
    return found


def reaches(arms: Mapping[str, Mapping[float, Arm]], baseline: str, outcome: Outcome, confidence: float) -> list[Reach]:
    """The budget each arm needs to end as well as the baseline does at its largest, as a share of it, by seed.

    The outcome is taken as a straight line in log(budget) between the budgets that were trained:
    share(seed) = B(arm, target) / B(baseline, target), with B = exp(``curves.first_reach``).
    """
    curves = {label: _curves(at, outcome) for label, at in arms.items()}
    largest = {label: at[max(at)] for label, at in arms.items()}
    last = math.log(max(arms[baseline]))
    targets = {seed: c.y[-1] for seed, c in curves[baseline].items() if c.x[-1] == last}
    own = {
        seed: need
        for seed, target in targets.items()
        if (need := first_reach(curves[baseline][seed], target, outcome.lower_is_better)) is not None
    }
    found = []
    for arm in first(largest[baseline], list(largest.values())):
        shares: dict[int, float] = {}
        missed = []
        for seed in sorted(curves[arm.label].keys() & own.keys()):
            need = first_reach(curves[arm.label][seed], targets[seed], outcome.lower_is_better)
            if need is None:
                missed.append(seed)
            else:
                shares[seed] = math.exp(need - own[seed])
        share = mean_interval(list(shares.values()), confidence) if shares and not missed else None
        found.append(Reach(arm, shares, missed, share, False))
    return found


def _curves(at: Mapping[float, Arm], outcome: Outcome) -> dict[int, Curve]:
    """Seed -> the outcome over log(budget), of the seeds that have it at two budgets or more."""
    points: dict[int, list[tuple[float, float]]] = {}
    for budget, arm in sorted(at.items()):
        for seed, value in by_seed(arm, outcome).items():
            points.setdefault(seed, []).append((math.log(budget), value))
    return {seed: Curve(*np.array(pairs).T) for seed, pairs in points.items() if len(pairs) > 1}
