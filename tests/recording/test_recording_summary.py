"""summary.json and the table made of it; where a run happened."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cramming.recording.environment import cpu_model, environment, git_revision
from cramming.recording.summary import REQUIRED, summary_table, write_summary

SUMMARY: dict[str, Any] = {
    "environment": {"device": "cpu", "packages": {"torch": "2.13"}},
    "zebra": 1,
    "name": "first",
    "steps": 1234,
    "budget_s": 600.0,
    "spent_s": 580.0,
    "wall_s": 655.0,
    "train_wall_s": 607.0,
    "ledger": {"train": 580.0, "selection": 20.4, "hessian": 0.0},
    "validation_loss": 4.0,
    "fast_paths": {"attention": "sdpa"},
    "git_revision": None,
    "end_reason": "budget spent",
}


def cell(table: str, label: str) -> str:
    found = re.search(rf"[│|] +?{re.escape(label)} +[│|] +(.*?) [│|]", table)
    assert found, f"{label} is not in\n{table}"
    return found[1]


def test_the_file_is_strict_json_with_results_before_machinery(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, SUMMARY | {"loss": float("nan"), "checkpoint": tmp_path})
    read = json.loads(path.read_text())
    assert read == SUMMARY | {"loss": None, "checkpoint": str(tmp_path)}
    assert list(read)[:4] == ["name", "end_reason", "steps", "budget_s"]
    assert list(read)[-5:] == ["checkpoint", "zebra", "fast_paths", "git_revision", "environment"]
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("key", REQUIRED)
def test_what_every_summary_says_cannot_be_forgotten(tmp_path: Path, key: str) -> None:
    with pytest.raises(AssertionError, match=key):
        write_summary(tmp_path / "summary.json", {k: v for k, v in SUMMARY.items() if k != key})


def test_the_table_sets_predicted_against_wall_seconds_over_all_accounts() -> None:
    table = summary_table(SUMMARY, ascii_only=False)
    assert cell(table, "RST predicted / wall of training") == "600.4s / 607.0s = 0.989"
    assert cell(table, "validation perplexity") == "54.60"
    assert cell(table, "selection") == "20s"
    assert "hessian" not in table  # nothing was charged to it
    whole = summary_table({k: v for k, v in SUMMARY.items() if k != "train_wall_s"})
    assert cell(whole, "RST predicted / wall in all") == "600.4s / 655.0s = 0.917"


def test_a_clock_that_counts_steps_is_not_compared_with_seconds() -> None:
    table = summary_table(SUMMARY | {"unit": "steps", "budget_s": 500, "spent_s": 500, "ledger": {"train": 500}})
    assert cell(table, "budget spent") == "500 steps of 500 steps"
    assert "predicted" not in table


def test_a_run_that_got_nowhere_still_has_a_table_in_ascii() -> None:
    nothing = dict.fromkeys(REQUIRED) | {"steps": 0, "budget_s": 600.0, "spent_s": 0.0, "wall_s": 0.3, "ledger": {}}
    table = summary_table(nothing, ascii_only=True)
    assert table.isascii()
    assert cell(table, "validation loss") == "-"


def test_the_environment_is_plain_json_and_names_what_is_here() -> None:
    found = environment("NVIDIA H200")
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == "NVIDIA H200"
    assert found["packages"]["omegaconf"]
    assert "flash-attn" not in found["packages"] or found["packages"]["flash-attn"]
    assert found["cpu"] == cpu_model() != ""
    assert found["cpu_cores"] >= 1
    assert found["memory_gb"] > 0


def test_the_git_revision_is_of_these_sources_and_says_if_they_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = {f"GIT_{role}_{part}": "x@y" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", "-C", tmp_path, *arguments], env=os.environ | who, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert git_revision(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "one")
    revision = git("rev-parse", "HEAD")
    assert git_revision(tmp_path) == revision
    (tmp_path / "untracked").write_text("")
    assert git_revision(tmp_path) == revision
    (tmp_path / "file").write_text("b")
    assert git_revision(tmp_path) == f"{revision}+changes"
    (tmp_path / "site-packages").mkdir()
    assert git_revision(tmp_path / "site-packages") is None  # somebody else's repository


def test_several_ranks_say_their_device_hours() -> None:
    table = summary_table(SUMMARY | {"ranks": 4, "device_hours": 4 * 599.5 / 3600}, ascii_only=True)
    assert re.search(r"\| devices +\| +4, 0\.6661 device-hours \|", table)
    uncounted = summary_table(SUMMARY | {"ranks": 4, "device_hours": None, "unit": "steps"}, ascii_only=True)
    assert re.search(r"\| devices +\| +4 \|", uncounted)
    assert "devices" not in summary_table(SUMMARY | {"ranks": 1, "device_hours": 0.17})
