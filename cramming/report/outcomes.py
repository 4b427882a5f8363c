"""What arms end with: final losses and scores, differences to the baseline, the budget to reach it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from cramming.report import curves
from cramming.report.arms import Arm
from cramming.report.intervals import Estimate, mean_interval, paired_difference
from cramming.report.runs import Run
from cramming.report.scores import Scores

_TAIL = 0.02  # of the budget: the training loss of a study that validates nothing is averaged over it
Judgement = str  # "better", "worse", "no difference shown", or "" where there is no interval


@dataclass(frozen=True)
class Outcome:
    """Something runs are judged by.

    Attributes:
        key: unique, for sorting and file names.
        label: for people.
        value: of a run; None where it has none.
        lower_is_better: true of losses.
        column: the column of ``metrics.jsonl`` that has it along the way; None: it is known at the end only.
        rule: how an average over tasks is made.
        detail: one task of a suite, shown below the averages.
    """

    key: str
    label: str
    value: Callable[[Run], float | None]
    lower_is_better: bool = False
    column: str | None = None
    rule: str | None = None
    detail: bool = False


@dataclass(frozen=True)
class Result:
    """One arm in one outcome; ``difference`` is to the baseline, paired by seed, None for the baseline itself."""

    arm: Arm
    estimate: Estimate | None
    difference: Estimate | None
    judgement: Judgement


@dataclass(frozen=True)
class Reach:
    """The budget an arm needs to end as well as the baseline, as a share of the baseline's, seed by seed.

    Attributes:
        arm: the arm.
        shares: seed -> share, of the seeds that got there.
        missed: seeds that did not get there within the budget.
        share: the mean with its interval, only where every seed got there: leaving out those that did not would
            flatter the arm.
        known_at_end_only: the outcome has no curve; a share is then an upper limit.
    """

    arm: Arm
    shares: Mapping[int, float]
    missed: Sequence[int]
    share: Estimate | None
    known_at_end_only: bool


def outcomes_of(runs: Sequence[Run]) -> list[Outcome]:
    """What these runs can be judged by: held-out loss and accuracy, then suites, then their tasks."""
    found = [
        Outcome("validation_loss", "validation loss", _number("validation_loss"), True, "validation_loss"),
        Outcome("validation_accuracy", "validation accuracy", _number("validation_accuracy"), False,
                "validation_accuracy"),
    ]  # fmt: skip
    found = [outcome for outcome in found if any(outcome.value(run) is not None for run in runs)]
    if not found and runs:  # nothing was held out
        found = [Outcome("training_loss", f"training loss, last {_TAIL:.0%} of the budget", _tail_loss, True)]
    scored = [scores for run in runs for scores in run.scores if not scores.variant]
    titles = {scores.key: scores.suite for scores in scored}
    rules = {scores.key: scores.rule for scores in scored}
    twice = {title for title in titles.values() if list(titles.values()).count(title) > 1}
    suites = {key: f" ({rules[key]})" if titles[key] in twice else "" for key in sorted(titles)}
    for key, by_rule in suites.items():
        averages = Outcome(key, f"{titles[key]} average{by_rule}", _average(key), rule=rules[key])
        if any(averages.value(run) is not None for run in runs):
            found.append(averages)
    for key, by_rule in suites.items():
        pairs = {
            (task, outcome)
            for scores in scored if scores.key == key
            for task, outcomes in scores.tasks.items() for outcome in outcomes
        }  # fmt: skip
        for task, outcome in sorted(pairs):
            label, value = f"{titles[key]}: {task}, {outcome}{by_rule}", _score(key, task, outcome)
            found.append(Outcome(f"{key}/{task}/{outcome}", label, value, rule=rules[key], detail=True))
    return found


def by_seed(arm: Arm, outcome: Outcome) -> dict[int, float]:
    """The outcome of each seed; runs of one seed are averaged first, so that a repeated run counts once."""
    found = {}
    for seed, runs in arm.by_seed.items():
        values = [value for run in runs if (value := outcome.value(run)) is not None]
        if values:
            found[seed] = fmean(values)
    return found


def results(arms: Sequence[Arm], baseline: Arm | None, outcome: Outcome, confidence: float) -> list[Result]:
    """Every arm in one outcome, the baseline first."""
    reference = by_seed(baseline, outcome) if baseline else {}
    found = []
    for arm in first(baseline, arms):
        values = by_seed(arm, outcome)
        estimate = mean_interval(list(values.values()), confidence) if values else None
        difference = paired_difference(values, reference, confidence) if arm is not baseline else None
        found.append(Result(arm, estimate, difference, judge(difference, outcome.lower_is_better)))
    return found


def judge(difference: Estimate | None, lower_is_better: bool) -> Judgement:
    """What an interval says: it lies on one side of zero, or it does not."""
    if difference is None or difference.half is None:
        return ""
    if difference.low <= 0 <= difference.high:
        return "no difference shown"
    return "better" if (difference.mean < 0) == lower_is_better else "worse"


def reaches(arms: Sequence[Arm], baseline: Arm, outcome: Outcome, confidence: float) -> list[Reach]:
    """What each arm needs to be as good as the baseline at its end, paired by seed.

    share(seed) = B(arm, target) / B(baseline, target), where target is what the baseline of that seed ends with and
    B the budget at which a curve is first as good (``curves.first_reach``).
    """
    targets = by_seed(baseline, outcome)
    own = {seed: need for seed, target in targets.items() if (need := _need(baseline, seed, outcome, target))}
    found = []
    for arm in first(baseline, arms):
        shares: dict[int, float] = {}
        missed = []
        for seed in sorted(by_seed(arm, outcome).keys() & own.keys()):
            need = _need(arm, seed, outcome, targets[seed])
            if need is None:
                missed.append(seed)
            else:
                shares[seed] = need / own[seed]
        share = mean_interval(list(shares.values()), confidence) if shares and not missed else None
        found.append(Reach(arm, shares, missed, share, not has_curve(arm, outcome)))
    return found


def has_curve(arm: Arm, outcome: Outcome) -> bool:
    """Whether the outcome is known along the way, not only at the end of the runs."""
    column = outcome.column
    return column is not None and all(len(curves.curve(run.rows, column)) > 1 for run in arm.runs)


def first(baseline: Arm | None, arms: Sequence[Arm]) -> list[Arm]:
    """The arms with the baseline in front."""
    return sorted(arms, key=lambda arm: arm is not baseline)


def _need(arm: Arm, seed: int, outcome: Outcome, target: float) -> float | None:
    """Budget at which an arm's seed is first as good as ``target``."""
    if not has_curve(arm, outcome):  # all that is known: it was good enough at the end, or not
        value = by_seed(arm, outcome).get(seed)
        good = value is not None and (value <= target if outcome.lower_is_better else value >= target)
        return fmean(run.spent_s for run in arm.by_seed[seed]) if good else None
    assert outcome.column is not None
    whole = curves.mean_over_runs([curves.curve(run.rows, outcome.column) for run in arm.by_seed[seed]])
    return curves.first_reach(whole, target, outcome.lower_is_better)


def _number(key: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found = run.summary.get(key)
        return float(found) if isinstance(found, int | float) else None

    return value


def _tail_loss(run: Run) -> float | None:
    """The mean training loss over the last share of the budget."""
    losses = [
        float(row["loss"]) for row in run.rows
        if row.get("loss") is not None and float(row.get("spent_s") or 0.0) >= (1 - _TAIL) * run.spent_s
    ]  # fmt: skip
    return fmean(losses) if losses else None


def scores_of(run: Run, key: str, variant: str = "") -> Scores | None:
    """What a run scored in a suite."""
    return next((scores for scores in run.scores if (scores.key, scores.variant) == (key, variant)), None)


def _average(key: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found = scores_of(run, key)
        return None if found is None or found.average is None else found.average.value

    return value


def _score(key: str, task: str, outcome: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found = scores_of(run, key)
        score = None if found is None else found.tasks.get(task, {}).get(outcome)
        return None if score is None else score.value

    return value
