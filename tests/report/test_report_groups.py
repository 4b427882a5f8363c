"""What may be compared, what names an arm, which arm is the baseline."""

import json
from pathlib import Path
from typing import Any

import pytest
from fabricate import run

from cramming.errors import UserError
from cramming.report import curves
from cramming.report.arms import naming
from cramming.report.comparable import FACTS, differing, groups
from cramming.report.notices import notices
from cramming.report.runs import Reading, Run, read
from cramming.report.study import Study, study_of

LION = {"train.optim": {"kind": "lion", "lr": 0.0007, "weight_decay": 0.1}}
STACKING = {"method": {"layer_stacking": {"plan": "manual"}}}


def made(base: Path, *each: dict[str, Any]) -> list[Run]:
    """Runs with the given arguments, in order."""
    return [read(run(base, f"run-{i:02d}", **arguments))[0] for i, arguments in enumerate(each)]


def labels(study: Study) -> list[list[str]]:
    return [[arm.label for arm in c.arms] for c in study.comparisons]


def test_runs_that_differ_in_seed_and_place_are_one_group_and_one_arm(tmp_path: Path) -> None:
    runs = made(
        tmp_path, {}, {"options": {"seed": 1, "base_dir": "elsewhere", "data.path": "/mnt/text.txt", "impl.threads": 8}}
    )
    study = study_of(runs, ["none"])
    assert labels(study) == [["none"]]
    assert list(study.comparisons[0].arms[0].by_seed) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"summary": {"data_fingerprint": "0123"}}, "data"),
        ({"summary": {"tokenizer_sha256": "cd" * 32}}, "tokenizer"),
        ({"options": {"data.heldout_fraction": 0.1}}, "split"),
        ({"summary": {"validation_sequences": 20}}, "split"),
        ({"budget_s": 100.001}, "budget"),
        ({"until": 0.5, "summary": {"end_reason": "stop_at=50s reached"}}, "budget"),
        ({"options": {"impl.precision": "bfloat16"}}, "precision"),
        ({"options": {"rst.kind": "rtx3090"}}, "cost table"),
        ({"table": {"provenance.device": "another CPU"}}, "cost table"),
        ({"table": {"provenance.notes": ["accepted for a run that it does not match: it has 2 layers"]}}, "cost table"),
        ({"table": {"forward": {"64": {"0": 0.01, "1": 0.02, "2": 0.04}}}}, "prices"),
        ({"summary": {"ranks": 2, "device_hours": 200 / 3600}}, "budget"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_compared_is_apart_and_named(tmp_path: Path, arguments: dict[str, Any], fact: str) -> None:
    found = groups(made(tmp_path, {}, {"options": {"seed": 1}}, arguments))
    assert [[r.name for r in group.runs] for group in found] == [["run-00", "run-01"], ["run-02"]]
    assert differing(found) == [fact]
    assert fact in FACTS


def on_two(budget_s: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A run on two devices, each of which has this budget."""
    hours = 2 * budget_s / 3600
    return {"options": {"seed": seed}, "budget_s": budget_s, "summary": {"ranks": 2, "device_hours": hours}, **more}


def test_runs_are_compared_at_equal_device_hours(tmp_path: Path) -> None:
    """On one device for 100 s and on two for 50 s each: comparable, with a note. On two for 100 s: not."""
    runs = made(tmp_path, {}, on_two(50.0, 1), on_two(100.0), on_two(100.0, 1, until=0.3, end=False))
    assert [run.devices for run in runs] == [1, 2, 2, 1]  # a summary says it; of the last run nothing is known
    assert [run.device_hours for run in runs[:3]] == [pytest.approx(s / 3600) for s in (100, 100, 200)]
    study = study_of(runs, ["none"])
    found = [[[run.name for run in c.group.runs] for c in family] for family in study.families]
    assert found == [[["run-00", "run-01"], ["run-02"]]], "one design at two budgets"
    budgets = [c.group.facts["budget"] for c in study.comparisons]
    assert budgets == ["0.02778 device-hours (100 s)", "0.05556 device-hours (200 s)"]
    curve = curves.curve(runs[1].rows, "validation_loss")
    assert curve.x[-1] == pytest.approx(100.0), "curves are over the time of both"
    assert runs[1].ledger == {"train": pytest.approx(100.0)}
    said = "\n".join(notices(study, Reading(runs, [])))
    assert "Group A: Runs on 1 and 2 devices are compared at equal device-hours" in said
    assert "Group B: All runs are on 2 devices: budget, accounts and what was spent are of all" in said


def test_an_early_end_is_compared_in_device_hours(tmp_path: Path) -> None:
    ended = {"end_reason": "stop_at=50s reached"}
    half = on_two(50.0, 1, until=0.5)
    half["summary"] |= {"end_reason": "stop_at=25s reached", "device_hours": 50 / 3600}
    (group,) = groups(made(tmp_path, {"until": 0.5, "summary": ended}, half))
    assert group.facts["budget"] == "0.02778 device-hours (100 s), ended at 0.01389 device-hours (50 s)"


def test_a_run_that_went_on_with_other_devices_counts_what_each_did(tmp_path: Path) -> None:
    """Half of it on one device, half on two."""
    (one,) = made(tmp_path, {"summary": {"ranks": 2, "device_hours": 150 / 3600}})
    assert (one.devices, one.budget_s, one.spent_s) == (1.5, 150.0, 150.0)


def test_a_checkpoint_says_on_how_many_devices_an_unfinished_run_is(tmp_path: Path) -> None:
    folder = run(tmp_path, "begun", until=0.3, end=False)
    (folder / "checkpoints" / "step=00000004").mkdir(parents=True)
    manifest = {"spent_s": 10.0, "device_hours": 40 / 3600}
    (folder / "checkpoints" / "step=00000004" / "manifest.json").write_text(json.dumps(manifest))
    begun = read(folder)[0]
    assert (begun.devices, begun.budget_s) == (4, 400.0)
    assert begun.spent_s == pytest.approx(120.0)


def test_steps_are_compared_on_any_number_of_devices(tmp_path: Path) -> None:
    steps: dict[str, Any] = {"rst": {"kind": "steps"}}
    two = {"summary": {"ranks": 2, "device_hours": None, "unit": "steps"}, "options": {**steps, "seed": 1}}
    runs = made(tmp_path, {"options": steps, "summary": {"unit": "steps"}}, two)
    study = study_of(runs, ["none"])
    (c,) = study.comparisons
    assert c.group.facts["budget"] == "100 steps"
    assert [run.device_hours for run in runs] == [None, None]
    assert any(
        "compared at equal steps, since no time is counted" in line for line in notices(study, Reading(runs, []))
    )


def test_clocks_without_a_table_are_compared_by_their_rule(tmp_path: Path) -> None:
    def with_clock(**rst: Any) -> dict[str, Any]:
        return {"options": {"rst": rst}}

    found = groups(
        made(
            tmp_path,
            with_clock(kind="flops", flops_per_s=1e9),
            with_clock(kind="flops", flops_per_s=2e9),
            with_clock(kind="steps"),
            with_clock(kind="wallclock"),
            {**with_clock(kind="wallclock"), "summary": {"environment": {"device": "cpu", "cpu": "another"}}},
        )
    )
    assert len({group.facts["cost table"] for group in found}) == 5


def test_architectures_and_optimizers_are_comparable_whatever_their_prices(tmp_path: Path) -> None:
    other = {"provenance.architecture": "mosaic layers=2", "forward": {"64": {"0": 0.02, "1": 0.04, "2": 0.06}}}
    (found,) = groups(
        made(
            tmp_path,
            {},
            {"options": {"arch.name": "mosaic"}, "table": other},
            {"options": LION, "table": {"update_s": 0.7}},
        )
    )
    assert len(found.runs) == 3


def test_an_unfinished_run_joins_the_group_it_could_belong_to(tmp_path: Path) -> None:
    found = groups(
        made(
            tmp_path,
            {"options": {"impl.precision": "bfloat16"}},
            {"options": {"impl.precision": "bfloat16", "seed": 1}},
            {},
            {"until": 0.3, "end": False},
            {"until": 0.3, "end": False, "budget_s": 50.0},
        )
    )
    told = [([r.name for r in g.runs], [r.name for r in g.unfinished]) for g in found]
    assert told == [(["run-00", "run-01"], []), (["run-02"], ["run-03"]), ([], ["run-04"])]


def test_an_arm_is_named_by_as_little_as_tells_it_apart(tmp_path: Path) -> None:
    selective = {"method": {"selective_backprop": {"beta": 1.0, "history": 3}}}
    sharper = {"method": {"selective_backprop": {"beta": 2.0, "history": 3}}}
    each = [{}, STACKING, selective, sharper, LION]
    runs = made(tmp_path, *({"options": {**o, "seed": seed}} for o in each for seed in (0, 1)))
    study = study_of(runs, ["none"])
    names = ["layer_stacking", "lion", "none", "selective_backprop, beta=1", "selective_backprop, beta=2"]
    assert labels(study) == [names]
    assert study.baselines == ["none"]
    assert all(list(arm.by_seed) == [0, 1] for arm in study.comparisons[0].arms)


def test_a_sweep_over_one_option_is_named_by_it(tmp_path: Path) -> None:
    runs = made(tmp_path, *({"options": {"train.optim.lr": lr}} for lr in (0.001, 0.002, 3e-05)))
    assert labels(study_of(runs, ["none"])) == [["lr=0.001", "lr=0.002", "lr=3e-05"]]


def test_choices_of_equal_standing_are_all_told(tmp_path: Path) -> None:
    runs = made(tmp_path, {"options": LION}, {})
    assert labels(study_of(runs, ["none"])) == [["adamw", "lion"]]


def test_methods_and_optimizers_crossed(tmp_path: Path) -> None:
    runs = made(tmp_path, {}, {"options": STACKING}, {"options": LION}, {"options": {**STACKING, **LION}})
    assert labels(study_of(runs, ["none"])) == [["adamw", "layer_stacking, adamw", "layer_stacking, lion", "lion"]]


def test_what_differs_along_with_the_name_is_told(tmp_path: Path) -> None:
    other = {"arch.name": "mosaic", "arch.hidden": 128, "train.batch_size": 32}
    runs = made(tmp_path, {}, {"options": {"seed": 1}}, {"options": other}, {"options": {**other, "seed": 1}})
    study = study_of(runs, ["none"])
    assert study.comparisons[0].name.also == ("train.batch_size",)  # the width is part of the architecture's name
    said = [line for line in notices(study, Reading(runs, [])) if "train.batch_size" in line]
    assert len(said) == 1
    assert "16" in said[0]
    assert "32" in said[0]


def test_by_decides_what_names_an_arm(tmp_path: Path) -> None:
    runs = made(tmp_path, {}, {"options": {"train.optim.lr": 0.002}}, {"options": LION}, {"options": STACKING})
    study = study_of(runs, ["none"], ["method"])
    assert labels(study) == [["layer_stacking", "none"]]
    baseline = study.comparisons[0].baseline
    assert baseline is not None
    assert [r.name for r in baseline.by_seed[0]] == ["run-00", "run-01", "run-02"]
    assert any("several runs of one seed" in line for line in notices(study, Reading(runs, [])))
    assert labels(study_of(runs, [], ["train/optim"])) == [["adamw", "lion"]]


def test_an_unknown_option_in_by_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"by=train\.optim\.lrr .*did you mean 'train\.optim\.lr'"):
        naming(made(tmp_path, {}), ["train.optim.lrr"])


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["none"], "none"),
        (["layer_stacking"], "layer_stacking"),
        (["train/optim=lion"], "lion"),
        (["method=layer_stacking"], "layer_stacking"),
        (["none", "train.optim=lion"], "lion"),
        (["lion"], "lion"),
        ([], None),
    ],
)
def test_the_baseline_is_named_by_method_option_or_label(tmp_path: Path, wanted: list[str], chosen: str | None) -> None:
    runs = made(tmp_path, {}, {"options": STACKING}, {"options": LION})
    baseline = study_of(runs, wanted).comparisons[0].baseline
    assert (baseline.label if baseline else None) == chosen


def test_of_several_baselines_the_usual_one_is_taken_and_the_others_are_told(tmp_path: Path) -> None:
    runs = made(tmp_path, {"options": LION}, {}, {"options": STACKING})
    study = study_of(runs, ["none"])
    assert study.baselines == ["none"]
    assert any("taken: none" in line and "lion" in line for line in notices(study, Reading(runs, [])))


def test_a_baseline_that_is_nowhere(tmp_path: Path) -> None:
    runs = made(tmp_path, {"options": STACKING}, {"options": LION})
    with pytest.raises(UserError, match=r"baseline=layer_stakcing is none of the arms.*layer_stacking"):
        study_of(runs, ["layer_stakcing"])


def test_without_a_baseline_among_the_arms_that_is_said(tmp_path: Path) -> None:
    runs = made(tmp_path, {"options": STACKING}, {"options": {"method": {"layer_dropping": {}}}})
    study = study_of(runs, ["none"])
    assert study.baselines == []
    assert any(line.startswith("No baseline") for line in notices(study, Reading(runs, [])))


def test_budgets_of_one_design_are_one_family(tmp_path: Path) -> None:
    runs = made(tmp_path, {"budget_s": 200.0}, {}, {"options": STACKING}, {"options": {"impl.precision": "bfloat16"}})
    families = study_of(runs, ["none"]).families
    assert sorted([c.group.facts["budget"] for c in family] for family in families) == [
        ["1m 40s (100 s)"],
        ["1m 40s (100 s)", "3m 20s (200 s)"],
    ]


def test_what_may_mislead_is_said(tmp_path: Path) -> None:
    runs = made(
        tmp_path,
        {"summary": {"git_revision": "abc+changes"}},
        {"options": {"seed": 1}},
        {"options": {**STACKING, "seed": 1}, "ledger": {"train": 80.0, "extra": 30.0}, "summary": {"free": ["extra"]}},
        {"options": {**STACKING, "seed": 4}, "until": 0.5, "end": False},
    )
    lines = "\n".join(notices(study_of(runs, ["none"]), Reading(runs, [(Path("x/lost"), "it has no config.yaml")])))
    for said in (
        "Damaged, and left out: lost: it has no config.yaml",
        "Unfinished: run-03",
        "Fewer than 3 seeds: layer_stacking (1); none (2)",
        "same seeds: 0 cannot be paired",
        "The account extra is free in layer_stacking",
        "2 commits",
        "+changes",
    ):
        assert said in lines
