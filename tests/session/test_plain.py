"""``impl.plain`` of a run: what is computed is the same, and what was taken is written down."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cramming.cli import pretraining
from cramming.plain import WAYS
from cramming.session import pretrain
from tests.session import runs


def test_a_run_without_any_of_them_learns_the_same(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """But for documents that are apart, which stay on rows of their own."""

    def summary(name: str, *words: str) -> Any:
        caplog.clear()
        apart = "train.separate_documents=true"
        with caplog.at_level(logging.INFO):
            pretraining(pretrain, runs.command(folder, f"name={name}", "budget=2", apart, *words))
        return json.loads((folder / "outputs" / name / "summary.json").read_text())

    fast = summary("fast")
    assert "changes nothing" not in caplog.text
    plain = summary("plain", "impl.plain=[all,kept_filters]")
    said = [line for line in caplog.messages if "changes nothing" in line]
    assert [line.split()[0] for line in said] == ["impl.plain=[unpadding]", "impl.plain=[kept_filters]"]
    assert "documents that are kept apart" in said[0]
    for key in ("loss", "validation_loss"):
        assert plain[key] == pytest.approx(fast[key], rel=1e-5)
    for key in ("spent_s", "ledger", "work"):
        assert plain[key] == fast[key]
    taken, other = fast["fast_paths"], plain["fast_paths"]
    assert (taken["plain"], other["plain"]) == ([], sorted(WAYS))
    there = {"predicted_positions", "cross_entropy", "word_gradient", "unpadding", "fused_optimizer"}
    assert there == taken.keys() & WAYS.keys() == other.keys() & WAYS.keys()
    for name in there:
        assert (taken[name], other[name]) == (WAYS[name].fast, f"plain: {WAYS[name].plain}")
