"""Differences paired by seed, the budget to reach the baseline, scores; in one budget and over several."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import loss_at, run, scored

from cramming.report import budgets, tables
from cramming.report.arms import Arm
from cramming.report.intervals import Estimate
from cramming.report.outcomes import Outcome, Reach, Result, judge, outcomes_of, reaches, results
from cramming.report.runs import read
from cramming.report.study import Comparison, study_of

STACKING = {"method": {"layer_stacking": {}}}


def comparison(base: Path, *each: dict[str, Any]) -> Comparison:
    """One group of runs with the given arguments."""
    runs = [read(run(base, f"run-{i:02d}", **arguments))[0] for i, arguments in enumerate(each)]
    (found,) = study_of(runs, ["none"]).comparisons
    return found


def pair(baseline: list[float], arm: list[float], **arguments: Any) -> list[dict[str, Any]]:
    """Runs of the baseline and of layer stacking that end at these losses, seeds from 0."""
    each = [{"final": loss, "options": {"seed": seed}, **arguments} for seed, loss in enumerate(baseline)]
    return each + [{"final": loss, "options": {**STACKING, "seed": seed}, **arguments} for seed, loss in enumerate(arm)]


def outcome(c: Comparison, key: str) -> Outcome:
    return next(o for o in outcomes_of(c.group.runs) if o.key == key)


def result(c: Comparison, key: str = "validation_loss") -> Result:
    """Layer stacking's."""
    return results(c.arms, c.baseline, outcome(c, key), 0.95)[1]


def reach(c: Comparison, key: str = "validation_loss") -> Reach:
    """Layer stacking's."""
    assert c.baseline is not None
    return reaches(c.arms, c.baseline, outcome(c, key), 0.95)[1]


def test_the_difference_is_paired_by_seed(tmp_path: Path) -> None:
    found = result(comparison(tmp_path, *pair([6.0, 6.5, 7.0], [5.9, 6.38, 6.92])))
    assert found.arm.label == "layer_stacking"
    assert found.estimate is not None
    assert found.difference is not None
    assert found.estimate.mean == pytest.approx((5.9 + 6.38 + 6.92) / 3)
    assert found.difference.mean == pytest.approx(-0.1)  # of -0.10, -0.12, -0.08: s = 0.02
    assert found.difference.half == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)
    assert (found.difference.n, found.judgement) == (3, "better")


@pytest.mark.parametrize(
    ("mean", "half", "lower", "said"),
    [
        (-0.2, 0.1, True, "better"), (0.2, 0.1, True, "worse"), (0.2, 0.1, False, "better"),
        (-0.2, 0.1, False, "worse"), (0.1, 0.2, True, "no difference shown"), (0.1, 0.1, True, "no difference shown"),
        (0.1, None, True, ""),
    ],
)  # fmt: skip
def test_a_verdict_needs_an_interval_that_leaves_out_zero(
    mean: float, half: float | None, lower: bool, said: str
) -> None:
    assert judge(Estimate(mean, half, 3), lower) == said


def test_a_repeated_run_counts_once(tmp_path: Path) -> None:
    c = comparison(tmp_path, *pair([6.0, 6.2], []), {"final": 6.4, "options": {"seed": 0}})
    (found,) = results(c.arms, c.baseline, outcome(c, "validation_loss"), 0.95)
    assert found.estimate is not None
    assert found.estimate.n == 2
    assert found.estimate.mean == pytest.approx((6.2 + 6.2) / 2)  # seed 0: the mean of 6.0 and 6.4


def test_the_budget_to_reach_the_baseline_is_read_from_the_curve(tmp_path: Path) -> None:
    found = reach(comparison(tmp_path, *pair([6.0, 6.2], [5.8, 5.8], validations=40)))
    # Where the arm's curve crosses what the baseline of that seed ends with, at 40 validations on straight lines.
    places = np.arange(1, 41) / 40
    curve = np.array([loss_at(p, 5.8) for p in places])
    by_hand = {seed: float(np.interp(-target, -curve, places)) for seed, target in ((0, 6.0), (1, 6.2))}
    assert found.shares == pytest.approx(by_hand)
    assert found.missed == []
    assert found.share is not None
    assert found.share.mean == pytest.approx((by_hand[0] + by_hand[1]) / 2)
    assert not found.known_at_end_only


def test_the_baseline_needs_all_of_its_budget(tmp_path: Path) -> None:
    c = comparison(tmp_path, *pair([6.0, 6.2], [5.8, 5.8]))
    assert c.baseline is not None
    own = reaches(c.arms, c.baseline, outcome(c, "validation_loss"), 0.95)[0]
    assert own.shares == {0: 1.0, 1: 1.0}


def test_what_is_not_reached_is_counted_and_not_averaged_away(tmp_path: Path) -> None:
    c = comparison(tmp_path, *pair([6.0, 6.2, 6.1], [5.8, 6.3, 6.2]))
    found = reach(c)
    assert list(found.shares) == [0]
    assert found.missed == [1, 2]
    assert found.share is None
    assert "not reached by 2 of 3 seeds" in tables.need_cell(found, False).text


def test_not_reached_by_any_seed(tmp_path: Path) -> None:
    found = reach(comparison(tmp_path, *pair([6.0, 6.0], [6.1, 6.2])))
    assert tables.need_cell(found, False).text == "not reached"


