"""Scores of fine-tuning in a report: intervals over the right seeds, pairs of the right seeds, and what is no run."""

import math
from pathlib import Path
from typing import Any

import pytest
from fabricate import evaluated, run, scored

from cramming.evaluation.config import Average, EvalConfig
from cramming.evaluation.job import Evaluation, JobResult
from cramming.evaluation.results import as_json, collect
from cramming.evaluation.tasks import registry
from cramming.report import evaluation, figures
from cramming.report.command import command
from cramming.report.document import Table
from cramming.report.evaluation import Suite
from cramming.report.outcomes import outcomes_of
from cramming.report.runs import read_all
from cramming.report.study import study_of

STACKING = {"method": {"layer_stacking": {}}}
T_2, T_3 = 12.706205, 4.302653  # Student's t at 97.5 % with one and two degrees of freedom


def sst2(*values: float, **more: Any) -> dict[str, Any]:
    return {"glue": scored({"sst2": {"accuracy": list(values)}}, **more)}


def suite(base: Path) -> Suite:
    """The one suite of the runs and checkpoints below a folder."""
    reading = read_all([f"{base}/*"])
    study = study_of(reading.runs, ["none"])
    look = figures.styles(study.labels, study.baselines)
    (c,) = study.comparisons
    arms = [c.baseline, *(arm for arm in c.arms if arm is not c.baseline)] if c.baseline else c.arms
    rows = evaluation.rows_of([arm for arm in arms if arm], look, c.group.unfinished, reading.checkpoints)
    (found,) = evaluation.suites_of(rows, c.baseline)
    return found


