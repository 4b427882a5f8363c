"""What each trick is worth is measured against steps that compute the same."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from benchmarks import tricks
from benchmarks.architectures import SIZES, Case
from benchmarks.comparison import Mode, run
from benchmarks.presentation import listed

TINY: dict[str, Any] = {"size": "tiny", "lengths": [16], "tokens": 32, "pairs": 3, "isolated": False, "device": "cpu"}
EVERYWHERE = {"cross_entropy", "predicted_positions", "word_gradient", "fused_optimizer"}
CASE = Case("m2", 16, 2, SIZES["tiny"], 0.15)


def test_the_step_without_each_learns_the_same() -> None:
    options = tricks.TricksOptions(archs=["m2"], precision="float32", **TINY)
    found = set(tricks.sides(options, CASE)) - {"ours", "compiled", "fused attention"}  # of which m2 has none
    assert found == EVERYWHERE | {"convolution", "kept_filters", "block_diagonal", "all plain", "whole batch a pass"}
    options.baselines = sorted(found)
    result = run(options, Mode("tricks", partial(tricks.sides, options), page=listed))
    (row,) = result["rows"]
    assert [cells[1] for cells in listed(result).rows] == list(row["tokens_per_s"]), "a line for each"
    assert (row["refused"], row["unfit"], set(row["ratios"])) == ("", {}, found)
    assert list(row["losses"].values()) == pytest.approx([row["losses"]["ours"]] * len(row["losses"]), rel=1e-4)


def test_each_side_is_plain_in_one_way() -> None:
    options = tricks.TricksOptions(precision="float32", **TINY)
    built = tricks.sides(options, CASE)
    for name in EVERYWHERE:
        side: Any = built[name]()
        assert side.engine.model.plain == {name}
        fused = {bool(group["fused"]) for group in side.engine.optimizer.param_groups}
        assert fused == {name != "fused_optimizer"}
    ours: Any = built["ours"]()
    assert ours.engine.model.plain == frozenset()


def test_there_is_a_side_for_all_that_a_family_has(monkeypatch: pytest.MonkeyPatch) -> None:
    options = tricks.TricksOptions(**TINY)
    monkeypatch.setattr(tricks.TricksOptions, "passes_in", lambda self: "bfloat16")
    found = set(tricks.ways(options, replace(CASE, family="modern")))
    assert found == EVERYWHERE | {"cast_once", "local_attention"}