def test_with_one_validation_only_the_end_is_known(tmp_path: Path) -> None:
    found = reach(comparison(tmp_path, *pair([6.0, 6.0], [5.9, 5.9], validations=1)))
    assert found.known_at_end_only
    assert "at most" in tables.need_cell(found, False).text
    other = reach(comparison(tmp_path / "b", *pair([6.0, 6.0], [6.1, 6.1], validations=1)))
    assert tables.need_cell(other, False).text == "not reached"


def test_accuracy_is_reached_from_below(tmp_path: Path) -> None:
    found = reach(comparison(tmp_path, *pair([6.0, 6.0], [5.8, 5.8], validations=40)), "validation_accuracy")
    places = np.arange(1, 41) / 40
    rising = np.array([1 / (1 + loss_at(p, 5.8)) for p in places])
    assert found.share is not None
    assert found.share.mean == pytest.approx(float(np.interp(1 / 7, rising, places)))


def glue(cola: float, rule: str = "mean of tasks") -> dict[str, Any]:
    return {"glue": scored({"cola": {"mcc": [cola]}}, average=cola + 0.3, rule=rule)}


def test_scores_are_outcomes_with_their_rule(tmp_path: Path) -> None:
    c = comparison(
        tmp_path,
        {"scores": glue(0.4)}, {"options": {"seed": 1}, "scores": glue(0.42)},
        {"options": STACKING, "scores": glue(0.415)}, {"options": {**STACKING, "seed": 1}, "scores": glue(0.435)},
    )  # fmt: skip
    key = "glue/mean of tasks"
    assert outcome(c, key).rule == "mean of tasks"
    found = result(c, key)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(1.5)
    assert found.judgement == "better"
    detail = outcome(c, f"{key}/cola/mcc")
    assert detail.detail
    task = results(c.arms, c.baseline, detail, 0.95)[1]
    assert task.difference is not None
    assert task.difference.mean == pytest.approx(1.5)
    assert tables.need_cell(reach(c, key), False).text.startswith("at most")


def test_averages_by_other_rules_are_other_outcomes(tmp_path: Path) -> None:
    c = comparison(tmp_path, {"scores": glue(0.4)}, {"options": STACKING, "scores": glue(0.6, "best epoch")})
    labels = {o.label for o in outcomes_of(c.group.runs) if o.rule is not None and not o.detail}
    assert labels == {"glue average (mean of tasks)", "glue average (best epoch)"}
    found = result(c, "glue/best epoch")
    assert found.difference is None  # the baseline has none by this rule


def test_without_a_heldout_part_the_training_loss_stands_in(tmp_path: Path) -> None:
    c = comparison(tmp_path, {"validations": 0, "rows": 100}, {"validations": 0, "rows": 100, "options": STACKING})
    (found,) = outcomes_of(c.group.runs)
    assert found.key == "training_loss"
    value = found.value(c.group.runs[0])
    last = [row["loss"] for row in c.group.runs[0].rows if row["spent_s"] >= 98.0]
    assert len(last) == 3
    assert value == pytest.approx(sum(last) / 3)


def test_over_budgets_every_budget_is_a_run_of_its_own(tmp_path: Path) -> None:
    # The baseline ends at 6.4, 6.2, 6.0 after 100, 200, 400 s, the arm at 6.2, 6.0, 5.8: half the budget does.
    each = [
        {"final": 6.4 - 0.2 * i - less, "budget_s": 100.0 * 2**i, "options": {**options, "seed": seed}}
        for options, less in (({}, 0.0), (STACKING, 0.2))
        for i in range(3)
        for seed in range(2)
    ]
    runs = [read(run(tmp_path, f"run-{i:02d}", **arguments))[0] for i, arguments in enumerate(each)]
    (family,) = study_of(runs, ["none"]).families
    assert [budgets.budget_s(c.group) for c in family] == [100.0, 200.0, 400.0]
    arms = budgets.by_budget([c.group for c in family], family[0].name)
    loss = outcomes_of(runs)[0]
    baseline, stacking = budgets.reaches(arms, "none", loss, 0.95)
    assert baseline.shares == pytest.approx({0: 1.0, 1: 1.0})
    assert stacking.shares == pytest.approx({0: 0.5, 1: 0.5})
    assert stacking.share is not None
    assert stacking.share.mean == pytest.approx(0.5)


def test_between_budgets_outcomes_are_straight_in_the_logarithm(tmp_path: Path) -> None:
    each = [
        {"final": final, "budget_s": budget, "options": options}
        for options, ends in (({}, (6.4, 6.1)), (STACKING, (6.2, 6.0)))
        for final, budget in zip(ends, (100.0, 400.0), strict=True)
    ]
    runs = [read(run(tmp_path, f"run-{i:02d}", **arguments))[0] for i, arguments in enumerate(each)]
    (family,) = study_of(runs, ["none"]).families
    arms: dict[str, dict[float, Arm]] = budgets.by_budget([c.group for c in family], family[0].name)
    found = budgets.reaches(arms, "none", outcomes_of(runs)[0], 0.95)[1]
    assert found.shares[0] == pytest.approx(200.0 / 400.0)  # half of the way from 6.2 to 6.0 is half of log(4)
