"""What jobs come to: the JSON that programs read, the lines of every seed, the tables that people read."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cramming.evaluation.config import Average, EvalConfig
from cramming.evaluation.job import Evaluation, JobResult
from cramming.evaluation.results import Extra, Failure, Results, Selection, as_json, collect, printed, table, write
from cramming.evaluation.tables import average_line, below, headlines
from cramming.evaluation.tasks import registry

CONFIG = EvalConfig(
    name="small",
    suite="Small suite",
    tasks=["mrpc", "cola"],
    seeds=[0, 1, 2],
    average=Average(["mrpc.f1", "cola.matthews_correlation"], False, "mean of 2 numbers (F1, Matthews)"),
)
TASKS = [registry.find("mrpc"), registry.find("cola")]
BASELINES = {
    "mrpc": {"majority": {"f1": 0.812, "accuracy": 0.684}, "length": {"f1": 0.8, "accuracy": 0.69}},
    "cola": {"majority": {"matthews_correlation": 0.0}, "length": {"matthews_correlation": 0.02}},
}


def job(task: str, seed: int, *scores: dict[str, float | None], best: int = -1, **more: Any) -> JobResult:
    """A job with these scores at its evaluations; the best is the last unless said."""
    said = {
        "key": f"{task}-{seed}", "task": task, "seed": seed, "purpose": "final", "setting": {"lr": 4e-5, "epochs": 5},
        "evaluations": tuple(Evaluation(10 * (i + 1), i + 1.0, 0.5, own) for i, own in enumerate(scores)),
        "best": best % len(scores), "steps": 100, "examples": 1600, "stopped_early": False, "train_loss": 0.4,
        "seconds": {"train": 10.0, "evaluate": 2.5}, "rows": {"train": 3668, "validation": 408},
        "data_sha256": {}, "cut": {"train": {"texts": 3, "tokens": 9, "spans": 0}},
        "versions": {"torch": "2.13.0", "device": "cpu"},
    }  # fmt: skip
    return JobResult(**{**said, **more})  # type: ignore[arg-type]


def mrpc(seed: int, f1: float, **more: Any) -> JobResult:
    return job("mrpc", seed, {"f1": f1 + 0.01, "accuracy": f1 - 0.1}, {"f1": f1, "accuracy": f1 - 0.1}, best=0, **more)


def cola(seed: int, value: float | None) -> JobResult:
    return job("cola", seed, {"matthews_correlation": value})


JOBS = [mrpc(0, 0.86), mrpc(2, 0.90), mrpc(1, 0.88), cola(0, 0.2), cola(1, -0.1), cola(2, 0.1)]


def collected(jobs: list[JobResult] | None = None, config: EvalConfig = CONFIG, **extra: Any) -> Results:
    given = {
        "provenance": {"title": "first at step 4,000", "weights_sha256": "ab" * 32, "command": "eval.py name=first"}
    }
    return collect(config, TASKS, JOBS if jobs is None else jobs, BASELINES, Extra(**{**given, **extra}))


def notes(results: Results) -> dict[str, str]:
    """Task -> the last column of the table."""
    return {row[0].text: row[-1].text for row in headlines(results).rows}


def test_the_document(tmp_path: Path) -> None:
    write(tmp_path / "eval" / "small", collected())
    said = json.loads((tmp_path / "eval" / "small" / "results.json").read_text())
    assert said["suite"] == "Small suite"
    assert set(said["tasks"]) == {"mrpc", "cola"}
    f1 = said["tasks"]["mrpc"]["f1"]
    assert set(f1) == {"mean", "std", "ci95", "best_mean", "seeds"}
    assert f1["seeds"] == [0.86, 0.88, 0.90]  # in the order of the seeds, whatever the jobs' was
    assert f1["mean"] == pytest.approx(0.88)
    assert f1["std"] == pytest.approx(0.02)
    assert f1["ci95"] == pytest.approx([0.88 - 4.302653 * 0.02 / 3**0.5, 0.88 + 4.302653 * 0.02 / 3**0.5])
    assert f1["best_mean"] == pytest.approx(0.89)
    assert said["average"] == pytest.approx((0.88 + 0.2 / 3) / 2)
    assert said["average_rule"] == "mean of 2 numbers (F1, Matthews)"
    assert said["average_seeds"] == pytest.approx([(0.86 + 0.2) / 2, (0.88 - 0.1) / 2, (0.90 + 0.1) / 2])
    details = said["details"]["mrpc"]
    assert details["seeds"] == [0, 1, 2]
    assert details["baselines"] == BASELINES["mrpc"]
    assert details["rows"] == {"train": 3668, "validation": 408}
    assert details["setting"] == {"lr": 4e-5, "epochs": 5}
    assert said["provenance"]["versions"] == {"torch": "2.13.0", "device": "cpu"}
    assert said["cost"] == {"jobs": 6, "steps": 600, "train_s": 60.0, "evaluate_s": 15.0}


def test_the_lines_of_every_seed(tmp_path: Path) -> None:
    write(tmp_path, collected())
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 3
    assert rows[1] == {"suite": "Small suite", "task": "mrpc", "metric": "f1", "seed": "1", "final": "0.88",
                       "best": "0.89", "majority": "0.812", "length": "0.8"}  # fmt: skip


def test_the_same_results_are_the_same_files(tmp_path: Path) -> None:
    write(tmp_path / "a", collected())
    write(tmp_path / "b", collected(JOBS[::-1]))
    for name in ("results.json", "results.csv", "results.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_table_that_people_read(tmp_path: Path) -> None:
    results = collected()
    first, second = headlines(results).rows
    assert [cell.text.replace("\N{NO-BREAK SPACE}", " ") for cell in first] == [
        "mrpc", "f1", "3", "88.0 ± 5.0", "89.0", "81.2", "80.0", ""]  # fmt: skip
    assert second[-1].text == "at chance"  # 6.7 ± 38
    lines = printed(results, 120)
    for words in (
        "Small suite: first at step 4,000",
        "88.0",
        "89.0",
        "average 47.3",
        "mean of 2 numbers (F1, Matthews)",
    ):
        assert words in lines, words
    assert max(map(len, lines.splitlines()[:6])) <= 120
    assert [column.header for column in table(results).columns][:3] == ["task", "metric", "seeds"]
    write(tmp_path, results)
    text = (tmp_path / "results.md").read_text()
    for words in (
        "at chance",
        "81.2",
        "mean of 2 numbers",
        "| mrpc | accuracy |",
        "eval.py name=first",
        "torch",
        "3,668",
    ):
        assert words in text, words


def test_a_score_at_chance_is_marked_whatever_its_number_of_seeds() -> None:
    assert notes(collected([mrpc(0, 0.81), cola(0, 0.1)]))["mrpc"] == "at chance, 2 to come"
    assert notes(collected([mrpc(0, 0.813), cola(0, 0.1)]))["mrpc"] == "2 to come"


def test_always_yes_counts_as_chance() -> None:
    base = {"mrpc": {"majority": {"f1": 0.0}, "positive": {"f1": 0.88}}}
    assert notes(collect(CONFIG, TASKS[:1], [mrpc(s, 0.87 + 0.001 * s) for s in range(3)], base))["mrpc"] == "at chance"


def test_a_subset_is_not_averaged_and_says_what_is_missing() -> None:
    config = replace(CONFIG, tasks=["mrpc"])
    results = collect(config, TASKS[:1], JOBS, BASELINES)
    assert as_json(results)["average"] is None
    assert as_json(results)["average_missing"] == ["cola.matthews_correlation"]
    assert average_line(results).startswith("no average: cola.matthews_correlation missing")
    assert "average" not in printed(results).replace("no average", "")


def test_a_failed_job_is_shown_with_its_reason_and_the_others_stay() -> None:
    results = collected(JOBS[:2], failures=[Failure("mrpc", 1, "the loss is not finite at step 7"),
                                            Failure("cola", 0, "no such file: dev.tsv")])  # fmt: skip
    # The interval of two seeds is wide.
    assert notes(results) == {"mrpc": "at chance, 1 failed", "cola": "failed: no such file: dev.tsv"}
    assert "failed: mrpc, seed 1: the loss is not finite at step 7" in below(results)
    said = as_json(results)
    assert said["failed"][0] == {"task": "mrpc", "seed": 1, "reason": "the loss is not finite at step 7"}
    assert said["tasks"]["mrpc"]["f1"]["seeds"] == [0.86, 0.90]
    assert "cola" not in said["tasks"]


def test_undefined_scores_are_null_and_remarked() -> None:
    some = collected([*JOBS[:3], cola(0, 0.3), cola(1, None), cola(2, 0.3)])
    assert as_json(some)["tasks"]["cola"]["matthews_correlation"]["seeds"] == [0.3, None, 0.3]
    assert as_json(some)["tasks"]["cola"]["matthews_correlation"]["mean"] == pytest.approx(0.2)
    assert any("undefined in 1 of 3 seeds" in line for line in below(some))
    every = collected([*JOBS[:3], cola(0, None)])
    assert as_json(every)["tasks"]["cola"]["matthews_correlation"]["mean"] is None
    assert as_json(every)["average"] == pytest.approx(0.44)
    assert notes(every)["cola"].startswith("undefined")
    assert any(line.startswith("the average counts cola") for line in below(every))


def test_trials_of_a_search_are_no_results() -> None:
    trial = mrpc(0, 0.99, purpose="search", key="other")
    assert as_json(collected([*JOBS, trial])) == as_json(collected())


def test_a_setting_chosen_on_the_reported_rows_is_said_to_be() -> None:
    choice = Selection({"lr": 1e-4}, 12, "validation", True, 1200, 340.0, ({"lr": 1e-4, "headline": 0.9},))
    results = collected(selection={"mrpc": choice})
    assert notes(results)["mrpc"] == "best of 12 settings"
    assert any("best of 12 on validation" in line and "too high" in line for line in results.remarks)
    said = as_json(results)["details"]["mrpc"]["selection"]
    assert (said["chosen"], said["trials"], said["steps"], said["split"]) == ({"lr": 1e-4}, 12, 1200, "validation")
    apart = collected(selection={"mrpc": replace(choice, split="10 % of the training rows", reported=False)})
    assert not any("too high" in line for line in apart.remarks)


def test_words_that_were_cut_off_are_said() -> None:
    cut = {"validation": {"texts": 5, "tokens": 80, "spans": 2}}
    results = collected([mrpc(0, 0.9, cut=cut)])
    assert "MRPC: truncation cut off 2 of the words asked about in validation" in results.remarks


def test_mnlis_two_sets_and_the_diagnostic_that_its_model_answers() -> None:
    config = EvalConfig(name="n", suite="N", seeds=[0], average=Average(["mnli.accuracy", "mnli.accuracy@mismatched"]))
    result = job("mnli", 0, {"accuracy": 0.6, "accuracy@mismatched": 0.5}, also={"ax": {}})
    results = collect(config, [registry.find("mnli"), registry.find("ax")], [result], {})
    assert results.average.value == pytest.approx(0.55)
    assert set(as_json(results)["tasks"]) == {"mnli"}
    assert notes(results)["ax"] == "its labels are not public"


def test_a_task_that_another_ones_model_answers() -> None:
    config = EvalConfig(name="n", suite="N", seeds=[0, 1])
    tasks = [registry.find("rte_superglue"), registry.find("axg")]
    jobs = [job("rte_superglue", 0, {"accuracy": 0.6}, {"accuracy": 0.55}, best=0,
                also={"axg": {"accuracy": 0.5, "gender_parity": 0.9}})]  # fmt: skip
    failed = [Failure("rte_superglue", 1, "out of memory")]
    said = as_json(collect(config, tasks, jobs, {}, Extra(failures=failed)))
    assert said["tasks"]["axg"]["gender_parity"] == {
        "mean": 0.9, "std": None, "ci95": None, "best_mean": None, "seeds": [0.9]}  # fmt: skip
    assert said["tasks"]["rte_superglue"]["accuracy"]["best_mean"] == 0.6
    assert [failure["task"] for failure in said["failed"]] == ["rte_superglue", "axg"]


def test_nothing_done_yet_is_no_result_and_no_error(tmp_path: Path) -> None:
    write(tmp_path, collected([]))
    assert json.loads((tmp_path / "results.json").read_text())["tasks"] == {}
    assert notes(collected([])) == {"mrpc": "not yet run", "cola": "not yet run"}