def cells(table: Table) -> dict[str, list[str]]:
    """First cell -> the others, with plain spaces."""
    rows = [[cell.text.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in table.rows]
    return {row[0]: row[1:] for row in rows}


def test_several_pretraining_seeds_have_the_interval_over_those(tmp_path: Path) -> None:
    for seed, values in enumerate([(0.80, 0.90), (0.86, 0.86), (0.84, 0.90)]):  # means 85, 86, 87
        run(tmp_path, f"a-{seed}", options={"seed": seed}, scores=sst2(*values))
    found = suite(tmp_path)
    said = cells(evaluation.table(found, 0.95))
    half = T_3 * 1.0 / math.sqrt(3)
    assert said["none (baseline)"] == ["3 x 2", f"86.0 ± {half:.1f}", f"86.0 ± {half:.1f}"]  # average, sst2


def test_one_run_has_the_interval_over_fine_tuning_seeds_and_says_so(tmp_path: Path) -> None:
    run(tmp_path, "a", scores=sst2(0.80, 0.90))
    table = evaluation.table(suite(tmp_path), 0.95)
    half = T_2 * math.sqrt(50) / math.sqrt(2)  # of 80 and 90
    assert cells(table)["none (baseline)"] == ["1 x 2", f"85.0 ± {half:.1f}†", f"85.0 ± {half:.1f}†"]
    assert "† Over fine-tuning seeds" in table.caption
    run(tmp_path, "b", options={"seed": 1}, scores=sst2(0.80, 0.90))
    assert "†" not in evaluation.table(suite(tmp_path), 0.95).caption


def test_differences_are_paired_by_pretraining_seed(tmp_path: Path) -> None:
    for seed, (base, more) in enumerate([(0.80, 0.01), (0.90, 0.02)]):
        run(tmp_path, f"a-{seed}", options={"seed": seed}, scores=sst2(base - 0.05, base + 0.05))
        run(tmp_path, f"b-{seed}", options={**STACKING, "seed": seed}, scores=sst2(base + more, base + more))
    found = suite(tmp_path)
    assert found.baseline is not None
    table = evaluation.differences(found, found.baseline, 0.95)
    half = T_2 * math.sqrt(0.5) / math.sqrt(2)  # of +1 and +2
    assert cells(table)["layer_stacking"][1] == f"+1.5 ± {half:.1f}"
    assert "†" not in table.caption


def test_single_runs_are_paired_by_fine_tuning_seed(tmp_path: Path) -> None:
    run(tmp_path, "a", scores=sst2(0.80, 0.84, 0.88))
    run(tmp_path, "b", options=STACKING, scores=sst2(0.82, 0.87, 0.92))  # +2, +3, +4
    found = suite(tmp_path)
    assert found.baseline is not None
    table = evaluation.differences(found, found.baseline, 0.95)
    assert cells(table)["layer_stacking"][1] == f"+3.0 ± {T_3 / math.sqrt(3):.1f}† better"
    assert "paired by fine-tuning seed: a verdict on two models" in table.caption


def test_untrained_weights_are_a_line_of_their_own_and_in_no_mean(tmp_path: Path) -> None:
    for seed in range(2):
        scores = {"glue": sst2(0.9)["glue"], "glue-untrained": sst2(0.5)["glue"]}
        run(tmp_path, f"a-{seed}", options={"seed": seed}, scores=scores)
    found = suite(tmp_path)
    said = cells(evaluation.table(found, 0.95))
    assert said["none (baseline)"][2] == "90.0 ± 0.0"
    assert said["none, untrained"][2] == "50.0 ± 0.0"
    assert found.baseline is not None
    assert cells(evaluation.differences(found, found.baseline, 0.95))["none, untrained"][1] == "-40.0 ± 0.0 worse"
    reading = read_all([f"{tmp_path}/*"])
    values = {o.value(r) for o in outcomes_of(reading.runs) if o.rule for r in reading.runs}
    assert values == {90.0}


def test_checkpoints_and_unfinished_runs_stand_beside_and_are_not_compared(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path, f"a-{seed}", options={"seed": seed}, scores=sst2(0.9, 0.8))
    run(tmp_path, "killed", until=0.5, end=False, scores={"glue@12h": sst2(0.7)["glue"]})
    evaluated(tmp_path / "bert", sst2(0.95, 0.97))
    found = suite(tmp_path)
    said = cells(evaluation.table(found, 0.95))
    assert list(said) == ["none (baseline)", "killed (unfinished), @12h", "bert"]
    assert said["bert"][0] == "2"
    assert found.baseline is not None
    assert cells(evaluation.differences(found, found.baseline, 0.95))["bert"] == ["-", "-"]


def test_what_no_reading_gets_is_a_line_and_marks_chance(tmp_path: Path) -> None:
    tasks = {"mrpc": {"f1": [0.80, 0.83]}, "rte": {"accuracy": [0.60, 0.601]}}
    base = {"mrpc": {"f1": 0.812}, "rte": {"accuracy": 0.527}}
    run(tmp_path, "a", scores={"glue": scored(tasks, majority=base)})
    table = evaluation.table(suite(tmp_path), 0.95)
    said = cells(table)
    assert said["majority class"] == ["", "-", "81.2", "52.7"]
    assert said["none (baseline)"][2].endswith("†‡")
    assert "‡" not in said["none (baseline)"][3]
    assert "At chance" in table.caption


def test_without_an_average_the_table_says_that_there_is_none(tmp_path: Path) -> None:
    run(tmp_path, "a", scores={"glue": scored({"rte": {"accuracy": [0.6]}}, rule="mean of nine") | {"average": None}})
    table = evaluation.table(suite(tmp_path), 0.95)
    assert [column.title for column in table.columns] == ["model", "seeds", "rte acc"]
    assert "There is no average" in table.caption
    assert "mean of nine" in table.caption


def test_what_was_not_fine_tuned_alike_and_what_failed_is_said(tmp_path: Path) -> None:
    run(tmp_path, "a", scores=sst2(0.9))
    other = sst2(0.9, failed=[{"task": "rte", "seed": 2, "reason": "out of memory"}])
    other["glue"]["details"]["sst2"]["setting"]["lr"] = 1e-5
    run(tmp_path, "b", options=STACKING, scores=other)
    text = str(evaluation.blocks([suite(tmp_path)], 0.95, 2, "")[1])
    assert "sst2 was not fine-tuned alike everywhere: lr differ" in text
    assert "layer_stacking: failed: rte, seed 2: out of memory" in text
    other["glue"]["details"]["sst2"]["selection"] = {"chosen": {"lr": 1e-5}}  # that was chosen by a search
    (tmp_path / "b" / "eval" / "glue" / "results.json").unlink()
    (tmp_path / "b" / "eval" / "glue").rmdir()
    evaluated(tmp_path / "b", other)
    assert "alike" not in str(evaluation.blocks([suite(tmp_path)], 0.95, 2, "")[1])


def test_a_page_of_nothing_but_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(tmp_path / "runs" / "bert", sst2(0.95, 0.97))
    evaluated(tmp_path / "runs" / "other", sst2(0.85, 0.87))
    command([f"{tmp_path}/runs/*", f"out={tmp_path}/r.html"])
    text = (tmp_path / "r.html").read_text()
    for words in ("Fine-tuning: glue", "bert", "96.0", "86.0", "glue: scores by task"):
        assert words in text, words
    assert "96.0" in capsys.readouterr().out
    assert (tmp_path / "r_files" / "scores_glue_mean_of_tasks.png").is_file()


def keys(document: Any, path: str = "") -> set[str]:
    """Paths of all keys; what stands below a task, an outcome or a name of ours is alike for all."""
    if not isinstance(document, dict):
        return set()
    return {found for key, value in document.items() for found in ({f"{path}/{key}"} | keys(value, f"{path}/{key}"))}


def test_fabricated_scores_have_the_format_of_real_ones() -> None:
    setting = {"lr": 4e-5, "epochs": 5}
    point = Evaluation(10, 1.0, 0.5, {"accuracy": 0.9})
    job = JobResult("k", "sst2", 0, "final", setting, (point,), 0, 10, 160, False, 0.1, {}, {"train": 100,
                    "validation": 50}, {}, {})  # fmt: skip
    config = EvalConfig(name="glue", suite="glue", seeds=[0], average=Average(["sst2.accuracy"], rule="mean of tasks"))
    baselines = {"sst2": {"majority": {"accuracy": 0.5}}}
    real = as_json(collect(config, [registry.find("sst2")], [job], baselines))
    made = scored({"sst2": {"accuracy": [0.9]}}, majority={"sst2": {"accuracy": 0.5}})
    loose = {"/provenance/title", "/provenance/versions"}
    assert keys(made) - loose == keys(real) - loose
