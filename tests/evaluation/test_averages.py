"""Means over seeds and over tasks, against hand-made numbers and the reference averages."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cramming.cli import CONFIG_DIR
from cramming.errors import UserError
from cramming.evaluation.averages import averaged, parsed
from cramming.evaluation.config import Average
from cramming.evaluation.statistics import Summary, at_chance, chance, summary

T_3 = 4.302652729911275  # Student's t at 97.5 % with two degrees of freedom, from any table


def test_a_mean_over_seeds() -> None:
    found = summary([0.7, 0.8, 0.75])
    assert found.mean == pytest.approx(0.75)
    assert found.std == pytest.approx(0.05)
    assert found.half == pytest.approx(T_3 * 0.05 / math.sqrt(3))
    assert found.ci95 == pytest.approx((0.75 - T_3 * 0.05 / math.sqrt(3), 0.75 + T_3 * 0.05 / math.sqrt(3)))
    assert (found.values, found.n, found.undefined) == ((0.7, 0.8, 0.75), 3, 0)


def test_one_seed_has_no_spread() -> None:
    assert summary([0.5]) == Summary(0.5, None, None, (0.5,))


def test_an_undefined_seed_counts_as_zero_and_is_kept_as_what_it_is() -> None:
    found = summary([0.6, None])
    assert found.mean == pytest.approx(0.3)
    assert found.values == (0.6, None)
    assert found.undefined == 1
    assert summary([None, None]) == Summary(None, None, None, (None, None))


def test_chance_is_the_best_constant_answer() -> None:
    baselines = {"majority": {"f1": 0.0, "r": None}, "positive": {"f1": 0.54}, "length": {"f1": 0.6, "r": 0.3}}
    assert chance(baselines, "f1") == 0.54
    assert chance(baselines, "r") == 0.0
    assert chance({}, "f1") == 0.0


def test_a_score_clears_chance_with_its_whole_interval() -> None:
    wide, narrow = summary([0.5, 0.7]), summary([0.59, 0.60, 0.61])
    assert at_chance(wide, 0.55)
    assert not at_chance(narrow, 0.55)
    assert at_chance(summary([0.55]), 0.55)
    assert not at_chance(summary([0.56]), 0.55)
    assert at_chance(summary([None]), -1.0)


SCORES = {"a": {"x": summary([0.2, 0.4]), "y": summary([0.6, 0.6])}, "b.c": {"x@m": summary([0.9, 0.7])}}
SEEDS = {"a": (0, 1), "b.c": (0, 1)}
ALL = ["a.x", "a.y", "b.c.x@m"]


def test_flat_and_nested() -> None:
    flat = averaged(Average(ALL, False, "all alike"), SCORES, SEEDS)
    nested = averaged(Average(ALL, True, "tasks alike"), SCORES, SEEDS)
    assert flat.value == pytest.approx((0.3 + 0.6 + 0.8) / 3)
    assert nested.value == pytest.approx(((0.3 + 0.6) / 2 + 0.8) / 2)
    assert flat.over_seeds is not None
    assert nested.over_seeds is not None
    assert flat.over_seeds.values == pytest.approx(((0.2 + 0.6 + 0.9) / 3, (0.4 + 0.6 + 0.7) / 3))
    assert nested.over_seeds.values == pytest.approx(((0.4 + 0.9) / 2, (0.5 + 0.7) / 2))
    assert (flat.rule, flat.missing, flat.remarks) == ("all alike", (), ())


def test_a_subset_has_no_average_and_what_is_missing_is_named() -> None:
    found = averaged(Average([*ALL, "d.x", "a.z"], False, "r"), SCORES, SEEDS)
    assert (found.value, found.over_seeds) == (None, None)
    assert found.missing == ("d.x", "a.z")


def test_an_undefined_score_counts_as_zero_and_that_is_said() -> None:
    found = averaged(Average(["a.x", "b.c.x@m"], False, "r"), {**SCORES, "a": {"x": summary([None, None])}}, SEEDS)
    assert found.value == pytest.approx(0.4)
    assert len(found.remarks) == 1
    assert "a.x" in found.remarks[0]


def test_tasks_with_other_seeds_have_an_average_but_none_of_each_seed() -> None:
    found = averaged(Average(ALL, False, "r"), SCORES, {"a": (0, 1), "b.c": (0, 2)})
    assert found.value is not None
    assert found.over_seeds is None


def test_a_suite_may_have_no_average() -> None:
    found = averaged(Average(), SCORES, SEEDS)
    assert (found.value, found.missing) == (None, ())


@pytest.mark.parametrize("name", ["accuracy", ".accuracy", "rte.", "rte.accuracy@", "rte@m.accuracy", ""])
def test_outcomes_are_spelled_as_they_are(name: str) -> None:
    with pytest.raises(UserError, match=r"task\.metric"):
        parsed(name)


def test_outcomes_are_read() -> None:
    assert parsed("mnli.accuracy@mismatched") == ("mnli", "accuracy@mismatched")
    assert parsed("wsc.fixed.accuracy") == ("wsc.fixed", "accuracy")


def reference(golden: dict[str, Any]) -> dict[str, dict[str, Summary]]:
    """Scores of the reference cases under our names."""
    found: dict[str, dict[str, Summary]] = {}
    for case, values in golden["results"].items():
        collection, name = case.split("/")
        task = {
            "mnli_mismatched": "mnli",
            "wsc.fixed": "wsc",
            "rte": "rte" if collection == "glue" else "rte_superglue",
        }
        renamed = {
            "superglue/cb": {"f1": "macro_f1"},
            "superglue/record": {"f1": "record_f1", "exact_match": "record_exact_match"},
            "glue/mnli_mismatched": {"accuracy": "accuracy@mismatched"},
        }
        for metric, value in values["metrics"].items():
            own = renamed.get(case, {}).get(metric, metric)
            found.setdefault(task.get(name, name), {})[own] = summary([value])
    return found  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "entry", "key", "per_cent"),
    [
        ("glue_sane", "ntng_GLUE", "value", False), ("glue_sane", "cramming_GLUE", "amean", False),
        ("superglue_sane", "ntng_SuperGLUE", "value", False), ("glue_mosaic", "mosaicbert_GLUE", "value", True),
        ("glue_m2_110m", "m2bert_GLUE", "value", True), ("superglue", "official_SuperGLUE_8_tasks", "value", False),
        ("glue_extreme", "official_GLUE_9_tasks", "value", False),
    ],
)  # fmt: skip
def test_the_suites_averages_are_the_reference_ones(
    shared: Path, suite: str, entry: str, key: str, per_cent: bool
) -> None:
    from omegaconf import OmegaConf

    golden = json.loads((shared / "golden" / "metrics.json").read_text())
    config = OmegaConf.load(CONFIG_DIR / "eval" / f"{suite}.yaml")
    average = Average(list(config.average.of), bool(config.average.get("nested", False)), config.average.rule)
    scores = reference(golden)
    found = averaged(average, scores, dict.fromkeys(scores, (0,)))
    assert found.missing == ()
    wanted = golden["aggregates"][entry][key]
    assert found.value == pytest.approx(wanted / 100 if per_cent else wanted, abs=1e-6)
